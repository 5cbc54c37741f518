"""What a run should do next, purely: a snapshot in, a decision with a reason code out. Prose is made elsewhere."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from drengine.failover.errors import UNFENCED
from drengine.failover.run import Outcome, Status
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.standing import not_started


class Action(enum.StrEnum):
    """What the executor is to do."""

    START = "start"
    WAIT = "wait"
    ABORT = "abort"
    """Note that the run is ending, end what is running, and ask again."""
    ROLL_BACK = "roll-back"
    """Plan the rollback, note it, and ask again."""
    STOP = "stop"
    """Leave everything as it is, for a person to decide; the run stays unfinished."""
    FINISH = "finish"


class Reason(enum.StrEnum):
    """Why. Every code is explained in docs/failover.md."""

    READY = "ready"
    STEPS_RUNNING = "steps-running"
    RETRY_DUE = "retry-due"
    APPROVAL_NEEDED = "approval-needed"
    ABORT_ASKED = "abort-asked"
    ROLLBACK_ASKED = "rollback-asked"
    STEP_FAILED = "step-failed"
    SOURCE_UNFENCED = "source-unfenced"
    UNDO_FAILED = "undo-failed"
    CLEANUP = "cleanup"
    ALL_DONE = "all-done"
    CRITICAL_FAILED = "critical-failed"
    """Everything was gone through, but something critical had failed on the way."""
    NOT_STARTED = "not-started"
    """The sources are in charge again, and nothing was started there, nor checked."""
    ROLLED_BACK = "rolled-back"
    PAST_RETURN = "past-return"
    """A rollback is wanted, but a source was handed back already: only another failover leads back."""
    NOTHING_POSSIBLE = "nothing-possible"
    """No step can begin and none is running: a defect of the plan, never silence."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why.

    Attributes:
        steps: ids of the steps to start.
        outcome: of STOP and FINISH.
        cause: id of the step because of which it is so, if one is.
        wake_ns: for WAIT: when to ask again at the latest, 0 for no such moment.
    """

    action: Action
    reason: Reason
    steps: tuple[str, ...] = ()
    outcome: Outcome = Outcome.NONE
    cause: str = ""
    wake_ns: int = 0


def decide(mode: Mode, snapshot: Snapshot) -> Decision:
    """The next decision."""
    steps = snapshot.steps
    running = [each for each in steps if each.status is Status.RUNNING]
    if snapshot.aborted_by and snapshot.ending is Outcome.NONE and not snapshot.rolling_back:
        return Decision(Action.ABORT, Reason.ABORT_ASKED)
    if snapshot.rolling_back:
        return _roll_back(snapshot, running)
    if snapshot.rollback_by and mode is not Mode.DRILL:
        if running:
            return Decision(Action.WAIT, Reason.STEPS_RUNNING)
        return _turn(snapshot, Reason.ROLLBACK_ASKED, "")
    if snapshot.ending is not Outcome.NONE:
        return _wind_up(snapshot, running, snapshot.ending, Reason.ABORT_ASKED, "")
    main = [each for each in steps if not each.step.cleanup]
    broken = next((each for each in main if each.status is Status.FAILED and not each.through), None)
    if broken is not None:
        return _broken(mode, snapshot, running, broken)
    return _advance(mode, snapshot, main, running)


def _broken(mode: Mode, snapshot: Snapshot, running: list[StepState], broken: StepState) -> Decision:
    """Something failed that the runbook does not tolerate: nothing new begins."""
    cause = broken.step.id
    if running:
        return Decision(Action.WAIT, Reason.STEPS_RUNNING, cause=cause)
    unfenced = broken.step.kind.is_fence or broken.code == UNFENCED.id
    outcome = Outcome.BLOCKED if unfenced else Outcome.FAILED
    reason = Reason.SOURCE_UNFENCED if unfenced else Reason.STEP_FAILED
    if mode is Mode.DRILL:
        return _wind_up(snapshot, running, outcome, reason, cause)
    if broken.step.on_failure is OnFailure.ROLLBACK:
        return _turn(snapshot, reason, cause)
    return Decision(Action.STOP, reason, outcome=outcome, cause=cause)


def _turn(snapshot: Snapshot, reason: Reason, cause: str) -> Decision:
    """Roll back, where that is still possible."""
    if any(each.step.kind.hands_back and each.begun for each in snapshot.steps):
        return Decision(Action.STOP, Reason.PAST_RETURN, outcome=Outcome.FAILED, cause=cause)
    return Decision(Action.ROLL_BACK, reason, cause=cause)


def _advance(mode: Mode, snapshot: Snapshot, main: list[StepState], running: list[StepState]) -> Decision:
    """Nothing stands in the way: begin what can begin."""
    ready = _ready(snapshot, main)
    if ready:
        return Decision(Action.START, Reason.READY, steps=ready)
    waiting = _waiting(snapshot, main, running)
    if waiting is not None:
        return waiting
    if not all(each.through for each in main):
        return Decision(Action.STOP, Reason.NOTHING_POSSIBLE, outcome=Outcome.FAILED)
    failed = next((each for each in main if each.status is Status.FAILED and each.step.critical), None)
    if failed is not None:
        return _wind_up(snapshot, running, Outcome.FAILED, Reason.CRITICAL_FAILED, failed.step.id)
    if mode is Mode.FAILBACK and not_started(snapshot):
        return _wind_up(snapshot, running, Outcome.HANDED_BACK, Reason.NOT_STARTED, "")
    return _wind_up(snapshot, running, Outcome.COMPLETED, Reason.ALL_DONE, "")


def _wind_up(snapshot: Snapshot, running: list[StepState], outcome: Outcome, reason: Reason, cause: str) -> Decision:
    """Clean up whatever was begun, then finish; a cleanup that fails is tried, told, and does not change the outcome
    of a run that failed, but a run is not completed while something of it is left behind."""
    if [each for each in running if not each.step.cleanup]:
        return Decision(Action.WAIT, Reason.STEPS_RUNNING, cause=cause)
    begun = {each.step.id for each in snapshot.steps if each.begun}
    cleanups = [each for each in snapshot.steps if each.step.cleanup and each.step.cleans in begun]
    wanted = {each.step.id for each in cleanups}
    through = {each.step.id for each in cleanups if each.status in (Status.DONE, Status.FAILED)}
    ready = tuple(
        each.step.id
        for each in cleanups
        if _may_start(each, snapshot.now_ns) and through.issuperset(wanted.intersection(each.step.needs))
    )
    if ready:
        return Decision(Action.START, Reason.CLEANUP, steps=ready, cause=cause)
    waiting = _waiting(snapshot, cleanups, running)
    if waiting is not None:
        return waiting
    left = next((each for each in cleanups if each.status is Status.FAILED), None)
    if left is not None and outcome is Outcome.COMPLETED:
        return Decision(Action.FINISH, Reason.CRITICAL_FAILED, outcome=Outcome.FAILED, cause=left.step.id)
    return Decision(Action.FINISH, reason, outcome=outcome, cause=cause)


def _roll_back(snapshot: Snapshot, running: list[StepState]) -> Decision:
    undo = [each for each in snapshot.steps if each.step.id.startswith("undo.")]
    broken = next((each for each in undo if each.status is Status.FAILED and not each.through), None)
    if broken is not None:
        if running:
            return Decision(Action.WAIT, Reason.STEPS_RUNNING, cause=broken.step.id)
        return Decision(Action.STOP, Reason.UNDO_FAILED, outcome=Outcome.FAILED, cause=broken.step.id)
    ready = _ready(snapshot, undo)
    if ready:
        return Decision(Action.START, Reason.READY, steps=ready)
    waiting = _waiting(snapshot, undo, running)
    if waiting is not None:
        return waiting
    if not all(each.through for each in undo):
        return Decision(Action.STOP, Reason.NOTHING_POSSIBLE, outcome=Outcome.FAILED)
    return Decision(Action.FINISH, Reason.ROLLED_BACK, outcome=Outcome.ROLLED_BACK)


def _ready(snapshot: Snapshot, steps: list[StepState]) -> tuple[str, ...]:
    through = {each.step.id for each in snapshot.steps if each.through}
    return tuple(
        each.step.id
        for each in steps
        if through.issuperset(each.step.needs)
        and (
            _may_start(each, snapshot.now_ns) or (each.status is Status.WAITING and each.step.id in snapshot.approvals)
        )
    )


def _may_start(each: StepState, now_ns: int) -> bool:
    due = each.status is Status.RETRY and each.retry_ns <= now_ns
    return due or each.status in (Status.PENDING, Status.INTERRUPTED)


def _waiting(snapshot: Snapshot, steps: list[StepState], running: list[StepState]) -> Decision | None:
    """Why nothing begins now although something is left to do, or None when nothing is."""
    retries = [each.retry_ns for each in steps if each.status is Status.RETRY]
    wake_ns = min(retries, default=0)
    if running:
        return Decision(Action.WAIT, Reason.STEPS_RUNNING, wake_ns=wake_ns)
    if retries:
        return Decision(Action.WAIT, Reason.RETRY_DUE, wake_ns=wake_ns)
    asked = next((each for each in steps if each.status is Status.WAITING), None)
    if asked is not None:
        return Decision(Action.WAIT, Reason.APPROVAL_NEEDED, cause=asked.step.id)
    return None
