"""What the steps at the replica store share. Branches carry the run in their label, and so are found again (rule 9)."""

from __future__ import annotations

import msgspec

from drengine.failover.errors import RUN_STATE
from drengine.failover.labels import RunLabel
from drengine.failover.steps.step import StepContext, StepResult
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store

STORE_TRIES = 20
"""Steps at the store are tried again while another process is busy there."""


class Branched(msgspec.Struct, frozen=True, kw_only=True):
    """A branch, and under which generation it is written.

    Attributes:
        changed: this run made it; otherwise who writes the source is as it was.
    """

    branch: int = 0
    generation: int = 0
    changed: bool = True


def made(branch: BranchInfo) -> StepResult[Branched]:
    """What it means for a step that its branch is there."""
    message = f"branch {branch.number}" + (f", generation {branch.generation}" if branch.role != "drill" else "")
    return StepResult(True, message, data=Branched(branch=branch.number, generation=branch.generation))


def found(context: StepContext, source: str, label: RunLabel, role: str) -> StepResult[Branched] | None:
    """The same if an earlier try made the branch, else None."""
    branch = label.branch(context.site.store, source)
    return made(branch) if branch is not None and branch.role == role else None


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
