"""From a run, its journal and what people asked: the report, purely. No secret passes (fault 59)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.failover.advice import FORWARD
from drengine.failover.masking import masked, masked_json
from drengine.failover.measure import Measures, measure
from drengine.failover.report.values import (
    Attempt,
    ChangedFile,
    ConvertedSource,
    Fencing,
    Generation,
    Objective,
    Person,
    Point,
    Report,
    Route,
    StepReport,
    Warned,
)
from drengine.failover.run import Event, JournalEntry, Outcome, Request, RequestKind, RunRecord, RunState, Status
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import Snapshot, StepState, observe
from drengine.failover.steps.choose_point import ChosenPoint
from drengine.failover.steps.convert import CONVERT
from drengine.failover.steps.declare import DECLARE, Declared
from drengine.failover.steps.fence import FENCE, Fenced
from drengine.failover.steps.hand_back import HAND_BACK
from drengine.failover.steps.preserve import PRESERVE
from drengine.failover.steps.promote import PROMOTE

CONSISTENCY: Mapping[str, str] = {
    "write-order": "captured in the order in which it was written",
    "quiet": "the tracker proved that nothing was written while it was read",
    "frozen": "file systems were frozen",
    "application": "a quiesce hook ran",
}
EVIDENCE: Mapping[str, str] = {
    "agent": "its agent answered that it has stopped serving and shipping",
    "command": "the runbook's fence command ended with success",
    "lease": "it fences itself after a silence, and was silent for longer",
    "none": "nothing proves that it has stopped",
}


def make_report(
    run: RunRecord,
    book: Runbook,
    text: str,
    entries: Sequence[JournalEntry],
    requests: Sequence[Request],
    *,
    now_ns: int,
    routes: Sequence[Route] = (),
) -> Report:
    """The report of a run, finished or not.

    Args:
        run: as the registry lists it.
        book, text: the version of the runbook that it began with.
        entries, requests: all of its journal, and what people asked.
        now_ns: wall clock.
        routes: bytes by network, if somebody counted them.
    """
    snapshot = observe(entries, requests, (), now_ns)
    measures = measure(snapshot)
    objectives = _objectives(run, book, measures)
    good = run.outcome is Outcome.COMPLETED
    steps = [_step(each, entries) for each in snapshot.steps]
    return Report(
        made_ns=now_ns,
        run=run.id,
        mode=run.mode.value,
        runbook=run.runbook,
        version=run.version,
        description=masked(book.description),
        verdict=_verdict(run, objectives),
        good=good,
        warnings=_warnings(run, measures, objectives, snapshot, requests),
        state=run.state.value,
        outcome=run.outcome.value,
        reason=run.reason,
        started_by=run.started_by,
        created_ns=run.created_ns,
        declared_ns=measures.declared_ns,
        recovered_ns=measures.recovered_ns,
        finished_ns=run.finished_ns,
        sources=list(run.sources),
        objectives=objectives,
        outage_seconds=measures.outage_seconds,
        fencing=_fencing(snapshot),
        points=[_point(source, chosen) for source, chosen in measures.points.items()],
        generations=_generations(snapshot),
        conversions=_conversions(snapshot),
        steps=steps,
        people=_people(run, requests),
        routes=list(routes),
        bytes_shipped_back=measures.bytes_shipped_back,
        executors=_executors(entries),
        interruptions=sum(1 for each in entries if each.event is Event.INTENT and each.payload.get("again")),
        journal_entries=len(entries),
        journal_sha256=journal_digest(entries),
        options=_plain(run.options),
        runbook_text=masked(text),
    )


def journal_digest(entries: Iterable[JournalEntry]) -> str:
    """SHA-256 of a journal: of each entry's canonical JSON, a line each."""
    digest = hashlib.sha256()
    for entry in entries:
        line = [entry.seq, entry.step, entry.event.value, entry.attempt, entry.at_ns, entry.payload]
        digest.update(msgspec.json.encode(line, order="sorted") + b"\n")
    return digest.hexdigest()


