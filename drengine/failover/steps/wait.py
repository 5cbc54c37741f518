"""Letting time pass."""

from __future__ import annotations

from typing import Any

from drengine.config import parse_duration
from drengine.failover.runbook.sense import Sense
from drengine.failover.runbook.values import Duration
from drengine.failover.steps.step import ActionKind, NoResult, PlannedStep, StepContext, StepResult


class WaitStep(ActionKind[str, NoResult]):
    """Lets some time pass; after an interruption it waits for what was left at most once more."""

    name = "wait"
    acts = False
    help = "Let so much time pass."
    settings_type: Any = Duration
    estimate_seconds = 0.0

    def title(self, source: str, settings: str) -> str:
        return f"wait {settings}"

    def examine(self, settings: str, sense: Sense) -> None:
        sense.seconds(settings)

    async def act(self, step: PlannedStep[str], context: StepContext) -> StepResult[NoResult]:
        seconds = parse_duration(step.settings)
        await context.site.clock.sleep(seconds)
        return StepResult(True, f"waited {seconds:g} s")


WAIT = WaitStep()
