"""Promoting: the recovery side becomes the only one that may write."""

from __future__ import annotations

from drengine.failover.labels import RunLabel
from drengine.failover.steps.branches import STORE_TRIES, Branched, found, made
from drengine.failover.steps.choose_point import chosen
from drengine.failover.steps.declare import declared
from drengine.failover.steps.step import NoSettings, PlannedStep, StepContext, StepKind, StepResult
from drengine.process.threads import in_thread
from drengine.store.log.branches import BranchInfo


class PromoteStep(StepKind[NoSettings, Branched]):
    """Raises the source's generation: from the transaction on, the old one can write nothing more."""

    name = "promote"
    retries = STORE_TRIES
    estimate_seconds = 0.1

    def title(self, source: str, settings: NoSettings) -> str:
        return f"promote {source} under the next generation"

    async def check(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched] | None:
        return await in_thread(lambda: found(context, step.source, RunLabel(context.run), "promoted"))

    async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched]:
        def promote() -> BranchInfo:
            return context.site.store.promote(
                chosen(step, context),
                expected_generation=declared(step, context).generation,
                label=str(RunLabel(context.run)),
                permit=context.permit,
            )

        return made(await in_thread(promote))


PROMOTE = PromoteStep()
