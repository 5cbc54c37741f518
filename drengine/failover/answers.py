"""What people and programs are told: the command line prints these values, REST sends them, both as the same JSON.

Times are nanoseconds since the epoch; 0 means: has not happened. Whatever looks like a secret is masked here, once.
Values that need no change to be told are told as they are: a branch, a source, a version of a runbook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec

from drengine.control.messages import PartyKind
from drengine.failover import run as engine
from drengine.failover.masking import masked, masked_json
from drengine.failover.measure import measure
from drengine.failover.preview import Preview
from drengine.failover.registry.values import Party as KnownParty
from drengine.failover.run import Outcome, RunRecord, RunState
from drengine.failover.runbook.reader import Examined
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.failover.snapshot import Snapshot, Status, StepState
from drengine.failover.steps.step import StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it is listed, with what was measured so far.

    Attributes:
        run: its id.
        version: of the runbook that it began with, and keeps.
        reason: code of the last decision: why it waits, stopped or ended.
        waiting_for: ids of the steps that wait for a person.
        declared_ns, recovered_ns: the RTO counts from the one to the other.
        rto_seconds, outage_seconds, rpo_seconds: null where nothing could be measured.
        points: the chosen recovery points, by source.
        fencing: evidence by source: ``agent``, ``command``, ``lease``, ``none``.
        unfenced: sources that went on without evidence, because somebody forced it.
    """

    run: str
    mode: Mode
    runbook: str
    version: str
    sources: list[str]
    started_by: str
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
    kind: StepKind
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
    """A run with its steps."""

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
    kind: StepKind
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
class Plan:
    """What a run would do now; nothing was touched.

    Attributes:
        points: the points that would be chosen now, by source; or why there is none, as `error`.
        predicted_seconds: from the declaration to the last step that is no cleanup.
    """

    mode: Mode
    runbook: str
    predicted_seconds: float
    points: dict[str, dict[str, Any]]
    steps: list[PlannedStep]


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
    return Run(**_facts(run, snapshot))


def run_detail(run: RunRecord, snapshot: Snapshot) -> RunDetail:
    """A run with its steps."""
    return RunDetail(**_facts(run, snapshot), steps=[_step(each) for each in snapshot.steps])


def _facts(run: RunRecord, snapshot: Snapshot) -> dict[str, Any]:
    measures = measure(snapshot)
    told = {each.name: getattr(measures, each.name) for each in fields(measures)}
    told |= {each.name: getattr(run, each.name) for each in fields(run) if each.name not in ("id", "options")}
    waiting = [each.step.id for each in snapshot.steps if each.status is Status.WAITING]
    points = {source: masked_json(point) for source, point in measures.points.items()}
    lists = {"sources": list(run.sources), "unfenced": list(measures.unfenced)}
    return told | lists | {"run": run.id, "waiting_for": waiting, "points": points, "fencing": dict(measures.fencing)}


def _step(state: StepState) -> Step:
    return Step(
        id=state.step.id,
        kind=state.step.kind,
        title=masked(state.step.title),
        wave=state.step.wave,
        source=state.step.source,
        critical=state.step.critical,
        status=state.status,
        attempt=state.attempt,
        began_ns=state.began_ns,
        ended_ns=state.ended_ns,
        seconds=(state.ended_ns - state.began_ns) / 1e9 if state.ended_ns > state.began_ns > 0 else None,
        code=state.code,
        message=masked(state.message),
        output=masked(state.output),
        data=masked_json(state.data),
    )


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


def plan_answer(mode: Mode, runbook: str, found: Preview) -> Plan:
    """What a run would do."""
    steps = [
        PlannedStep(
            id=each.id,
            kind=each.kind,
            title=masked(each.title),
            wave=each.wave,
            source=each.source,
            needs=list(each.needs),
            critical=each.critical,
            on_failure=each.on_failure,
            timeout_seconds=each.timeout_seconds,
            retries=each.retries,
            cleanup=each.cleanup,
            predicted_seconds=found.seconds[each.id],
            measured=each.id in found.measured,
        )
        for each in found.steps
    ]
    points: Mapping[str, dict[str, Any]] = {source: masked_json(point) for source, point in found.points.items()}
    return Plan(mode=mode, runbook=runbook, predicted_seconds=found.predicted_seconds, points=dict(points), steps=steps)


def validation(examined: Examined) -> Validation:
    """What was found in a runbook."""
    findings = [
        FindingAnswer(
            id=each.id,
            line=each.place.line,
            column=each.place.column,
            path=each.path,
            message=each.message,
            hint=each.hint,
            warning=each.warning,
        )
        for each in examined.findings
    ]
    return Validation(valid=examined.runbook is not None, findings=findings)


def party_answer(party: KnownParty) -> Party:
    """A party as it was last heard of."""
    told = {each.name: getattr(party, each.name) for each in fields(party)}
    return Party(**told | {"report": msgspec.to_builtins(party.report) if party.report else None})
