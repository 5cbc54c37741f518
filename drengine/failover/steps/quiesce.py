"""The planned switches: stopping the side in charge, and a last point that has everything it wrote."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from drengine.control.messages import Verb
from drengine.failover.errors import RUN_STATE
from drengine.failover.steps.branches import run_label
from drengine.failover.steps.command import run_cancellable
from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.points import describe_point
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult, point_named
from drengine.failover.steps.telling import refused, tell
from drengine.failover.steps.texts import environment_of, without_secrets
from drengine.failover.steps.threads import in_thread
from drengine.failover.steps.workloads import driver_of, launch_request
from drengine.model.errors import DrengineError
from drengine.model.points import PointKind, RecoveryPoint
from drengine.store.errors import BRANCH_BUSY

LOOK_SECONDS = 0.1
LET_GO_SECONDS = 30.0
"""How long the export may take to let go of a branch after its last connection."""


class QuiesceSourceStep:
    """Stops the source's workload by the runbook's command, then its agent: everything written is in the last point."""

    kind: ClassVar[StepKind] = StepKind.QUIESCE_SOURCE

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Asking again gives the same answer, and proves that it is still stopped."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        argv = step.settings["stop"]
        if argv:
            finished = await run_cancellable(argv, step.timeout_seconds, environment_of(step, context))
            if not finished.ok:
                output = without_secrets(finished.output)
                return StepResult(False, f"{argv[0]} ended with {finished.code}", COMMAND_FAILED.id, output=output)
        answer = await tell(
            step,
            context,
            Verb.QUIESCE,
            {"label": run_label(context.run)},
            generation=context.results["declare"]["sources"][step.source]["generation"],
            timeout_seconds=step.timeout_seconds,
        )
        if not answer.ok:
            return refused(answer)
        id = str(answer.result.get("point", ""))
        point = await in_thread(lambda: point_named(context.site.store, step.source, id))
        if point is None:
            return StepResult(False, f"the agent's last point {id!r} is not in the store", RUN_STATE.id)
        data = describe_point(point) | {"stopped_by": argv[0] if argv else ""}
        return StepResult(True, f"{step.source} is stopped; last point {id}", data=data)


class QuiesceRecoveredStep:
    """Stops the recovered workload and cuts a point behind its last write.

    Whoever cuts is the branch's only writer: while anything else still has it open there is no cut.
    """

    kind: ClassVar[StepKind] = StepKind.QUIESCE_RECOVERED

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Done when a point of this run has everything that the branch holds."""
        found = await in_thread(lambda: _last_cut(step, context))
        return _stopped(step, found) if found is not None else None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
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


def _cut(step: PlannedStep, context: StepContext) -> RecoveryPoint:
    declared = context.results["declare"]["sources"][step.source]
    context.permit()
    view = context.site.store.writable(step.source, declared["branch"], generation=declared["generation"])
    try:
        return view.cut(PointKind.WRITE_ORDER, run_label(context.run))
    finally:
        view.close()


def _last_cut(step: PlannedStep, context: StepContext) -> RecoveryPoint | None:
    store, number = context.site.store, context.results["declare"]["sources"][step.source]["branch"]
    points = store.points(step.source, branch=number)
    durable = next(each.durable_sequence for each in store.branches(step.source) if each.number == number)
    if points and points[-1].label == run_label(context.run) and points[-1].sequence == durable:
        return points[-1]
    return None


def _stopped(step: PlannedStep, point: RecoveryPoint) -> StepResult:
    return StepResult(
        True, f"the recovered {step.source} is stopped; last point {point.id}", data=describe_point(point)
    )
