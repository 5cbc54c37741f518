"""Decisions as tables: a snapshot in, a decision with its reason code out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.failover.decide import Action, Decision, Reason, decide
from drengine.failover.plan import plan, plan_rollback
from drengine.failover.run import Outcome, Status
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.step import PlannedStep, StepKind
from tests.failover.engine.world import runbook

KINDS = step_kinds()

NOW = 1_000_000_000


def step(id: str, kind: StepKind[Any, Any] = KINDS["command"], *needs: str, **more: Any) -> PlannedStep[Any]:
    return PlannedStep(id=id, kind=kind, title=id, settings=None, needs=needs, **more)


def state(planned: PlannedStep, status: Status, **more: Any) -> StepState:
    begun = 0 if status in (Status.PENDING, Status.SKIPPED) else 1
    return StepState(planned, status, **{"attempt": begun, **more})


A, B, C = step("a"), step("b", KINDS["command"], "a"), step("c", KINDS["command"], "a")
OPTIONAL = step("a", critical=False)
GOING_ON = step("a", on_failure=OnFailure.CONTINUE)
UNDOING = step("a", on_failure=OnFailure.ROLLBACK)
FENCE = step("a", KINDS["fence"])
HAND_BACK = step("h", KINDS["hand-back"])
RELEASE = step("r", KINDS["release"])
STOP = step("stop", cleanup=True, cleans="a")
DROP = step("drop", KINDS["command"], "stop", cleanup=True, cleans="a")
UNDO = step("undo.a")
P, R, D, F = Status.PENDING, Status.RUNNING, Status.DONE, Status.FAILED

TABLE: dict[str, tuple[Mode, Snapshot, Decision]] = {
    "the first step begins": (
        Mode.FAILOVER,
        Snapshot((state(A, P), state(B, P))),
        Decision(Action.START, Reason.READY, steps=("a",)),
    ),
    "those that need one step begin together": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(B, P), state(C, P))),
        Decision(Action.START, Reason.READY, steps=("b", "c")),
    ),
    "while a step runs, those that need it wait": (
        Mode.FAILOVER,
        Snapshot((state(A, R), state(B, P))),
        Decision(Action.WAIT, Reason.STEPS_RUNNING),
    ),
    "an interrupted step is taken up again": (
        Mode.FAILOVER,
        Snapshot((state(A, Status.INTERRUPTED), state(B, P))),
        Decision(Action.START, Reason.READY, steps=("a",)),
    ),
    "a failed try waits for its next": (
        Mode.FAILOVER,
        Snapshot((state(A, Status.RETRY, retry_ns=NOW + 5),), now_ns=NOW),
        Decision(Action.WAIT, Reason.RETRY_DUE, wake_ns=NOW + 5),
    ),
    "a try that is due begins": (
        Mode.FAILOVER,
        Snapshot((state(A, Status.RETRY, retry_ns=NOW),), now_ns=NOW),
        Decision(Action.START, Reason.READY, steps=("a",)),
    ),
    "an approval that nobody gave is waited for": (
        Mode.FAILOVER,
        Snapshot((state(A, Status.WAITING), state(B, P))),
        Decision(Action.WAIT, Reason.APPROVAL_NEEDED, cause="a"),
    ),
    "an approval that was given lets its step go on": (
        Mode.FAILOVER,
        Snapshot((state(A, Status.WAITING), state(B, P)), approvals={"a": "ann"}),
        Decision(Action.START, Reason.READY, steps=("a",)),
    ),
    "everything done completes the run": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(B, D))),
        Decision(Action.FINISH, Reason.ALL_DONE, outcome=Outcome.COMPLETED),
    ),
    "a critical failure stops a failover for a person to decide": (
        Mode.FAILOVER,
        Snapshot((state(A, F), state(B, P))),
        Decision(Action.STOP, Reason.STEP_FAILED, outcome=Outcome.FAILED, cause="a"),
    ),
    "after a critical failure what runs is waited for": (
        Mode.FAILOVER,
        Snapshot((state(A, F), state(C, R))),
        Decision(Action.WAIT, Reason.STEPS_RUNNING, cause="a"),
    ),
    "a source that can't be fenced blocks the run": (
        Mode.FAILOVER,
        Snapshot((state(FENCE, F, code="unfenced"), state(B, P))),
        Decision(Action.STOP, Reason.SOURCE_UNFENCED, outcome=Outcome.BLOCKED, cause="a"),
    ),
    "an optional step's failure is passed over": (
        Mode.FAILOVER,
        Snapshot((state(OPTIONAL, F), state(B, P))),
        Decision(Action.START, Reason.READY, steps=("b",)),
    ),
    "an optional step's failure does not spoil the end": (
        Mode.FAILOVER,
        Snapshot((state(OPTIONAL, F), state(B, D))),
        Decision(Action.FINISH, Reason.ALL_DONE, outcome=Outcome.COMPLETED),
    ),
    "a critical failure that the runbook goes on from is a failure in the end": (
        Mode.FAILOVER,
        Snapshot((state(GOING_ON, F), state(B, D))),
        Decision(Action.FINISH, Reason.CRITICAL_FAILED, outcome=Outcome.FAILED, cause="a"),
    ),
    "a failure that the runbook rolls back from": (
        Mode.FAILOVER,
        Snapshot((state(UNDOING, F), state(B, P))),
        Decision(Action.ROLL_BACK, Reason.STEP_FAILED, cause="a"),
    ),
    "nothing is rolled back once a source was handed back": (
        Mode.FAILBACK,
        Snapshot((state(HAND_BACK, D), state(UNDOING, F))),
        Decision(Action.STOP, Reason.PAST_RETURN, outcome=Outcome.FAILED, cause="a"),
    ),
    "a person's rollback": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(B, P)), rollback_by="ann"),
        Decision(Action.ROLL_BACK, Reason.ROLLBACK_ASKED),
    ),
    "a person's rollback of a finished run": (
        Mode.FAILOVER,
        Snapshot((state(A, D),), rollback_by="ann"),
        Decision(Action.ROLL_BACK, Reason.ROLLBACK_ASKED),
    ),
    "a person's rollback waits for what runs": (
        Mode.FAILOVER,
        Snapshot((state(A, R), state(B, P)), rollback_by="ann"),
        Decision(Action.WAIT, Reason.STEPS_RUNNING),
    ),
    "rolling back begins the undoing only": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(B, P), state(UNDO, P)), rolling_back=True),
        Decision(Action.START, Reason.READY, steps=("undo.a",)),
    ),
    "a failback after which nothing was started": (
        Mode.FAILBACK,
        Snapshot((state(RELEASE, D, data={"started": False}),)),
        Decision(Action.FINISH, Reason.NOT_STARTED, outcome=Outcome.HANDED_BACK),
    ),
    "a failback whose check shows that somebody serves": (
        Mode.FAILBACK,
        Snapshot((state(RELEASE, D, data={"started": False}), state(step("c", KINDS["tcp"], "r"), D))),
        Decision(Action.FINISH, Reason.ALL_DONE, outcome=Outcome.COMPLETED),
    ),
    "rolled back": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(B, P), state(UNDO, D)), rolling_back=True),
        Decision(Action.FINISH, Reason.ROLLED_BACK, outcome=Outcome.ROLLED_BACK),
    ),
    "a rollback that fails is never called rolled back": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(UNDO, F)), rolling_back=True),
        Decision(Action.STOP, Reason.UNDO_FAILED, outcome=Outcome.FAILED, cause="undo.a"),
    ),
    "a person's abort": (
        Mode.FAILOVER,
        Snapshot((state(A, R), state(B, P)), aborted_by="ann"),
        Decision(Action.ABORT, Reason.ABORT_ASKED),
    ),
    "an aborted failover ends where it is": (
        Mode.FAILOVER,
        Snapshot((state(A, D), state(B, P)), ending=Outcome.ABORTED),
        Decision(Action.FINISH, Reason.ABORT_ASKED, outcome=Outcome.ABORTED),
    ),
    "an aborted drill cleans up what was begun": (
        Mode.DRILL,
        Snapshot((state(A, F), state(STOP, P), state(DROP, P)), ending=Outcome.ABORTED),
        Decision(Action.START, Reason.CLEANUP, steps=("stop",)),
    ),
    "a drill that never began a thing has nothing to clean up": (
        Mode.DRILL,
        Snapshot((state(A, P), state(STOP, P), state(DROP, P)), ending=Outcome.ABORTED),
        Decision(Action.FINISH, Reason.ABORT_ASKED, outcome=Outcome.ABORTED),
    ),
    "a failed drill cleans up in order": (
        Mode.DRILL,
        Snapshot((state(A, F), state(STOP, D), state(DROP, P))),
        Decision(Action.START, Reason.CLEANUP, steps=("drop",), cause="a"),
    ),
    "a failed drill is failed when it is clean": (
        Mode.DRILL,
        Snapshot((state(A, F), state(STOP, D), state(DROP, D))),
        Decision(Action.FINISH, Reason.STEP_FAILED, outcome=Outcome.FAILED, cause="a"),
    ),
    "a drill is not completed while something of it is left behind": (
        Mode.DRILL,
        Snapshot((state(A, D), state(STOP, D), state(DROP, F))),
        Decision(Action.FINISH, Reason.CRITICAL_FAILED, outcome=Outcome.FAILED, cause="drop"),
    ),
    "a rollback asked of a drill is no rollback": (
        Mode.DRILL,
        Snapshot((state(A, P),), rollback_by="ann"),
        Decision(Action.START, Reason.READY, steps=("a",)),
    ),
    "a plan that can't go on says so": (
        Mode.FAILOVER,
        Snapshot((state(B, P),)),
        Decision(Action.STOP, Reason.NOTHING_POSSIBLE, outcome=Outcome.FAILED),
    ),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.fault(58)
def test_decision(name: str) -> None:
    mode, snapshot, wanted = TABLE[name]
    assert decide(mode, snapshot) == wanted


def test_every_reason_has_a_row() -> None:
    assert {wanted.reason for _, _, wanted in TABLE.values()} == set(Reason)


FAILING = (Status.DONE, Status.FAILED, Status.RETRY, Status.WAITING)


@given(
    mode=st.sampled_from(list(Mode)),
    fates=st.lists(st.sampled_from(FAILING), min_size=40, max_size=40),
    abort_at=st.none() | st.integers(0, 20),
    rollback_at=st.none() | st.integers(0, 20),
)
@pytest.mark.fault(58, 62)
def test_every_run_comes_to_an_end_and_never_completes_over_a_critical_failure(
    mode: Mode, fates: list[Status], abort_at: int | None, rollback_at: int | None
) -> None:
    """Whatever becomes of each try: no step begins before those it needs, and no cleanup is left out."""
    book = runbook("web", "db")
    options = {"launches": {}, "force": True}
    snapshot = Snapshot(tuple(StepState(each) for each in plan(mode, book, options)), now_ns=1)
    fate = iter(fates * 20)
    for turn in range(400):
        if abort_at == turn:
            snapshot = replace(snapshot, aborted_by="ann")
        if rollback_at == turn and mode is not Mode.DRILL:
            snapshot = replace(snapshot, rollback_by="ann")
        decision = decide(mode, snapshot)
        through = {each.step.id for each in snapshot.steps if each.through}
        match decision.action:
            case Action.START:
                for id in decision.steps:
                    begun = snapshot.state(id)
                    if not begun.step.cleanup:
                        assert through.issuperset(begun.step.needs)
                    snapshot = with_state(snapshot, replace(begun, status=Status.RUNNING, attempt=begun.attempt + 1))
            case Action.WAIT:
                running = [each for each in snapshot.steps if each.status is Status.RUNNING]
                waiting = [each for each in snapshot.steps if each.status in (Status.RETRY, Status.WAITING)]
                if running:
                    snapshot = with_state(snapshot, replace(running[0], status=next(fate)))
                elif decision.reason is Reason.APPROVAL_NEEDED:
                    snapshot = with_state(snapshot, replace(waiting[0], status=Status.DONE))
                else:
                    snapshot = replace(snapshot, now_ns=snapshot.now_ns + 1)
            case Action.ABORT:
                snapshot = replace(snapshot, ending=Outcome.ABORTED, aborted_by="")
            case Action.ROLL_BACK:
                begun_ids = [each.step.id for each in snapshot.steps if each.begun]
                undo = tuple(StepState(each) for each in plan_rollback(mode, book, options, begun_ids))
                snapshot = replace(snapshot, steps=snapshot.steps + undo, rolling_back=True, rollback_by="")
            case _:
                break
    else:
        raise AssertionError("the run never ends")
    failed = [each for each in snapshot.steps if each.status is Status.FAILED and each.step.critical]
    if decision.outcome is Outcome.COMPLETED:
        assert not failed
        assert all(each.through for each in snapshot.steps if not each.step.cleanup)
    if mode is Mode.DRILL:
        begun = {each.step.id for each in snapshot.steps if each.begun}
        assert decision.action is Action.FINISH
        assert all(each.begun for each in snapshot.steps if each.step.cleans in begun)
    assert not [each for each in snapshot.steps if each.status is Status.RUNNING]


def with_state(snapshot: Snapshot, state: StepState) -> Snapshot:
    steps = tuple(state if each.step.id == state.step.id else each for each in snapshot.steps)
    return replace(snapshot, steps=steps)
