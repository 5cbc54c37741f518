"""What a step of a plan is, what becomes of it, and what a kind of step has to say and to do.

Each kind is one module of this package: its settings, its result, its facts (how long it takes, whether a person may do
it by hand, ...) and its handler. `kinds` knows all of them. A kind that runbooks may name is an `ActionKind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_args

import msgspec

from drengine.control.messages import AgentReport, Answer, Verb
from drengine.failover.config import ExportUri
from drengine.failover.drivers.driver import LaunchDriver
from drengine.failover.errors import RUN_STATE
from drengine.failover.needs import Need
from drengine.failover.options import RunOptions
from drengine.failover.readiness import Checked
from drengine.failover.run import Request
from drengine.failover.runbook.sense import Sense
from drengine.failover.runbook.values import Mode, OnFailure, Runbook
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.store import Store

S = TypeVar("S")
"""The settings of a kind of step: a frozen struct, or a plain text or list where that says all."""
R = TypeVar("R", bound=msgspec.Struct)
"""What a kind of step gives, for later steps and the report: a frozen struct whose fields all have defaults."""


class NoSettings(msgspec.Struct, frozen=True):
    """Settings of steps that need none beyond their source."""


class NoResult(msgspec.Struct, frozen=True):
    """The result of steps that leave nothing to tell."""


@dataclass(frozen=True, slots=True)
class PlannedStep(Generic[S]):
    """One step of a plan.

    Attributes:
        id: unique in the plan and the same whenever the same runbook version is planned: ``fence:shop``.
        settings: of its kind.
        needs: ids that must be through before.
        cleanup: it is done however the run ends, once the step `cleans` has begun.
        inside: source in whose workload's network it is done, by the recovery host; empty: here.
    """

    id: str
    kind: StepKind[S, Any]
    title: str
    settings: S
    needs: tuple[str, ...] = ()
    source: str = ""
    wave: str = ""
    timeout_seconds: float = 30.0
    retries: int = 0
    every_seconds: float = 1.0
    critical: bool = True
    on_failure: OnFailure = OnFailure.STOP
    cleanup: bool = False
    cleans: str = ""
    inside: str = ""


@dataclass(frozen=True, slots=True)
class StepResult(Generic[R]):
    """What a handler found or did. `waiting` (neither done nor failed): ask again later, e.g. an approval.

    Attributes:
        code: an error id or reason when not ok.
        data: what later steps and the report read (a point's id, a branch's number); None: the kind's defaults.
        output: last lines for people, bounded, without secrets (fault 59).
    """

    ok: bool
    message: str = ""
    code: str = ""
    waiting: bool = False
    data: R | None = None
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

    def is_away(self, name: str) -> bool:
        """The broker is there and does not see the party; False while we don't see the broker, which proves nothing."""
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
        run: str = "",
        approver: str = "",
    ) -> Answer:
        """Send and wait for the final answer; the same `id` again gives the same answer.

        `run` is on whose behalf, `approver` who approved it, where that is needed.

        Raises:
            DrengineError: BROKER_UNREACHABLE, NO_ANSWER.
        """
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """A run that is to be looked at before it does anything.

    Attributes:
        mode, runbook, options: the run's.
        run: its id; empty: it has not begun, and perhaps never will.
        started_by: who would begin it; empty: not known.
        despite: ids of checks that do not block, because somebody said so.
        rehearsal: it is asked how it would go on the day, so a source that is well counts as if it were lost.
    """

    mode: Mode
    runbook: Runbook
    options: RunOptions
    run: str = ""
    started_by: str = ""
    despite: Sequence[str] = ()
    rehearsal: bool = False


class Preflight(Protocol):
    """Looks for whatever can be known before a run does anything."""

    async def __call__(self, site: Site, case: Case) -> Sequence[Checked]:
        """What was found; in bounded time, and nothing is changed."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What steps act upon: everything here works without the region, the broker and the source (rule 10).

    Attributes:
        store: the replica store, opened directly.
        agents: the broker's parties.
        drivers: launch drivers by name.
        exporting: says how a target that answers serves branches; asked once for all disks of a workload.
        directory: place for instances' files.
        preflight: looks before anything is done.
        data_networks: on which this host may serve disks itself.
    """

    store: Store
    agents: Agents
    drivers: Mapping[str, LaunchDriver]
    exporting: Callable[[], ExportUri]
    directory: Path
    clock: Clock
    preflight: Preflight
    data_networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a handler is given.

    Attributes:
        run, mode, runbook: of the run that it belongs to (the version that the run began with).
        results: of the steps that are done, by id; `result_of` gives them by their kind.
        attempt: 1 at first.
        options: of the run.
        approvals: the approvals that count, by step.
        say: one line of progress for people.
        permit: raises when another executor has taken the run over; asked right before what can't be undone.
        started_by: who started the run.
        forced_by: who said that the run goes on without fencing; empty: nobody.
        despite: checks of the preflight past which somebody said that the run goes on.
        again: an earlier try was interrupted: its executor died, and what it started may run yet.
    """

    run: str
    mode: Mode
    runbook: Runbook
    site: Site
    results: Mapping[str, msgspec.Struct]
    attempt: int
    options: RunOptions
    approvals: Mapping[str, Request]
    say: Callable[[str], None]
    permit: Callable[[], None] = lambda: None
    started_by: str = ""
    forced_by: str = ""
    despite: Sequence[str] = ()
    again: bool = False

    def found(self, kind: StepKind[Any, R], source: str = "") -> R | None:
        """What the run's step of a kind gave for a source; None when it is not done, or is not part of the run."""
        result = self.results.get(kind.step_id(source))
        return result if isinstance(result, kind.result_type) else None

    def result_of(self, kind: StepKind[Any, R], source: str = "") -> R:
        """The same where the step must have been done before.

        Raises:
            DrengineError: RUN_STATE.
        """
        result = self.found(kind, source)
        if result is None:
            raise DrengineError(RUN_STATE, f"step {kind.step_id(source)} was not done, or its result can't be read")
        return result


