"""Declaring: the moment from which the outage counts, and whatever can be found wrong before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from drengine.control.messages import AgentReport
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.errors import RUN_STATE
from drengine.failover.points import select_point
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.texts import secret_of
from drengine.failover.steps.threads import in_thread
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.redaction import references_in
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
    """What later steps and the report start from."""

    declared_ns: int = 0
    sources: dict[str, DeclaredSource] = {}


class DeclareStep(StepKind[DeclareSettings, Declared]):
    """Notes who writes each source now; refuses what could not be carried out. Changes nothing."""

    name = "declare"
    acts = False
    estimate_seconds = 0.1

    def title(self, source: str, settings: DeclareSettings) -> str:
        return f"declare {', '.join(settings.sources)}"

    async def act(self, step: PlannedStep[DeclareSettings], context: StepContext) -> StepResult[Declared]:
        await in_thread(lambda: check_secrets(context.runbook))
        facts = await in_thread(lambda: {source: _facts(source, context) for source in step.settings.sources})
        listed = ", ".join(f"{source} at generation {each.generation}" for source, each in facts.items())
        declared = Declared(declared_ns=context.site.clock.now_ns(), sources=facts)
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


def _facts(source: str, context: StepContext) -> DeclaredSource:
    store = context.site.store
    info = store.source(source)
    branches = {branch.number: branch for branch in store.branches(source)}
    active = branches[info.active_branch]
    report = context.site.agents.reports().get(source)
    sign = last_sign(store.points(source), report, context.site.clock.now_ns())
    if context.mode.is_way_home:
        if active.role != "promoted":
            raise DrengineError(
                RUN_STATE, f"{source!r} was not failed over: it writes its branch {active.number} itself"
            )
        origin = _origin(branches, active, report.generation if report else 0)
    else:
        origin = active.number
        if context.mode is not Mode.MIGRATION:
            text = context.options.point or context.runbook.sources[source].point
            select_point(store, source, text)
    _check_launch(context, source)
    context.site.export_uri(
        source, "any", info.active_branch, ""
    )  # where workloads find their disks must be known before
    return DeclaredSource(
        generation=info.generation,
        branch=info.active_branch,
        origin=origin,
        represented_ns=sign.represented_ns,
        sign_ns=sign.at_ns,
        online=context.site.agents.is_online(source),
    )


def _origin(branches: Mapping[int, BranchInfo], active: BranchInfo, generation: int) -> int:
    """The branch that the source's own disks wrote last: that of its generation, else what the active one grew from."""
    own = [
        each.number
        for each in branches.values()
        if each.generation == generation and each.number != active.number and each.role in ("trunk", "promoted")
    ]
    return own[0] if own else active.parent


def check_secrets(runbook: Runbook) -> None:
    """What a runbook refers to is there before anything is fenced.

    Raises:
        DrengineError: BAD_REFERENCE.
    """
    for way, what in references_in(msgspec.to_builtins(runbook)):
        secret_of(way, what)


def _check_launch(context: StepContext, source: str) -> None:
    launch = context.runbook.sources[source].launch
    driver, settings = launch.driver, launch.settings_in(context.mode)
    earlier = context.options.launches.get(source)
    if earlier and context.mode.is_way_home:
        driver, settings = earlier.driver, earlier.settings
    found = context.site.drivers.get(driver)
    if found is None:
        known = ", ".join(sorted(context.site.drivers))
        raise DrengineError(LAUNCH_SETTINGS, f"there is no launch driver {driver!r}; there are {known}")
    found.check_settings(settings)
