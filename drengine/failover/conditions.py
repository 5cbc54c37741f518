"""In which states runs and sources have to be for an order; each order asks this before it notes anything."""

from __future__ import annotations

from drengine.failover.advice import FORWARD
from drengine.failover.engine import Engine
from drengine.failover.errors import FAILED_OVER_ALREADY, RUN_STATE
from drengine.failover.options import RunOptions, read_options
from drengine.failover.plan import can_roll_back
from drengine.failover.run import COMMITTED, Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import Snapshot
from drengine.model.errors import DrengineError


def require_first(engine: Engine, book: Runbook) -> None:
    """For a failover: none of the runbook's sources runs here already.

    Raises:
        DrengineError: FAILED_OVER_ALREADY.
    """
    here = engine.with_standing(RunOptions(), Mode.FAILOVER, book).launches
    if here:
        listed = ", ".join(f"{source} since run {launch.run}" for source, launch in here.items())
        hint = FAILED_OVER_ALREADY.hint.replace("RUNBOOK", book.name)
        raise DrengineError(FAILED_OVER_ALREADY, f"these sources run here already: {listed}", hint=hint)


def check_commit(engine: Engine, id: str) -> None:
    """For a commit: the run is a failover that was completed, and nobody wants it undone.

    Raises:
        DrengineError: UNKNOWN_RUN, RUN_STATE.
    """
    run, snapshot, _ = engine.look(id)
    if run.mode not in FORWARD or run.outcome is not Outcome.COMPLETED or run.state is not RunState.FINISHED:
        what = f"{run.mode.value}, {run.state.value} {run.outcome.value}".strip()
        raise DrengineError(RUN_STATE, f"only a completed failover or migration can be committed; {id} is: {what}")
    if snapshot.reopened:
        raise DrengineError(RUN_STATE, f"{snapshot.rollback_by} has asked for the rollback of run {id}")


def check_rollback(engine: Engine, run: RunRecord, snapshot: Snapshot) -> None:
    """For a rollback: the run has done nothing that can't be undone, and nobody has built upon it.

    Raises:
        DrengineError: RUN_STATE.
    """
    if run.mode is Mode.DRILL:
        raise DrengineError(RUN_STATE, f"run {run.id} is a drill: it cleans up after itself; abort it instead")
    if run.outcome is Outcome.ROLLED_BACK or snapshot.rolling_back:
        raise DrengineError(RUN_STATE, f"run {run.id} was rolled back already, or is being; resume it if it stopped")
    if run.reason == COMMITTED:
        raise DrengineError(RUN_STATE, f"run {run.id} was committed: the way home is a failback")
    if run.state is RunState.FINISHED and run.mode not in FORWARD:
        raise DrengineError(RUN_STATE, f"run {run.id} is finished: fail over again instead")
    if not can_roll_back(run.mode, read_options(run.options)):
        raise DrengineError(
            RUN_STATE, f"run {run.id} failed over what was failed over already: the way home is a failback"
        )
    later = [
        other.id
        for other in engine.registry.runs()
        if other.created_ns > run.created_ns
        and set(other.sources) & set(run.sources)
        and any(each.step.kind.overwrites_source and each.begun for each in engine.snapshot(other.id).steps)
    ]
    if later:
        raise DrengineError(
            RUN_STATE, f"run {later[-1]} has begun to overwrite the sources' disks: go on to a failback"
        )
    if any(each.step.kind.hands_back and each.begun for each in snapshot.steps):
        raise DrengineError(
            RUN_STATE, f"run {run.id} has handed a source back already: resume it, then fail over again"
        )
