"""Declaring: the moment from which the outage counts, and whatever can be found wrong before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from drengine.failover.errors import RUN_STATE
from drengine.failover.plan import HOME
from drengine.failover.points import select_point
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.errors import LAUNCH_SETTINGS
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.threads import in_thread
from drengine.model.errors import DrengineError
from drengine.store.log.branches import BranchInfo


class DeclareStep:
    """Notes who writes each source now; refuses what could not be carried out. Changes nothing."""

    kind: ClassVar[StepKind] = StepKind.DECLARE

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Looking again is as good as having looked."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler; the data holds, by source, what later steps and the report start from."""
        facts = await in_thread(lambda: {source: _facts(source, context) for source in step.settings["sources"]})
        told = ", ".join(f"{source} at generation {each['generation']}" for source, each in facts.items())
        data = {"declared_ns": context.site.clock.now_ns(), "sources": facts}
        return StepResult(True, f"{context.mode.value} of {told}", data=data)


def _facts(source: str, context: StepContext) -> dict[str, Any]:
    store = context.site.store
    info = store.source(source)
    branches = {branch.number: branch for branch in store.branches(source)}
    active = branches[info.active_branch]
    report = context.site.agents.reports().get(source)
    received = [point.received_ns for point in store.points(source)]
    if context.mode in HOME:
        if active.role != "promoted":
            raise DrengineError(
                RUN_STATE, f"{source!r} was not failed over: it writes its branch {active.number} itself"
            )
        origin = _origin(branches, active, report.generation if report else 0)
        _check_driver(context, **_launch_of(context, source))
    else:
        origin = active.number
        if context.mode is not Mode.MIGRATION:
            text = str(context.options.get("point") or context.runbook.sources[source].point)
            select_point(store, source, text)
        _check_driver(context, **_launch_of(context, source))
    context.site.export_uri(source, "any", info.active_branch)  # where workloads find their disks must be known before
    return {
        "generation": info.generation,
        "branch": info.active_branch,
        "origin": origin,
        "represented_ns": report.at_ns - int(report.lag_seconds * 1e9) if report else 0,
        "sign_ns": max([report.at_ns if report else 0, *received]),
        "online": context.site.agents.is_online(source),
    }


def _origin(branches: Mapping[int, BranchInfo], active: BranchInfo, generation: int) -> int:
    """The branch that the source's own disks wrote last: that of its generation, else what the active one grew from."""
    own = [
        each.number
        for each in branches.values()
        if each.generation == generation and each.number != active.number and each.role in ("trunk", "promoted")
    ]
    return own[0] if own else active.parent


def _launch_of(context: StepContext, source: str) -> dict[str, Any]:
    earlier = context.options.get("launches", {}).get(source)
    if earlier and context.mode in HOME:
        return {"driver": earlier["driver"], "settings": earlier["settings"]}
    launch = context.runbook.sources[source].launch
    return {
        "driver": launch.driver,
        "settings": {**launch.settings, **(launch.drill if context.mode is Mode.DRILL else {})},
    }


def _check_driver(context: StepContext, *, driver: str, settings: Mapping[str, Any]) -> None:
    found = context.site.drivers.get(driver)
    if found is None:
        known = ", ".join(sorted(context.site.drivers))
        raise DrengineError(LAUNCH_SETTINGS, f"there is no launch driver {driver!r}; there are {known}")
    found.check_settings(settings)
