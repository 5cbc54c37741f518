"""What is known about a run at one moment, as one immutable value folded from its journal and people's requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from drengine.failover.approvals import Subject, approvals_of, digest_of
from drengine.failover.run import Event, JournalEntry, Outcome, Request, RequestKind, Status
from drengine.failover.steps.choose_point import CHOOSE_POINT
from drengine.failover.steps.kinds import StepKinds, step_json, step_kinds
from drengine.failover.steps.step import PlannedStep, R, StepKind


@dataclass(frozen=True, slots=True)
class StepState:
    """A step and how far it is.

    Attributes:
        tries: failed tries since the run was last resumed.
        attempt: number of the newest try, 0 before the first.
        retry_ns: when the next try is due, while RETRY.
        code, message, output: of its newest result.
        data: of the same, as the journal keeps it; `result` gives it as a value.
        began_ns, ended_ns: of its first try and of its newest result; 0 if there is none.
    """

    step: PlannedStep[Any]
    status: Status = Status.PENDING
    tries: int = 0
    attempt: int = 0
    retry_ns: int = 0
    code: str = ""
    message: str = ""
    output: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    began_ns: int = 0
    ended_ns: int = 0

    @property
    def through(self) -> bool:
        """Whether those that need it may begin: it is done, or is not needed."""
        return self.status in (Status.DONE, Status.SKIPPED) or (self.status is Status.FAILED and self.tolerated)

    @property
    def tolerated(self) -> bool:
        """Whether the run goes on when it fails."""
        return not self.step.critical or self.step.on_failure.value == "continue"

    @property
    def begun(self) -> bool:
        """Whether it may have done something."""
        return self.attempt > 0

    def result(self, kind: StepKind[Any, R]) -> R | None:
        """What it gave, if it is of this kind and done, and the journal's words can be understood."""
        return kind.read_result(self.data) if self.step.kind is kind and self.status is Status.DONE else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a decision depends on.

    Attributes:
        steps: of the plan, in its order; then those of a rollback, if one was decided.
        rolling_back: only the rollback's steps count any more.
        ending: why the run is ending early (ABORTED), or NONE.
        aborted_by, rollback_by, resumed_by: who asked for it since it was last heeded; empty: nobody.
        forced_by: who resumed a run that was blocked with the word to go on unfenced; empty: nobody.
        despite: checks of the preflight past which somebody who resumed the run said that it goes on.
        resumptions: how often a person went on with it, or gave it another plan.
        newest_request: number of the newest request that this snapshot has seen.
        approvals: those that count, by step.
        digest: of what would be approved now; empty where nothing is known but the journal.
        now_ns: of the moment.
    """

    steps: tuple[StepState, ...]
    rolling_back: bool = False
    ending: Outcome = Outcome.NONE
    aborted_by: str = ""
    rollback_by: str = ""
    resumed_by: str = ""
    forced_by: str = ""
    despite: tuple[str, ...] = ()
    resumptions: int = 0
    newest_request: int = 0
    approvals: Mapping[str, Request] = field(default_factory=dict)
    digest: str = ""
    now_ns: int = 0

    def state(self, id: str) -> StepState:
        """The state of one step."""
        return next(each for each in self.steps if each.step.id == id)

    @property
    def is_asked(self) -> bool:
        """Whether somebody wants something that no executor has heeded."""
        return bool(self.aborted_by or self.rollback_by or self.resumed_by)

    @property
    def reopened(self) -> bool:
        """Whether a finished run has to go on: somebody asked for its rollback, and that has not begun."""
        return bool(self.rollback_by) and not self.rolling_back

    @property
    def results(self) -> dict[str, msgspec.Struct]:
        """What the steps gave that are done, by id."""
        done = ((each.step, each.data) for each in self.steps if each.status is Status.DONE)
        read = ((step.id, step.kind.read_result(data)) for step, data in done)
        return {id: result for id, result in read if result is not None}


PLANNED = "planned"
ROLLBACK = "rollback"
ABORT = "abort"
RESUMED = "resumed"
REPLANNED = "replanned"
STOPPED = "stopped"
FINISHED = "finished"
TAKEN_UP = "taken-up"
"""What `decision` entries say, under the key ``decision``."""


def observe(
    entries: Sequence[JournalEntry],
    requests: Sequence[Request],
    running: Collection[str],
    now_ns: int,
    kinds: StepKinds | None = None,
    subject: Subject | None = None,
) -> Snapshot:
    """Fold a journal into the run's state.

    Args:
        entries: all of them, in order.
        requests: what people asked for.
        running: ids of the steps on which the asking executor works.
        now_ns: wall clock.
        kinds: of the steps; None: all that are installed.
        subject: what approvals are about; None: none counts.
    """
    states: dict[str, StepState] = {}
    rolling_back, ending, handled, forced_by = False, Outcome.NONE, 0, ""
    for entry in entries:
        if entry.event is not Event.DECISION:
            state = states.get(entry.step)
            if state is not None:
                states[entry.step] = _after(state, entry)
            continue
        handled = entry.payload.get("request", handled)
        match entry.payload.get("decision"):
            case "planned" | "rollback" as what:
                rolling_back = what == ROLLBACK
                states |= {step.id: StepState(step) for step in steps_of(entry, kinds)}
            case "replanned":
                states = {step.id: _replanned(states.get(step.id), step) for step in steps_of(entry, kinds)}
            case "abort":
                ending = Outcome.ABORTED
            case "resumed":
                ending = Outcome.NONE
                forced_by = str(entry.payload.get("by")) if entry.payload.get("force") else forced_by
                states = {id: _again(state, entry) for id, state in states.items()}
            case _:
                pass
    states = {id: _settled(state, id in running) for id, state in states.items()}
    new = [each for each in requests if each.seq > handled]
    planned = [state.step for state in states.values()]
    digest = digest_of(subject, planned, _points(states.values())) if subject else ""
    return Snapshot(
        steps=tuple(states.values()),
        rolling_back=rolling_back,
        ending=ending,
        aborted_by=_asked(new, RequestKind.ABORT),
        rollback_by=_asked(new, RequestKind.ROLLBACK),
        resumed_by=_asked(new, RequestKind.RESUME),
        forced_by=forced_by,
        despite=tuple(each for entry in entries for each in entry.payload.get("despite", ())),
        resumptions=sum(entry.payload.get("decision") in (RESUMED, REPLANNED, ROLLBACK) for entry in entries),
        newest_request=max((each.seq for each in requests), default=0),
        approvals=approvals_of(planned, requests, subject, digest) if subject else {},
        digest=digest,
        now_ns=now_ns,
    )


def _asked(requests: Iterable[Request], kind: RequestKind) -> str:
    return next((each.by for each in requests if each.kind is kind), "")


def _points(states: Iterable[StepState]) -> dict[str, Any]:
    """The points that were chosen, by source."""
    found = ((state.step.source, state.result(CHOOSE_POINT)) for state in states)
    return {source: chosen.point for source, chosen in found if chosen is not None}


def plan_payload(steps: Iterable[PlannedStep[Any]], decision: str, **more: Any) -> dict[str, Any]:
    """A `decision` entry's payload that carries steps: the plan of a run is part of its journal."""
    return {"decision": decision, "steps": [step_json(step) for step in steps], **more}


