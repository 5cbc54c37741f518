"""A step and its context for handlers under test, with a clock that jumps ahead whenever somebody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from drengine.failover.options import RunOptions
from drengine.failover.runbook.values import Launch, Mode, Runbook, Source, Wave
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.step import PlannedStep, Site, StepContext, StepKind
from drengine.model.clock import SystemClock
from tests.failover.engine.world import unseen

RUNBOOK = Runbook(
    version=1,
    name="shop",
    sources={"shop": Source(launch=Launch(driver="command"))},
    waves=[Wave(name="all", sources=["shop"])],
)


class HastyClock(SystemClock):
    """Sleeping takes no time, and all the time that was asked for."""

    def __init__(self) -> None:
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.slept

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        await asyncio.sleep(0)


def planned(kind: StepKind[Any, Any], settings: Mapping[str, Any], **more: Any) -> PlannedStep[Any]:
    """`settings` as a journal keeps them."""
    return PlannedStep(id=kind.step_id("1"), kind=kind, title=kind.name, settings=kind.read_settings(settings), **more)


def context(*, results: Mapping[str, Any] | None = None, **more: Any) -> StepContext:
    """`results` by step, as a journal keeps them."""
    kinds = step_kinds()
    clock = more.pop("clock", HastyClock())
    site = Site(cast(Any, None), cast(Any, None), {}, lambda *_: "", Path(), clock, unseen)
    values: dict[str, Any] = {
        "run": "run-1",
        "mode": Mode.DRILL,
        "runbook": RUNBOOK,
        "site": site,
        "results": {id: kinds[id.partition(":")[0]].read_result(kept) for id, kept in (results or {}).items()},
        "attempt": 1,
        "options": RunOptions(),
        "approvals": {},
        "say": lambda _: None,
    }
    return StepContext(**{**values, **more})
