"""A report as values; its JSON form is what `drengine reports export --form json` gives. Docs: docs/runbooks.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

FORMAT_VERSION = 1


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """A promise against what was measured; `met` is null when nothing could be measured."""

    name: str
    meaning: str
    promised_seconds: float
    measured_seconds: float | None
    met: bool | None
    known_by: str


class Fencing(msgspec.Struct, frozen=True, kw_only=True):
    """How a source is known to serve no more."""

    source: str
    evidence: str
    meaning: str
    message: str
    at_ns: int
    forced_by: str = ""
    tried: list[str] = []


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A recovery point that was used, and how it is known to be consistent.

    Attributes:
        verified_ns: when all of it was last read again and hashed; 0: each batch was when it was received.
        rpo_seconds: how much was written after it at most.
    """

    source: str
    point: str
    time_ns: int
    kind: str
    meaning: str
    label: str
    verified_ns: int
    size_bytes: int
    volumes: dict[str, int]
    rpo_seconds: float
    known_by: str


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """Who may write a source's replica: the generation before the run and after it."""

    source: str
    before: int
    after: int
    branch: int
    event: str


class ChangedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was changed on a recovered server's disks, so that they boot elsewhere; see docs/conversion.md."""

    what: str
    path: str
    before: str
    after: str


class ConvertedSource(msgspec.Struct, frozen=True, kw_only=True):
    """How a source's disks were made fit for the machine of its launch driver.

    Attributes:
        system: what was found on them.
        skipped: why nothing was looked at; empty: it was.
        notes: what a person should know of it.
    """

    source: str
    system: str
    skipped: str
    changes: list[ChangedFile]
    notes: list[str]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try of a step. `ended_ns` is 0 when it was interrupted or still runs."""

    number: int
    began_ns: int
    ended_ns: int
    ok: bool


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """A step and what became of it."""

    id: str
    title: str
    kind: str
    wave: str
    source: str
    status: str
    critical: bool
    rollback: bool
    began_ns: int
    ended_ns: int
    seconds: float | None
    attempts: list[Attempt]
    message: str
    code: str
    output: str


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did: started, approved, aborted, committed, rolled back, resumed.

    Attributes:
        proof: how it was proved who that was.
        digest: of what was approved.
    """

    at_ns: int
    did: str
    by: str
    step: str
    note: str
    proof: str = ""
    digest: str = ""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by network route, as its end points counted them."""

    network: str
    received_bytes: int
    sent_bytes: int


class Warned(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader must know before anything else."""

    id: str
    text: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report. Times are nanoseconds since the epoch by the orchestrator's clock; 0 means: did not happen.

    Attributes:
        verdict: one line: what it was and how it ended.
        good: whether the run did what it was for.
        warnings: read first; a source that was not fenced comes before everything else.
        journal_sha256: of the run's journal, entry by entry, so that a report can be held against its registry.
        executors: processes that carried the run out; more than one when it was resumed.
        interruptions: steps that were begun, interrupted, and gone on with.
    """

    format: int = FORMAT_VERSION
    made_ns: int
    run: str
    mode: str
    runbook: str
    version: str
    description: str
    verdict: str
    good: bool
    warnings: list[Warned]
    state: str
    outcome: str
    reason: str
    started_by: str
    created_ns: int
    declared_ns: int
    recovered_ns: int
    finished_ns: int
    sources: list[str]
    objectives: list[Objective]
    outage_seconds: float | None
    fencing: list[Fencing]
    points: list[Point]
    generations: list[Generation]
    conversions: list[ConvertedSource]
    steps: list[StepReport]
    people: list[Person]
    routes: list[Route]
    bytes_shipped_back: int
    executors: list[str]
    interruptions: int
    journal_entries: int
    journal_sha256: str
    options: dict[str, Any]
    runbook_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    """A report that is kept.

    Attributes:
        verdict, good, warnings: see Report.
        page: the file of its page, on the host of the orchestrator.
    """

    run: str
    verdict: str
    good: bool
    warnings: list[str]
    rto_seconds: float | None
    rpo_seconds: float | None
    made_ns: int
    page: str


def report_json(report: Report) -> bytes:
    """The report for machines."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
