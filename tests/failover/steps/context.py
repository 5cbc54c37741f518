"""A step and its context for handlers under test, with a clock that jumps ahead whenever somebody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from drengine.failover.runbook.values import Launch, Mode, Runbook, Source, Wave
from drengine.failover.steps.step import PlannedStep, Site, StepContext, StepKind
from drengine.model.clock import SystemClock

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


def planned(kind: StepKind, settings: Mapping[str, Any], **more: Any) -> PlannedStep:
    return PlannedStep(id=f"{kind.value}:1", kind=kind, title=kind.value, settings=settings, **more)


def context(**more: Any) -> StepContext:
    clock = more.pop("clock", HastyClock())
    site = Site(cast(Any, None), cast(Any, None), {}, lambda *_: "", Path(), clock)
    values: dict[str, Any] = {
        "run": "run-1",
        "mode": Mode.DRILL,
        "runbook": RUNBOOK,
        "site": site,
        "results": {},
        "attempt": 1,
        "options": {},
        "approvals": {},
        "say": lambda _: None,
    }
    return StepContext(**{**values, **more})
