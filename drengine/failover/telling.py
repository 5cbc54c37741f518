"""What people are told of a run: that it waits, is blocked, has failed or ended. Each once, whoever executes it."""

from __future__ import annotations

from dataclasses import replace

from drengine.failover.decide import Action, Decision, Reason
from drengine.failover.executor import Watcher
from drengine.failover.run import Outcome, RunRecord, RunState
from drengine.failover.snapshot import Snapshot
from drengine.notifications import Notice, Notifier, Topic


def telling(notifier: Notifier, watch: Watcher) -> Watcher:
    """`watch`, and a notice whenever a person has to act or the run is over."""
    told: set[str] = set()

    def watch_and_tell(run: RunRecord, snapshot: Snapshot, decision: Decision) -> None:
        watch(run, snapshot, decision)
        notice = _notice(run, snapshot, decision)
        if notice is None:
            return
        # Whoever resumes it wants to hear of the same end again; whoever takes it up from a dead executor does not.
        state = f"{notice.topic}:{decision.cause}:{snapshot.resumptions}"
        if state not in told:
            told.add(state)
            notifier.notify(replace(notice, about=f"run:{run.id}", state=state))

    return watch_and_tell


def _notice(run: RunRecord, snapshot: Snapshot, decision: Decision) -> Notice | None:
    what = f"{run.mode.value} of {run.runbook}"
    message = snapshot.state(decision.cause).message if decision.cause else ""
    why = "".join(f"\n{each}" for each in (decision.cause, message) if each)
    show = f"\n\nWhat to do: drengine run show {run.id}"
    if decision.action is Action.WAIT and decision.reason is Reason.APPROVAL_NEEDED:
        return Notice(Topic.WAITING, f"{what} waits for an approval", f"Run {run.id}{why}\n\ndrengine approve {run.id}")
    if decision.action is Action.STOP and run.state is RunState.STOPPED:
        if run.outcome is Outcome.BLOCKED:
            return Notice(Topic.BLOCKED, f"{what} is blocked: a source is not fenced", f"Run {run.id}{why}{show}")
        return Notice(Topic.FAILED, f"{what} has stopped: {run.reason}", f"Run {run.id}{why}{show}")
    if decision.action is Action.FINISH and run.state is RunState.FINISHED:
        if run.outcome is Outcome.HANDED_BACK:
            return Notice(Topic.FAILED, f"{what}: handed back, and NOT STARTED", f"Run {run.id}{why}{show}")
        topic = Topic.FAILED if run.outcome in (Outcome.FAILED, Outcome.BLOCKED) else Topic.ENDED
        return Notice(topic, f"{what}: {run.outcome.value}", f"Run {run.id}{why}{show}")
    return None
