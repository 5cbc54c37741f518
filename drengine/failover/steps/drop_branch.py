"""Closing a drill's branches."""

from __future__ import annotations

import msgspec

from drengine.failover.labels import RunLabel
from drengine.failover.steps.branches import STORE_TRIES
from drengine.failover.steps.step import NoSettings, PlannedStep, StepContext, StepKind, StepResult
from drengine.process.threads import in_thread


class Dropped(msgspec.Struct, frozen=True):
    """The branches that were closed."""

    branches: list[int] = []


class DropBranchStep(StepKind[NoSettings, Dropped]):
    """Closes a drill's branches; the store takes their space back with the next retention.

    Closing what is closed does nothing.
    """

    name = "drop-branch"
    retries = STORE_TRIES

    def title(self, source: str, settings: NoSettings) -> str:
        return f"drop the drill's branch of {source}"

    async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Dropped]:
        def drop() -> list[int]:
            store, label = context.site.store, str(RunLabel(context.run))
            ours = [each for each in store.branches(step.source) if each.label == label and each.role == "drill"]
            for branch in ours:
                if not branch.closed:
                    store.close_branch(step.source, branch.number)
            return [branch.number for branch in ours]

        numbers = await in_thread(drop)
        return StepResult(True, f"closed branch {', '.join(map(str, numbers)) or 'none'}", data=Dropped(numbers))


DROP_BRANCH = DropBranchStep()