def steps_of(entry: JournalEntry, kinds: StepKinds | None = None) -> tuple[PlannedStep[Any], ...]:
    """The steps that a `planned` or `rollback` entry carries."""
    known = step_kinds() if kinds is None else kinds
    return tuple(known.read_step(each) for each in entry.payload["steps"])


def _after(state: StepState, entry: JournalEntry) -> StepState:
    payload = entry.payload
    if entry.event is Event.INTENT:
        began = state.began_ns or entry.at_ns
        return replace(state, status=Status.INTERRUPTED, attempt=entry.attempt, began_ns=began)
    if entry.event is Event.PROGRESS:
        return replace(state, message=str(payload.get("message", state.message)))
    ended = replace(
        state,
        code=str(payload.get("code", "")),
        message=str(payload.get("message", "")),
        output=str(payload.get("output", "")),
        data=payload.get("data", {}),
        ended_ns=entry.at_ns,
    )
    if payload.get("skipped"):
        return replace(ended, status=Status.SKIPPED)
    if payload.get("waiting"):
        return replace(ended, status=Status.WAITING)
    if payload.get("ok"):
        return replace(ended, status=Status.DONE)
    tries = state.tries + 1
    if tries <= state.step.retries and payload.get("retryable", True):
        retry_ns = entry.at_ns + int(state.step.every_seconds * 1e9)
        return replace(ended, status=Status.RETRY, tries=tries, retry_ns=retry_ns)
    return replace(ended, status=Status.FAILED, tries=tries)


def _replanned(known: StepState | None, step: PlannedStep[Any]) -> StepState:
    """A step of a changed plan: done if it was, otherwise to be tried as what it is now. Tries are counted on, so that
    no command to an agent bears the id of an earlier one.
    """
    if known is None:
        return StepState(step)
    if known.status in (Status.DONE, Status.SKIPPED):
        return replace(known, step=step)
    return StepState(step, attempt=known.attempt, began_ns=known.began_ns)


def _again(state: StepState, resumed: JournalEntry) -> StepState:
    """What a person wants tried again, from the first try; or what he did himself."""
    if resumed.payload.get("step") == state.step.id:
        message = f"done by hand, says {resumed.payload.get('by')}"
        return replace(state, status=Status.SKIPPED, tries=0, code="", message=message, ended_ns=resumed.at_ns)
    failed = state.status in (Status.FAILED, Status.RETRY)
    return replace(state, status=Status.PENDING if failed else state.status, tries=0)


def _settled(state: StepState, running: bool) -> StepState:
    return replace(state, status=Status.RUNNING) if running else state
