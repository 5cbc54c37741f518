"""Steps at the replica store: branches for drills, promotion, and giving a source back to itself.

Branches carry the run's id in their label: an interrupted step finds what it made (rule 9).
"""

from __future__ import annotations

from typing import Any, ClassVar

from drengine.failover.errors import RUN_STATE
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult, branch_named, point_named
from drengine.failover.steps.threads import in_thread
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.store.errors import FENCED, UNKNOWN_POINT
from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store


def run_label(run: str) -> str:
    """What a run's own branches and points are called."""
    return f"run:{run}"


def back_label(run: str) -> str:
    """What the branch is called on which a run put the source in charge again."""
    return f"run:{run}:back"


class BranchStep:
    """Makes a drill's branch."""

    kind: ClassVar[StepKind] = StepKind.BRANCH

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        return await in_thread(lambda: _found(step, context, run_label(context.run), "drill"))

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""

        def make() -> BranchInfo:
            point = _chosen(step, context)
            context.permit()
            return context.site.store.create_branch(point, role="drill", label=run_label(context.run))

        return _made(await in_thread(make))


class PromoteStep:
    """Raises the source's generation: from the transaction on, the old one can write nothing more."""

    kind: ClassVar[StepKind] = StepKind.PROMOTE

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        return await in_thread(lambda: _found(step, context, run_label(context.run), "promoted"))

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""

        def promote() -> BranchInfo:
            return context.site.store.promote(
                _chosen(step, context),
                expected_generation=context.results["declare"]["sources"][step.source]["generation"],
                label=run_label(context.run),
                permit=context.permit,
            )

        return _made(await in_thread(promote))


class HandBackStep:
    """Puts the source in charge at the store: on what the recovered side wrote last (`recovered`), or, when a run is
    rolled back, on what the source itself had shipped (`source`).
    """

    kind: ClassVar[StepKind] = StepKind.HAND_BACK

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        return await in_thread(lambda: _found(step, context, back_label(context.run), "promoted"))

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        return await in_thread(lambda: self._hand_back(step, context))

    def _hand_back(self, step: PlannedStep, context: StepContext) -> StepResult:
        store, source = context.site.store, step.source
        declared = context.results["declare"]["sources"][source]
        if step.settings["to"] == "recovered":
            id = context.results[f"reverse-last:{source}"]["point"]
            point, expected = point_named(store, source, id), declared["generation"]
            if point is None:
                raise DrengineError(UNKNOWN_POINT, f"the last point {id} of {source!r} is gone")
        else:
            promoted = branch_named(store, source, run_label(context.run))
            if promoted is None:
                data = {"branch": declared["branch"], "generation": declared["generation"], "changed": False}
                return StepResult(True, f"{source} was not promoted: nothing to give back", data=data)
            if not promoted.active:
                raise DrengineError(FENCED, f"somebody else promoted {source!r} after this run did")
            point, expected = newest_point(store, source, declared["origin"]), promoted.generation
        made = store.promote(point, expected_generation=expected, label=back_label(context.run), permit=context.permit)
        return _made(made)


class DropBranchStep:
    """Closes a drill's branches; the store takes their space back with the next retention."""

    kind: ClassVar[StepKind] = StepKind.DROP_BRANCH

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Closing what is closed does nothing."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""

        def drop() -> list[int]:
            store, label = context.site.store, run_label(context.run)
            ours = [each for each in store.branches(step.source) if each.label == label and each.role == "drill"]
            for branch in ours:
                if not branch.closed:
                    store.close_branch(step.source, branch.number)
            return [branch.number for branch in ours]

        numbers = await in_thread(drop)
        return StepResult(True, f"closed branch {', '.join(map(str, numbers)) or 'none'}", data={"branches": numbers})


def newest_point(store: Store, source: str, branch: int) -> RecoveryPoint:
    """The newest undamaged point on a branch, or, if it has none, the one that the branch grew from.

    Raises:
        DrengineError: RUN_STATE.
    """
    branches = {each.number: each for each in store.branches(source)}
    while branch:
        for point in reversed(store.points(source, branch=branch)):
            if not point.damaged:
                return point
        branch = branches[branch].parent
    raise DrengineError(RUN_STATE, f"{source!r} has no undamaged point that could be handed back")


def _chosen(step: PlannedStep, context: StepContext) -> RecoveryPoint:
    id = context.results[f"choose-point:{step.source}"]["point"]
    point = point_named(context.site.store, step.source, id)
    if point is None:
        raise DrengineError(UNKNOWN_POINT, f"the chosen point {id} of {step.source!r} is gone")
    return point


def _found(step: PlannedStep, context: StepContext, label: str, role: str) -> StepResult | None:
    branch = branch_named(context.site.store, step.source, label)
    return _made(branch) if branch is not None and branch.role == role else None


def _made(branch: BranchInfo) -> StepResult:
    data: dict[str, Any] = {"branch": branch.number, "generation": branch.generation, "changed": True}
    told = f"branch {branch.number}" + (f", generation {branch.generation}" if branch.role != "drill" else "")
    return StepResult(True, told, data=data)
