"""Stopping a source's services on its own host, before its disks are compared and overwritten."""

from __future__ import annotations

import msgspec

from drengine.failover.steps.declare import declared
from drengine.failover.steps.services import ServiceCommand, run_at_source
from drengine.failover.steps.step import NoResult, PlannedStep, StepContext, StepKind, StepResult


class StopServicesSettings(msgspec.Struct, frozen=True):
    """What is run, in order."""

    commands: list[ServiceCommand]


class StopServicesStep(StepKind[StopServicesSettings, NoResult]):
    """Has the source's agent stop what uses its disks. Stopping what is stopped does nothing."""

    name = "stop-services"
    timeout_seconds = 3600.0
    retries = 1
    estimate_seconds = 5.0
    by_hand = True

    def title(self, source: str, settings: StopServicesSettings) -> str:
        return f"stop {', then '.join(each.name for each in settings.commands)} on {source}"

    async def act(self, step: PlannedStep[StopServicesSettings], context: StepContext) -> StepResult[NoResult]:
        generation = declared(step, context).generation
        ended = await run_at_source(step.settings.commands, step, context, generation=generation)
        if not ended.ok:
            return ended
        return StepResult(True, f"stopped on {step.source}: {ended.message}", output=ended.output)


STOP_SERVICES = StopServicesStep()