class StepKind(ABC, Generic[S, R]):
    """One kind of step: what is known about all steps of the kind, and their handler.

    Under one run, `act` after an interrupted `act` does nothing twice that matters.

    Attributes:
        name: in journals, ids and runbooks.
        settings_type, result_type: as the journal keeps them, in JSON; those that the class names as its parameters.
        timeout_seconds, retries: of a step of this kind where nothing else is planned.
        estimate_seconds: how long such a step is taken to last where no earlier run tells.
        acts: it changes something, so that the audit log tells of it.
        begins_outage: a planned outage begins with the first such step.
        ends_outage: users may work after the last critical one of these steps.
        by_hand: a person may say that it was done by hand. Nobody's word fences a source, promotes, or makes a workload
            healthy.
        asks_people: it waits for a person; how long that took says nothing about the next time.
        is_fence: when it fails, the source may still be writing: the run is blocked, not failed.
        overwrites_source: once begun, the source's disks are no longer what they were: an earlier failover can't be
            rolled back.
        hands_back: once begun, its own run can't be rolled back.
        later_settings: left out of the journal where they are not set, as older releases keep such a step: what was
            approved of it has the same digest.
    """

    name: str
    settings_type: type[S]
    result_type: type[R]
    timeout_seconds: ClassVar[float] = 60.0
    retries: ClassVar[int] = 0
    estimate_seconds: ClassVar[float] = 1.0
    acts: ClassVar[bool] = True
    begins_outage: ClassVar[bool] = False
    ends_outage: ClassVar[bool] = False
    by_hand: ClassVar[bool] = False
    asks_people: ClassVar[bool] = False
    is_fence: ClassVar[bool] = False
    overwrites_source: ClassVar[bool] = False
    hands_back: ClassVar[bool] = False
    later_settings: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in vars(cls).get("__orig_bases__", ()):
            for name, given in zip(("settings_type", "result_type"), get_args(base), strict=False):
                if name not in vars(cls) and not isinstance(given, TypeVar):
                    setattr(cls, name, given)

    @abstractmethod
    def title(self, source: str, settings: S) -> str:
        """What such a step does, for people."""

    async def check(self, step: PlannedStep[S], context: StepContext) -> StepResult[R] | None:
        """A result if it is done already (an earlier try got through before it could be noted), else None.

        Kinds that can't know, or for which to do it again is as good, leave this as it is.
        """
        return None

    @abstractmethod
    async def act(self, step: PlannedStep[S], context: StepContext) -> StepResult[R]:
        """Do it. Exceptions of type DrengineError are failures with their id; asyncio.CancelledError is a timeout."""

    def needs(self, settings: S) -> Iterable[Need]:
        """What such a step needs on the host that executes the run."""
        return ()

    def step_id(self, source: str = "", prefix: str = "") -> str:
        """The id of such a step in a plan; there is one for each source, or one in all."""
        return f"{prefix}{self.name}:{source}" if source else f"{prefix}{self.name}"

    def settings_json(self, settings: S) -> dict[str, Any]:
        """Settings as the journal keeps them."""
        made: dict[str, Any] = msgspec.to_builtins(settings)
        return {name: value for name, value in made.items() if value or name not in self.later_settings}

    def read_settings(self, kept: Mapping[str, Any]) -> S:
        """Settings as the journal kept them.

        Raises:
            msgspec.ValidationError: they are none of this kind.
        """
        return msgspec.convert(kept, self.settings_type)

    def read_result(self, kept: Mapping[str, Any]) -> R | None:
        """A result as the journal kept it; None when it is none of this kind."""
        try:
            return msgspec.convert(kept, self.result_type, strict=False)
        except msgspec.ValidationError:
            return None


class ActionKind(StepKind[S, R]):
    """A kind of step that runbooks name themselves: its name is the key, its settings are the value.

    Attributes:
        help: what it does, in one line, for the schema of runbooks.
        checks: it proves that something works: a drill without such a step proves little.
        goes_inside: it can be done inside a workload's own network.
        schema: what the JSON Schema says beyond the settings' type.
    """

    help: ClassVar[str]
    checks: ClassVar[bool] = False
    goes_inside: ClassVar[bool] = False
    schema: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def examine(self, settings: S, sense: Sense) -> None:
        """Note what makes no sense in settings that have the right shape."""

    def settings_json(self, settings: S) -> dict[str, Any]:
        """As in the runbook: the kind's name, and what belongs to it."""
        return {self.name: msgspec.to_builtins(settings)}

    def read_settings(self, kept: Mapping[str, Any]) -> S:
        return msgspec.convert(kept.get(self.name), self.settings_type)


class MissingKind(StepKind[dict[str, Any], NoResult]):
    """The kind of a step that an older or another program planned, of which nothing is installed here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def title(self, source: str, settings: dict[str, Any]) -> str:
        return self.name

    async def act(self, step: PlannedStep[dict[str, Any]], context: StepContext) -> StepResult[NoResult]:
        """Fail: the kind that knows how is missing."""
        return StepResult(False, f"no step kind {self.name!r} is installed here", RUN_STATE.id, retryable=False)
