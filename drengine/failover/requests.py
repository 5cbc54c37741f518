"""What people ask of runs: checked before it is noted, so that nobody waits for something that can't happen."""

from __future__ import annotations

from drengine.failover.errors import BAD_APPROVAL, RUN_ABORTED, RUN_FAILED, RUN_STATE, RUN_WAITING, UNFENCED
from drengine.failover.executor import FORCE
from drengine.failover.plan import can_roll_back
from drengine.failover.run import Outcome, Request, RequestKind, RunRecord, RunState
from drengine.failover.runbook.values import Mode
from drengine.failover.session import Session
from drengine.failover.snapshot import Snapshot, Status, StepState, may_approve
from drengine.failover.steps.step import StepKind
from drengine.model.errors import DrengineError

FORWARD = (Mode.FAILOVER, Mode.MIGRATION)
COMMITTED_REASON = "committed"
BY_HAND = (StepKind.RELEASE, StepKind.STOP_WORKLOAD, StepKind.COMMAND, StepKind.DNS, StepKind.NOTIFY)
"""What a person may have done instead. Nobody's word fences a source, promotes, or makes a workload healthy."""


def approve(session: Session, id: str, by: str, *, step: str = "", note: str = "") -> tuple[Request, StepState]:
    """Approve a step, by default the one that is waiting.

    Raises:
        DrengineError: UNKNOWN_RUN; BAD_APPROVAL when nobody approves, he may not, or nothing such is waiting.
    """
    session.registry.run(id)
    snapshot = session.snapshot(id)
    asked = [each for each in snapshot.steps if each.step.kind is StepKind.APPROVAL]
    waiting = [each for each in asked if each.status is Status.WAITING and each.step.id not in snapshot.approvals]
    wanted = [each for each in asked if each.step.id == step] if step else waiting
    if len(wanted) != 1:
        known = ", ".join(each.step.id for each in waiting) or "none"
        raise DrengineError(BAD_APPROVAL, f"{step or 'exactly one step'} does not wait for approval; waiting: {known}")
    if not may_approve(wanted[0].step, by):
        allowed = ", ".join(wanted[0].step.settings["approval"].get("by") or []) or "anybody who gives a name"
        raise DrengineError(
            BAD_APPROVAL, f"{by.strip() or 'nobody'} may not approve {wanted[0].step.id}; {allowed} may"
        )
    return session.registry.request(id, RequestKind.APPROVE, wanted[0].step.id, by, note), wanted[0]


def ask_abort(session: Session, id: str, by: str, note: str = "") -> RunRecord:
    """Ask that a run be ended where it is.

    Raises:
        DrengineError: UNKNOWN_RUN; RUN_STATE when it is finished or is being rolled back.
    """
    run, snapshot = session.registry.run(id), session.snapshot(id)
    if run.state is RunState.FINISHED:
        raise DrengineError(RUN_STATE, f"run {id} is {run.state.value} ({run.outcome.value}): nothing to abort")
    if snapshot.rolling_back:
        raise DrengineError(RUN_STATE, f"run {id} is being rolled back; a rollback is not left half done")
    session.registry.request(id, RequestKind.ABORT, "", by, note)
    return run


def ask_resume(session: Session, id: str, by: str, *, force: bool = False, done: str = "") -> RunRecord:
    """Ask that a run go on: one that stopped tries again what failed.

    Args:
        session, id, by: who asks it of which run.
        force: go on without fencing.
        done: id of a failed step that was done by hand.

    Raises:
        DrengineError: UNKNOWN_RUN; RUN_STATE when it is finished, or the step is none that could be done by hand.
    """
    run = session.registry.run(id)
    if run.state is RunState.FINISHED:
        raise DrengineError(RUN_STATE, f"run {id} is finished ({run.outcome.value}): there is nothing to resume")
    if done:
        failed = [each.step for each in session.snapshot(id).steps if each.status is Status.FAILED]
        if not [step for step in failed if step.id == done and step.kind in BY_HAND]:
            known = ", ".join(step.id for step in failed if step.kind in BY_HAND) or "none"
            raise DrengineError(RUN_STATE, f"{done!r} can't be called done; failed steps that can: {known}")
    if run.state is RunState.STOPPED:
        session.registry.request(id, RequestKind.RESUME, done, by, FORCE if force else "")
    return run


