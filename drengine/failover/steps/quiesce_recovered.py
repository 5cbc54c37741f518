"""The switch on the way home: stopping the recovered side, and a last point that has everything it wrote."""

from __future__ import annotations

import asyncio

from drengine.failover.labels import RunLabel
from drengine.failover.steps.declare import declared
from drengine.failover.steps.points import PointFacts, point_facts
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.workloads import WorkloadSettings, driver_of, launch_request
from drengine.model.errors import DrengineError
from drengine.model.points import PointKind, RecoveryPoint
from drengine.process.threads import in_thread
from drengine.store.errors import BRANCH_BUSY

LOOK_SECONDS = 0.1
LET_GO_SECONDS = 30.0
"""How long the export may take to let go of a branch after its last connection."""


class QuiesceRecoveredStep(StepKind[WorkloadSettings, PointFacts]):
    """Stops the recovered workload and cuts a point behind its last write.

    Whoever cuts is the branch's only writer: while anything else still has it open there is no cut.
    """

    name = "quiesce-recovered"
    timeout_seconds = 3600.0
    estimate_seconds = 5.0
    begins_outage = True

    def title(self, source: str, settings: WorkloadSettings) -> str:
        return f"stop the recovered {source} and take its last point"

    async def check(self, step: PlannedStep[WorkloadSettings], context: StepContext) -> StepResult[PointFacts] | None:
        """Done when a point of this run has everything that the branch holds."""
        found = await in_thread(lambda: _last_cut(step, context))
        return _stopped(step, found) if found is not None else None

    async def act(self, step: PlannedStep[WorkloadSettings], context: StepContext) -> StepResult[PointFacts]:
        loop = asyncio.get_running_loop()
        await in_thread(lambda: driver_of(step, context).quiesce(launch_request(step, context, loop)))
        clock = context.site.clock
        until = clock.monotonic() + LET_GO_SECONDS
        while True:
            try:
                return _stopped(step, await in_thread(lambda: _cut(step, context)))
            except DrengineError as error:
                if error.kind is not BRANCH_BUSY or clock.monotonic() > until:
                    raise
            context.say("waiting until nobody writes any more")
            await clock.sleep(LOOK_SECONDS)


QUIESCE_RECOVERED = QuiesceRecoveredStep()


def _cut(step: PlannedStep[WorkloadSettings], context: StepContext) -> RecoveryPoint:
    source = declared(step, context)
    context.permit()
    view = context.site.store.writable(step.source, source.branch, generation=source.generation)
    try:
        return view.cut(PointKind.WRITE_ORDER, str(RunLabel(context.run)))
    finally:
        view.close()


def _last_cut(step: PlannedStep[WorkloadSettings], context: StepContext) -> RecoveryPoint | None:
    store, number = context.site.store, declared(step, context).branch
    points = store.points(step.source, branch=number)
    durable = next(each.durable_sequence for each in store.branches(step.source) if each.number == number)
    if points and points[-1].label == str(RunLabel(context.run)) and points[-1].sequence == durable:
        return points[-1]
    return None


def _stopped(step: PlannedStep[WorkloadSettings], point: RecoveryPoint) -> StepResult[PointFacts]:
    message = f"the recovered {step.source} is stopped; last point {point.id}"
    return StepResult(True, message, data=point_facts(point))
