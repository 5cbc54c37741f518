"""The planned switch away from a source: stopping it, and a last point that has everything it wrote."""

from __future__ import annotations

import msgspec

from drengine.control.messages import Verb
from drengine.failover.errors import RUN_STATE
from drengine.failover.labels import RunLabel
from drengine.failover.steps.agents import order_agent, refused
from drengine.failover.steps.declare import declared
from drengine.failover.steps.points import PointFacts, point_facts, point_with_id
from drengine.failover.steps.programs import run_program
from drengine.failover.steps.services import ServiceCommand, run_at_source
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.process.threads import in_thread


class QuiesceSourceSettings(msgspec.Struct, frozen=True):
    """What stops the workload: commands at the source, then one of the orchestrator's; else the agent alone does."""

    stop: list[str] = []
    services: list[ServiceCommand] = []


class SourceStopped(PointFacts, frozen=True, kw_only=True):
    """The last point of a source that was stopped, and the program that stopped it; empty: none did."""

    stopped_by: str = ""


class QuiesceSourceStep(StepKind[QuiesceSourceSettings, SourceStopped]):
    """Stops the source's workload by the runbook's command, then its agent: everything written is in the last point.

    Asking again gives the same answer, and proves that it is still stopped.
    """

    name = "quiesce-source"
    timeout_seconds = 3600.0
    estimate_seconds = 5.0
    begins_outage = True

    def title(self, source: str, settings: QuiesceSourceSettings) -> str:
        return f"stop {source} and take its last point"

    async def act(self, step: PlannedStep[QuiesceSourceSettings], context: StepContext) -> StepResult[SourceStopped]:
        argv, services = step.settings.stop, step.settings.services
        generation = declared(step, context).generation
        if services:
            ended = await run_at_source(services, step, context, generation=generation)
            if not ended.ok:
                return ended
        if argv:
            ended = await run_program(argv, step, context)
            if not ended.ok:
                return StepResult(False, ended.message, ended.code, output=ended.output)
        answer = await order_agent(
            step,
            context,
            Verb.QUIESCE,
            {"label": str(RunLabel(context.run)), "by": context.started_by},
            generation=generation,
        )
        if not answer.ok:
            return refused(answer)
        # The agent may not know its branch: its state was lost, or it has had no session under this generation yet.
        id = f"{declared(step, context).branch}-{answer.result.get('sequence', 0)}"
        point = await in_thread(lambda: point_with_id(context.site.store, step.source, id))
        if point is None:
            return StepResult(False, f"the agent's last point {id!r} is not in the store", RUN_STATE.id)
        by = argv[0] if argv else ", ".join(each.name for each in services)
        stopped = SourceStopped(**msgspec.structs.asdict(point_facts(point)), stopped_by=by)
        return StepResult(True, f"{step.source} is stopped; last point {id}", data=stopped)


QUIESCE_SOURCE = QuiesceSourceStep()