def check_rollback(session: Session, run: RunRecord, snapshot: Snapshot) -> None:
    """Whether a run can be rolled back.

    Raises:
        DrengineError: RUN_STATE.
    """
    if run.mode is Mode.DRILL:
        raise DrengineError(RUN_STATE, f"run {run.id} is a drill: it cleans up after itself; abort it instead")
    if run.outcome is Outcome.ROLLED_BACK or snapshot.rolling_back:
        raise DrengineError(RUN_STATE, f"run {run.id} was rolled back already, or is being; resume it if it stopped")
    if run.reason == COMMITTED_REASON:
        raise DrengineError(RUN_STATE, f"run {run.id} was committed: the way home is a failback")
    if run.state is RunState.FINISHED and run.mode not in FORWARD:
        raise DrengineError(RUN_STATE, f"run {run.id} is finished: fail over again instead")
    if not can_roll_back(run.mode, run.options):
        raise DrengineError(
            RUN_STATE, f"run {run.id} failed over what was failed over already: the way home is a failback"
        )
    later = [
        other.id
        for other in session.registry.runs()
        if other.created_ns > run.created_ns
        and set(other.sources) & set(run.sources)
        and any(each.step.kind is StepKind.REVERSE and each.begun for each in session.snapshot(other.id).steps)
    ]
    if later:
        raise DrengineError(
            RUN_STATE, f"run {later[-1]} has begun to overwrite the sources' disks: go on to a failback"
        )
    if any(each.step.kind is StepKind.HAND_BACK and each.begun for each in snapshot.steps):
        raise DrengineError(
            RUN_STATE, f"run {run.id} has handed a source back already: resume it, then fail over again"
        )


def ask_rollback(session: Session, id: str, by: str, note: str = "") -> RunRecord:
    """Ask that everything a run did be undone.

    Raises:
        DrengineError: UNKNOWN_RUN; RUN_STATE, see `check_rollback`.
    """
    run = session.registry.run(id)
    check_rollback(session, run, session.snapshot(id))
    session.registry.request(id, RequestKind.ROLLBACK, "", by, note)
    return run


def commit(session: Session, id: str, by: str, note: str = "") -> RunRecord:
    """Accept a failover: it can't be rolled back any more, only failed back.

    Raises:
        DrengineError: UNKNOWN_RUN, LEASE_HELD; RUN_STATE unless it is a failover that was completed.
    """
    registry = session.registry
    run = registry.run(id)
    if run.mode not in FORWARD or run.outcome is not Outcome.COMPLETED or run.state is not RunState.FINISHED:
        what = f"{run.mode.value}, {run.state.value} {run.outcome.value}".strip()
        raise DrengineError(RUN_STATE, f"only a completed failover or migration can be committed; {id} is: {what}")
    registry.request(id, RequestKind.COMMIT, "", by, note)
    lease = registry.acquire_lease(f"run:{id}", session.owner, session.config.lease)
    try:
        registry.update_run(id, token=lease.token, reason=COMMITTED_REASON)
    finally:
        registry.release_lease(lease)
    return registry.run(id)


def must_have_worked(run: RunRecord) -> None:
    """Turn how a run ended, or why it stopped, into an error for scripts; nothing if it is completed.

    Raises:
        DrengineError: RUN_FAILED, UNFENCED, RUN_WAITING, RUN_ABORTED.
    """
    if run.outcome is Outcome.COMPLETED:
        return
    kind = {
        Outcome.BLOCKED: UNFENCED,
        Outcome.ABORTED: RUN_ABORTED,
        Outcome.NONE: RUN_WAITING,
    }.get(run.outcome, RUN_FAILED)
    raise DrengineError(kind, f"run {run.id} is {run.state.value}: {run.outcome.value or run.reason}".rstrip(": "))