def _objectives(run: RunRecord, book: Runbook, measures: Measures) -> list[Objective]:
    promised = {"rpo": parse_duration(book.objectives.rpo), "rto": parse_duration(book.objectives.rto)}
    if run.mode in (Mode.REPROTECT, Mode.FAILBACK):
        return []
    planned = run.mode is Mode.MIGRATION
    rto = measures.outage_seconds if planned else measures.rto_seconds
    since = "the first stop of a source" if planned else "the declaration"
    return [
        Objective(
            name="RPO",
            meaning="longest data loss",
            promised_seconds=promised["rpo"],
            measured_seconds=measures.rpo_seconds,
            met=None if measures.rpo_seconds is None else measures.rpo_seconds <= promised["rpo"],
            known_by=measures.rpo_known_by or "no point was chosen",
        ),
        Objective(
            name="RTO",
            meaning="longest time until users work again",
            promised_seconds=promised["rto"],
            measured_seconds=rto,
            met=None if rto is None else rto <= promised["rto"],
            known_by=f"from {since} to the last critical launch or check" if rto is not None else "not recovered",
        ),
    ]


def _verdict(run: RunRecord, objectives: Sequence[Objective]) -> str:
    what = {Mode.MIGRATION: "Planned migration"}.get(run.mode, run.mode.value.capitalize())
    ended = {
        Outcome.COMPLETED: "passed" if run.mode is Mode.DRILL else "completed",
        Outcome.FAILED: "failed",
        Outcome.BLOCKED: "blocked: a source could not be fenced",
        Outcome.ABORTED: "aborted",
        Outcome.ROLLED_BACK: "rolled back",
        Outcome.HANDED_BACK: "handed back, not started: nobody is served",
    }.get(run.outcome, "is waiting" if run.state is RunState.WAITING else "is under way")
    if run.state is RunState.STOPPED:
        ended += ", stopped for a person to decide"
    missed = [each.name for each in objectives if each.met is False]
    return f"{what} of {run.runbook} {ended}" + (f"; {' and '.join(missed)} missed" if missed else "")


def _warnings(
    run: RunRecord,
    measures: Measures,
    objectives: Sequence[Objective],
    snapshot: Snapshot,
    requests: Sequence[Request],
) -> list[Warned]:
    found = [
        Warned(id="not-fenced", text=f"NOT FENCED: {source} may still have been writing; going on was forced.")
        for source in measures.unfenced
    ]
    found += [
        Warned(id="fencing-failed", text=f"{each.step.source} could not be fenced: {masked(each.message)}")
        for each in snapshot.steps
        if each.step.kind.is_fence and each.status is Status.FAILED
    ]
    if run.state is not RunState.RUNNING:
        found += [Warned(id="left-fenced", text=_left_fenced(run, source)) for source in measures.left_fenced]
    found += [
        Warned(id="not-started", text=f"{source} is in charge again, and nothing was started there: nobody is served.")
        for source in measures.not_started
    ]
    found += [
        Warned(id="replanned", text=f"While it was stopped, {each.by} gave the run a changed runbook.")
        for each in requests
        if each.kind is RequestKind.REPLAN
    ]
    if run.state is not RunState.FINISHED:
        found.append(
            Warned(id="unfinished", text=f"The run is not finished ({run.state.value}): this is how it stands.")
        )
    found += [
        Warned(
            id=f"{each.name.lower()}-missed",
            text=f"{each.name} missed: {each.measured_seconds:.1f} s measured, {each.promised_seconds:g} s promised.",
        )
        for each in objectives
        if each.met is False and each.measured_seconds is not None
    ]
    found += [
        Warned(id="step-failed", text=f"Step {each.step.id} failed: {masked(each.message) or each.code}")
        for each in snapshot.steps
        if each.status is Status.FAILED and not each.step.kind.is_fence
    ]
    preserved = ((each, each.result(PRESERVE)) for each in snapshot.steps)
    discarded = [each for each, result in preserved if result is not None and not result.kept]
    found += [Warned(id="discarded", text=masked(each.message)) for each in discarded]
    return found


def _left_fenced(run: RunRecord, source: str) -> str:
    how = f"`drengine rollback {run.id}`" if run.mode in FORWARD else f"`drengine run resume {run.id}`"
    return (
        f"{source} is in charge, but this run stopped its agent: it serves and ships nothing. {how} releases it; "
        f"by hand, on {source}: `drengine-agent release`."
    )


