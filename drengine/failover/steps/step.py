"""A step of a plan, what becomes of it, and the interface of those who carry it out."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from drengine.control.messages import AgentReport, Answer, Verb
from drengine.failover.drivers.driver import LaunchDriver
from drengine.failover.runbook.values import Mode, OnFailure, Runbook
from drengine.model.clock import Clock
from drengine.model.points import RecoveryPoint
from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store


class StepKind(enum.StrEnum):
    """Every kind of step a plan may hold; each has one handler in this package."""

    # Engine's own, in the order in which a failover uses them.
    DECLARE = "declare"
    QUIESCE_SOURCE = "quiesce-source"
    FENCE = "fence"
    CHOOSE_POINT = "choose-point"
    BRANCH = "branch"
    PROMOTE = "promote"
    LAUNCH = "launch"
    PRESERVE = "preserve"
    REVERSE = "reverse"
    QUIESCE_RECOVERED = "quiesce-recovered"
    REVERSE_LAST = "reverse-last"
    HAND_BACK = "hand-back"
    RELEASE = "release"
    STOP_WORKLOAD = "stop-workload"
    DROP_BRANCH = "drop-branch"
    # The runbook's.
    APPROVAL = "approval"
    WAIT = "wait"
    COMMAND = "command"
    HTTP = "http"
    TCP = "tcp"
    SQL = "sql"
    DNS = "dns"
    NOTIFY = "notify"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        id: unique in the plan and the same whenever the same runbook version is planned: ``fence:shop``.
        needs: ids that must be through before.
        cleanup: it is done however the run ends, once what it cleans has begun.
        settings: JSON values for its handler.
    """

    id: str
    kind: StepKind
    title: str
    needs: tuple[str, ...] = ()
    source: str = ""
    wave: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float = 30.0
    retries: int = 0
    every_seconds: float = 1.0
    critical: bool = True
    on_failure: OnFailure = OnFailure.STOP
    cleanup: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a handler found or did. `waiting` (neither done nor failed): ask again later, e.g. an approval.

    Attributes:
        code: an error id or reason when not ok.
        data: JSON values that later steps and the report read (a point's id, a branch's number, a pid).
        output: last lines for people, bounded, without secrets (fault 59).
    """

    ok: bool
    message: str = ""
    code: str = ""
    waiting: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    retryable: bool = True


class Agents(Protocol):
    """The parties beyond the broker. Every call may find the broker gone: DrengineError BROKER_UNREACHABLE."""

    def reports(self) -> Mapping[str, AgentReport]:
        """Newest report of each party, by name; known even while the broker is away."""
        ...

    def is_online(self, name: str) -> bool:
        """Presence, by last will."""
        ...

    def report_age_seconds(self, name: str) -> float | None:
        """For how long it has certainly sent no newer report than the one we have; None when that is not known."""
        ...

    async def command(
        self,
        name: str,
        verb: Verb,
        arguments: Mapping[str, Any],
        *,
        generation: int,
        id: str,
        timeout_seconds: float,
        progress: Callable[[Answer], None] = lambda _: None,
    ) -> Answer:
        """Send and wait for the final answer; the same `id` again gives the same answer.

        Raises:
            DrengineError: BROKER_UNREACHABLE, NO_ANSWER.
        """
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What steps act upon: everything here works without the region, the broker and the source (rule 10).

    Attributes:
        store: the replica store, opened directly.
        agents: the broker's parties.
        drivers: launch drivers by name.
        export_uri: NBD URI for (source, volume, branch number), as the target serves it.
        directory: place for instances' files.
    """

    store: Store
    agents: Agents
    drivers: Mapping[str, LaunchDriver]
    export_uri: Callable[[str, str, int], str]
    directory: Path
    clock: Clock


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a handler is given.

    Attributes:
        run, mode, runbook: of the run that it belongs to (the version that the run began with).
        results: data of steps that are through, by id.
        attempt: 1 at first.
        options: of the run: point selector, force, who started it.
        say: one line of progress for people.
        permit: raises when another executor has taken the run over; asked right before what can't be undone.
    """

    run: str
    mode: Mode
    runbook: Runbook
    site: Site
    results: Mapping[str, Mapping[str, Any]]
    attempt: int
    options: Mapping[str, Any]
    approvals: Mapping[str, str]
    say: Callable[[str], None]
    permit: Callable[[], None] = lambda: None


class StepHandler(Protocol):
    """Carries out one kind of step. Under one run, `act` after an interrupted `act` does nothing twice that matters."""

    kind: ClassVar[StepKind]

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """A result if it is done already (an earlier try got through before it could be noted), else None."""
        ...

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """Do it. Exceptions of type DrengineError are failures with their id; asyncio.CancelledError is a timeout."""
        ...


def branch_named(store: Store, source: str, label: str) -> BranchInfo | None:
    """The branch that a run made earlier: labels of branches carry the run's id, so that they are found again."""
    return next((branch for branch in store.branches(source) if branch.label == label), None)


def point_named(store: Store, source: str, id: str) -> RecoveryPoint | None:
    """A point by its id."""
    return next((point for point in store.points(source) if point.id == id), None)
