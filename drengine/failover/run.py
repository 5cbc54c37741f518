"""A run of a runbook and what its journal holds, as values. The registry keeps them, the executor writes them."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from drengine.failover.runbook.values import Mode


class RunState(enum.StrEnum):
    """Where a run is. All but FINISHED hold the run's sources: no other run may touch them."""

    RUNNING = "running"
    """An executor works on it, or, if that was killed, the next one goes on."""
    WAITING = "waiting"
    """For a person's approval; an executor may be watching or not."""
    STOPPED = "stopped"
    """Something critical failed, or fencing did; a person decides: resume, roll back or abort."""
    FINISHED = "finished"


class Outcome(enum.StrEnum):
    """How a run ended, or why it stopped. There is one authoritative state: nothing goes on behind COMPLETED."""

    NONE = ""
    COMPLETED = "completed"
    """Everything critical was done and checked."""
    FAILED = "failed"
    BLOCKED = "blocked"
    """A source could not be fenced, so nothing was promoted."""
    ABORTED = "aborted"
    ROLLED_BACK = "rolled-back"
    HANDED_BACK = "handed-back"
    """A failback put its sources in charge again, and nothing was started there: nobody is served yet."""


LAST = "last"
"""Stands for the newest run wherever a run's id does."""
COMMITTED = "committed"
"""The reason of a failover that somebody has accepted."""


class Status(enum.StrEnum):
    """Where a step of a run is."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """Its intent is in the journal, its result is not, and nobody works on it."""
    WAITING = "waiting"
    """For a person."""
    RETRY = "retry"
    """Failed, with tries left."""
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not needed, or done by a person's own hands."""


class Event(enum.StrEnum):
    """Kinds of journal entries."""

    INTENT = "intent"
    """Before a step is tried."""
    PROGRESS = "progress"
    RESULT = "result"
    """After: what became of the try."""
    DECISION = "decision"
    """The plan, what was decided about the run as a whole, who asked for it; of no step."""


class RequestKind(enum.StrEnum):
    """What a person may ask of a run while somebody else executes it."""

    APPROVE = "approve"
    ABORT = "abort"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    RESUME = "resume"
    REPLAN = "replan"
    """Go on by a changed runbook; its version is in the note."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the registry lists it.

    Attributes:
        id: ``20261123T081500-shop-4f2a``: sorts by time, names the runbook, unique.
        version: content hash of the runbook that it carries out; the journal tells when it was given another.
        sources: what it holds while it is unfinished.
        options: JSON values; `failover.options.RunOptions` are those of this release.
        reason: code of the last decision: why it waits, stopped or ended.
        finished_ns: 0 until it is finished.
        started_proof: how it was proved who started it, see `people.roles.Person`.
    """

    id: str
    mode: Mode
    runbook: str
    version: str
    sources: tuple[str, ...]
    started_by: str
    created_ns: int
    options: Mapping[str, Any] = field(default_factory=dict)
    state: RunState = RunState.RUNNING
    outcome: Outcome = Outcome.NONE
    reason: str = ""
    finished_ns: int = 0
    started_proof: str = ""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of a run's journal. `seq` is given by the registry when it is appended: order comes from it."""

    step: str
    event: Event
    attempt: int
    at_ns: int
    payload: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for; never changed, never removed.

    Attributes:
        proof: how it was proved who asked, see `people.roles.Person`.
        roles: that he had.
        digest: of what an approval is about.
    """

    run: str
    kind: RequestKind
    step: str
    by: str
    note: str
    at_ns: int
    seq: int = 0
    proof: str = ""
    roles: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to execute a run. A later holder has a higher token; appends with an older one are refused."""

    name: str
    owner: str
    token: int
    expires_ns: int


def run_lease(run: str) -> str:
    """The name of the lease that a run's executor holds."""
    return f"run:{run}"


def new_run_id(runbook: str, now_ns: int) -> str:
    """``20261123T081500-shop-4f2a``."""
    moment = datetime.fromtimestamp(now_ns // 10**9, UTC)
    return f"{moment:%Y%m%dT%H%M%S}-{runbook}-{secrets.token_hex(2)}"