def _fencing(snapshot: Snapshot) -> list[Fencing]:
    fences = ((each, each.result(FENCE) or Fenced()) for each in snapshot.steps if each.step.kind is FENCE)
    return [
        Fencing(
            source=each.step.source,
            evidence=fenced.evidence,
            meaning=EVIDENCE.get(fenced.evidence, "not fenced"),
            message=masked(each.message),
            at_ns=each.ended_ns,
            forced_by=fenced.forced_by,
            tried=[masked(one) for one in fenced.tried],
        )
        for each, fenced in fences
        if each.begun
    ]


def _point(source: str, chosen: ChosenPoint) -> Point:
    return Point(
        source=source,
        point=chosen.point,
        time_ns=chosen.time_ns,
        kind=chosen.kind,
        meaning=CONSISTENCY.get(chosen.kind, "unknown"),
        label=masked(chosen.label),
        verified_ns=chosen.verified_ns,
        size_bytes=chosen.size_bytes,
        volumes=chosen.volumes,
        rpo_seconds=chosen.rpo_seconds,
        known_by=chosen.rpo_known_by,
    )


def _generations(snapshot: Snapshot) -> list[Generation]:
    declared = next((each.result(DECLARE) for each in snapshot.steps if each.step.kind is DECLARE), None) or Declared()
    found = []
    for each in snapshot.steps:
        for kind, event in ((PROMOTE, "promoted"), (HAND_BACK, "handed back")):
            branched, before = each.result(kind), declared.sources.get(each.step.source)
            if branched is not None:
                found.append(
                    Generation(
                        source=each.step.source,
                        before=before.generation if before else 0,
                        after=branched.generation,
                        branch=branched.branch,
                        event=event,
                    )
                )
    return found


def _conversions(snapshot: Snapshot) -> list[ConvertedSource]:
    found = [(each.step.source, made) for each in snapshot.steps if (made := each.result(CONVERT)) is not None]
    return [
        ConvertedSource(
            source=source,
            system=masked(made.system),
            skipped=made.skipped,
            changes=[ChangedFile(**masked_json(change)) for change in made.changes],
            notes=[masked(note) for note in made.notes],
        )
        for source, made in found
    ]


def _step(state: StepState, entries: Sequence[JournalEntry]) -> StepReport:
    took = (state.ended_ns - state.began_ns) / 1e9
    return StepReport(
        id=state.step.id,
        title=masked(state.step.title),
        kind=state.step.kind.name,
        wave=state.step.wave,
        source=state.step.source,
        status=state.status.value,
        critical=state.step.critical,
        rollback=state.step.id.startswith("undo."),
        began_ns=state.began_ns,
        ended_ns=state.ended_ns,
        seconds=round(max(0.0, took), 6) if state.ended_ns and state.began_ns else None,
        attempts=_attempts(entry for entry in entries if entry.step == state.step.id),
        message=masked(state.message),
        code=state.code,
        output=masked(state.output),
    )


def _attempts(entries: Iterable[JournalEntry]) -> list[Attempt]:
    found: list[Attempt] = []
    for entry in entries:
        if entry.event is Event.INTENT:
            found.append(Attempt(number=entry.attempt, began_ns=entry.at_ns, ended_ns=0, ok=False))
        elif entry.event is Event.RESULT and found:
            ok = bool(entry.payload.get("ok")) or bool(entry.payload.get("waiting"))
            found[-1] = msgspec.structs.replace(found[-1], ended_ns=entry.at_ns, ok=ok)
    return found


def _people(run: RunRecord, requests: Sequence[Request]) -> list[Person]:
    started = Person(at_ns=run.created_ns, did="start", by=run.started_by, step="", note="", proof=run.started_proof)
    asked = [
        Person(
            at_ns=each.at_ns,
            did=each.kind.value,
            by=each.by,
            step=each.step,
            note=masked(each.note),
            proof=each.proof,
            digest=each.digest,
        )
        for each in requests
    ]
    return [started, *asked]


def _executors(entries: Iterable[JournalEntry]) -> list[str]:
    return list(dict.fromkeys(str(each.payload["owner"]) for each in entries if each.payload.get("owner")))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The run's options without what other runs left in them (launch settings, which may hold secrets)."""
    return {
        key: masked(value) if isinstance(value, str) else value
        for key, value in options.items()
        if isinstance(value, (str, int, float, bool))
    }
