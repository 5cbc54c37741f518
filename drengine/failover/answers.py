"""What people and programs are told: the command line prints these values, REST sends them, both as the same JSON.

Times are nanoseconds since the epoch; 0 means: has not happened. Whatever looks like a secret is masked here, once.
Values that need no change to be told are told as they are: a branch, a source, a version of a runbook.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from drengine.control.messages import PartyKind
from drengine.failover import run as engine
from drengine.failover.advice import FORWARD, Advice, next_commands
from drengine.failover.masking import masked, masked_json
from drengine.failover.measure import measure
from drengine.failover.options import read_options
from drengine.failover.plan import can_roll_back
from drengine.failover.readiness import Checked
from drengine.failover.reading.reader import Examined
from drengine.failover.registry.values import Party as KnownParty
from drengine.failover.run import Outcome, RunRecord, RunState, Status
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.steps import step as planned

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it is listed, with what was measured so far.

    Attributes:
        run: its id.
        version: of the runbook that it began with, and keeps.
        started_proof: how it was proved who started it: ``unix:UID``, ``login:ID``, ``program:ID``, ``oidc:ISSUER``.
        reason: code of the last decision: why it waits, stopped or ended.
        waiting_for: ids of the steps that wait for a person.
        declared_ns, recovered_ns: the RTO counts from the one to the other.
        rto_seconds, outage_seconds, rpo_seconds: null where nothing could be measured.
        points: the chosen recovery points, by source.
        fencing: evidence by source: ``agent``, ``command``, ``lease``, ``none``.
        unfenced: sources that went on without evidence, because somebody forced it.
        left_fenced: sources whose agents the run has stopped and not released, although they are in charge.
        not_started: sources that are in charge again, and of which nothing shows that their workloads serve.
    """

    run: str
    mode: Mode
    runbook: str
    version: str
    sources: list[str]
    started_by: str
    started_proof: str
    created_ns: int
    finished_ns: int
    state: RunState
    outcome: Outcome
    reason: str
    waiting_for: list[str]
    declared_ns: int
    recovered_ns: int
    rto_seconds: float | None
    outage_seconds: float | None
    rpo_seconds: float | None
    rpo_known_by: str
    points: dict[str, dict[str, Any]]
    fencing: dict[str, str]
    unfenced: list[str]
    left_fenced: list[str]
    not_started: list[str]
    bytes_shipped_back: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a run and what became of it.

    Attributes:
        seconds: from its first try to its newest result; null while there is none.
        code: an error's id or a reason, where it failed.
        data: what it found or made, as later steps and the report read it.
    """

    id: str
    kind: str
    title: str
    wave: str
    source: str
    critical: bool
    status: Status
    attempt: int
    began_ns: int
    ended_ns: int
    seconds: float | None
    code: str
    message: str
    output: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(Run):
    """A run with its steps.

    Attributes:
        digest: of what an approval would be about now: run, runbook, options, plan, chosen points.
        asked: whether somebody wants something of it that no executor has heeded yet.
        next: commands that somebody may want to type now, the most likely first.
    """

    digest: str
    asked: bool
    next: list[Advice]
    steps: list[Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A step that a run would have.

    Attributes:
        critical: whether its failure is the run's, see `on_failure`.
        cleanup: it is done however the run ends.
        predicted_seconds: how long it is expected to take; `measured` tells whether an earlier run says so.
    """

    id: str
    kind: str
    title: str
    wave: str
    source: str
    needs: list[str]
    critical: bool
    on_failure: OnFailure
    timeout_seconds: float
    retries: int
    cleanup: bool
    predicted_seconds: float
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedPoint:
    """The point that a run would choose now, with what it would lose.

    Attributes:
        error: why there is none; then the rest says nothing.
        point: its id, or in words where it is cut by the run itself; then only this is known.
        verified_ns: when all of it was last read again and hashed; 0: never.
        volumes: sizes by name.
        rpo_seconds, rpo_known_by: how much was written after the moment that it shows, at most, and how that is known.
        rpo_declared_seconds: from that moment until now.
    """

    error: str = ""
    point: str = ""
    time_ns: int = 0
    kind: str = ""
    label: str = ""
    verified_ns: int = 0
    size_bytes: int = 0
    volumes: dict[str, int] = field(default_factory=dict)
    rpo_seconds: float = 0.0
    rpo_known_by: str = ""
    rpo_declared_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressChange:
    """What becomes of a network interface of a source.

    Attributes:
        old, new: addresses with prefix lengths; with `dhcp` the new ones are those that it is expected to get.
        mac: empty where the launch gives it a new one, or the machine its own.
        gateway: of its default route; empty: none by this interface.
    """

    source: str
    interface: str
    old: list[str]
    new: list[str]
    dhcp: bool
    mac: str
    gateway: str
    name_servers: list[str]
    search: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do now; nothing was touched.

    Attributes:
        points: those that would be chosen now, by source.
        predicted_seconds: from the declaration to the last step that is no cleanup.
        addresses: of the servers that would be launched, where anybody knows them.
        checks: whether it would go through, see `drengine ready`.
    """

    mode: Mode
    runbook: str
    predicted_seconds: float
    points: dict[str, ExpectedPoint]
    steps: list[PlannedStep]
    addresses: list[AddressChange]
    checks: list[Checked] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingAnswer:
    """A mistake in a runbook, or with `warning` something worth a thought. Lines and columns count from 1."""

    id: str
    line: int
    column: int
    path: str
    message: str
    hint: str
    warning: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is to be said about a runbook; `valid`: it can be kept and run."""

    valid: bool
    findings: list[FindingAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Validation):
    """A runbook that is kept now."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """An agent, a recovery host or a target, as it was last heard of."""

    kind: PartyKind
    name: str
    online: bool
    since_ns: int
    release: str
    reported_ns: int
    report: dict[str, Any] | None


def run_answer(run: RunRecord, snapshot: Snapshot) -> Run:
    """A run without its steps."""
    return _answer(Run, run, measure(snapshot), **_of_steps(run, snapshot))


def run_detail(run: RunRecord, snapshot: Snapshot) -> RunDetail:
    """A run with its steps."""
    steps = [
        _answer(Step, each, each.step, kind=each.step.kind.name, seconds=_seconds(each)) for each in snapshot.steps
    ]
    asked = snapshot.reopened if run.state is RunState.FINISHED else snapshot.is_asked
    measures, of_steps = measure(snapshot), _of_steps(run, snapshot)
    advice = next_commands(
        run,
        of_steps["waiting_for"],
        digest=snapshot.digest,
        by_hand=[each.step.id for each in snapshot.steps if each.status is Status.FAILED and each.step.kind.by_hand],
        can_roll_back=_can_roll_back(run, snapshot),
        left_fenced=measures.left_fenced,
    )
    return _answer(RunDetail, run, measures, **of_steps, digest=snapshot.digest, asked=asked, next=advice, steps=steps)


def _can_roll_back(run: RunRecord, snapshot: Snapshot) -> bool:
    """As far as the run itself tells; what was done since is looked up when somebody asks for it."""
    handed = any(each.step.kind.hands_back and each.begun for each in snapshot.steps)
    able = run.mode in FORWARD or (run.mode is Mode.FAILBACK and run.state is not RunState.FINISHED)
    return able and not handed and can_roll_back(run.mode, read_options(run.options))


def _of_steps(run: RunRecord, snapshot: Snapshot) -> dict[str, Any]:
    return {"run": run.id, "waiting_for": [each.step.id for each in snapshot.steps if each.status is Status.WAITING]}


def _seconds(state: StepState) -> float | None:
    return (state.ended_ns - state.began_ns) / 1e9 if state.ended_ns > state.began_ns > 0 else None


def entry_answer(entry: engine.JournalEntry) -> engine.JournalEntry:
    """A line of a journal; plans carry settings, which may hold secrets, so they are given without."""
    payload = dict(entry.payload)
    if isinstance(payload.get("steps"), list):
        payload["steps"] = [
            {key: value for key, value in step.items() if key != "settings"} for step in payload["steps"]
        ]
    return replace(entry, payload=masked_json(payload))


def request_answer(request: engine.Request) -> engine.Request:
    """What somebody asked."""
    return replace(request, note=masked(request.note))


def planned_answer(step: planned.PlannedStep[Any], seconds: float, *, measured: bool) -> PlannedStep:
    """A step that a run would have, and how long it would take."""
    return _answer(PlannedStep, step, kind=step.kind.name, predicted_seconds=seconds, measured=measured)


def validation(examined: Examined) -> Validation:
    """What was found in a runbook."""
    findings = [_answer(FindingAnswer, each, each.place) for each in examined.findings]
    return Validation(valid=examined.runbook is not None, findings=findings)


def party_answer(party: KnownParty) -> Party:
    """A party as it was last heard of."""
    return _answer(Party, party, report=msgspec.to_builtins(party.report) if party.report else None)


def _answer(answer: type[T], *values: Any, **more: Any) -> T:
    """An answer whose fields are those of the values, the first that has one, masked; `more` are told as they are."""
    for each in fields(answer):
        if each.name not in more:
            has = next(value for value in values if hasattr(value, each.name))
            more[each.name] = masked_json(getattr(has, each.name))
    return answer(**more)
