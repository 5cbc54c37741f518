"""Declaring: the moment from which the outage counts, and whatever can be found wrong before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from drengine.control.messages import AgentReport
from drengine.failover.errors import RUN_STATE
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.process.threads import in_thread
from drengine.store.log.branches import BranchInfo


class DeclareSettings(msgspec.Struct, frozen=True):
    """The sources that the run holds."""

    sources: list[str]


class DeclaredSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source as it was when the run was declared.

    Attributes:
        generation, branch: under which, and where, it is written.
        origin: the branch that the source's own disks wrote last.
        represented_ns: until when its newest point showed all that the source wrote, as its agent said; 0: unknown.
        sign_ns: its last sign of life; 0: none.
        online: its agent was connected.
    """

    generation: int = 0
    branch: int = 0
    origin: int = 0
    represented_ns: int = 0
    sign_ns: int = 0
    online: bool = False


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What later steps and the report start from.

    Attributes:
        homes: names of the agents of the hosts where sources live that do not live with their namesake.
    """

    declared_ns: int = 0
    sources: dict[str, DeclaredSource] = {}
    homes: dict[str, str] = {}


class DeclareStep(StepKind[DeclareSettings, Declared]):
    """Notes who writes each source now. Changes nothing."""

    name = "declare"
    acts = False
    estimate_seconds = 0.1

    def title(self, source: str, settings: DeclareSettings) -> str:
        return f"declare {', '.join(settings.sources)}"

    async def act(self, step: PlannedStep[DeclareSettings], context: StepContext) -> StepResult[Declared]:
        store, names = context.site.store, step.settings.sources
        homes = await in_thread(lambda: {source: store.home(source).agent for source in names})
        facts = await in_thread(lambda: {source: _facts(source, homes[source], context) for source in names})
        listed = ", ".join(f"{source} at generation {each.generation}" for source, each in facts.items())
        moved = {source: home for source, home in homes.items() if home != source}
        declared = Declared(declared_ns=context.site.clock.now_ns(), sources=facts, homes=moved)
        return StepResult(True, f"{context.mode.value} of {listed}", data=declared)


DECLARE = DeclareStep()


def declared(step: PlannedStep[Any], context: StepContext) -> DeclaredSource:
    """The step's source as it was declared.

    Raises:
        DrengineError: RUN_STATE.
    """
    found = context.result_of(DECLARE).sources.get(step.source)
    if found is None:
        raise DrengineError(RUN_STATE, f"{step.source!r} was not declared")
    return found


def home_of(step: PlannedStep[Any], context: StepContext) -> str:
    """Name of the agent where the step's source lived when the run was declared."""
    found = context.found(DECLARE)
    return found.homes.get(step.source, step.source) if found else step.source


class Sign(NamedTuple):
    """The last sign of a source's life, by the target's clock.

    Attributes:
        at_ns: when it was given at the latest; 0: there was none.
        represented_ns: until when its newest point showed all that it wrote, at the earliest; 0: unknown.
    """

    at_ns: int = 0
    represented_ns: int = 0


def last_sign(points: Sequence[RecoveryPoint], report: AgentReport | None, now_ns: int) -> Sign:
    """From the points of a source and its agent's last report, whose clock proves nothing.

    The newest point tells how far that clock is ahead at least, or behind at most: it was received after it was cut.
    A report that is later than now all the same says nothing of when.
    """
    newest = max(points, key=lambda point: point.received_ns, default=None)
    received_ns = newest.received_ns if newest else 0
    if report is None:
        return Sign(received_ns)
    behind_ns = newest.received_ns - newest.time_ns if newest else 0
    earliest_ns = report.at_ns + min(0, behind_ns)
    return Sign(
        at_ns=max(received_ns, min(now_ns, report.at_ns + max(0, behind_ns))),
        represented_ns=earliest_ns - int(report.lag_seconds * 1e9) if earliest_ns <= now_ns else 0,
    )


def _facts(source: str, home: str, context: StepContext) -> DeclaredSource:
    store = context.site.store
    info = store.source(source)
    branches = {branch.number: branch for branch in store.branches(source)}
    active = branches[info.active_branch]
    report = context.site.agents.reports().get(home)
    sign = last_sign(store.points(source), report, context.site.clock.now_ns())
    if context.mode.is_way_home:
        if active.role != "promoted":
            raise DrengineError(
                RUN_STATE, f"{source!r} was not failed over: it writes its branch {active.number} itself"
            )
        origin = _origin(branches, active, report.generation if report else 0)
    else:
        origin = active.number
    return DeclaredSource(
        generation=info.generation,
        branch=info.active_branch,
        origin=origin,
        represented_ns=sign.represented_ns,
        sign_ns=sign.at_ns,
        online=context.site.agents.is_online(home),
    )


def _origin(branches: Mapping[int, BranchInfo], active: BranchInfo, generation: int) -> int:
    """The branch that the source's own disks wrote last: that of its generation, else what the active one grew from."""
    own = [
        each.number
        for each in branches.values()
        if each.generation == generation and each.number != active.number and each.role in ("trunk", "promoted")
    ]
    return own[0] if own else active.parent
