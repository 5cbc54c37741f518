"""What the registry keeps beside runs: versions of runbooks, and the parties as they were last heard of."""

from __future__ import annotations

from dataclasses import dataclass

from drengine.control.messages import AgentReport, PartyKind
from drengine.failover.run import Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode


@dataclass(frozen=True, slots=True)
class StoredRunbook:
    """One version of a runbook's text.

    Attributes:
        version: hash of the text.
        at_ns: when this version was first saved.
    """

    name: str
    version: str
    text: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Party:
    """A source's agent, a recovery host, a target or an orchestrator.

    Attributes:
        online, since_ns: its presence, by its own clock; False when it has never announced itself.
        report: its newest, or None.
        reported_ns: when that came here, by the registry's clock.
    """

    kind: PartyKind
    name: str
    online: bool
    since_ns: int
    release: str
    report: AgentReport | None
    reported_ns: int


@dataclass(frozen=True, slots=True)
class Unheld:
    """A run whose lease nobody holds.

    Attributes:
        owner: who held it and died, or handed it over; empty: it was let go.
        token: the newest of its lease.
        asked_seconds: since somebody last asked something of it; 0: nobody ever did.
    """

    run: RunRecord
    owner: str
    token: int
    asked_seconds: float


@dataclass(frozen=True, slots=True)
class RunCount:
    """How many runs are alike."""

    runbook: str
    mode: Mode
    state: RunState
    outcome: Outcome
    count: int
