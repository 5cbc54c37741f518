"""Making a drill's branch."""

from __future__ import annotations

from drengine.failover.labels import RunLabel
from drengine.failover.steps.branches import STORE_TRIES, Branched, found, made
from drengine.failover.steps.choose_point import chosen
from drengine.failover.steps.step import NoSettings, PlannedStep, StepContext, StepKind, StepResult
from drengine.process.threads import in_thread
from drengine.store.log.branches import BranchInfo


class BranchStep(StepKind[NoSettings, Branched]):
    """Makes a drill's branch: replication goes on beside it."""

    name = "branch"
    retries = STORE_TRIES
    estimate_seconds = 0.1

    def title(self, source: str, settings: NoSettings) -> str:
        return f"make a branch of {source} for the drill"

    async def check(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched] | None:
        return await in_thread(lambda: found(context, step.source, RunLabel(context.run), "drill"))

    async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched]:
        def make() -> BranchInfo:
            point = chosen(step, context)
            context.permit()
            return context.site.store.create_branch(point, role="drill", label=str(RunLabel(context.run)))

        return made(await in_thread(make))


BRANCH = BranchStep()
