"""The one seam for time: production uses the system's clock, tests own theirs."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code may ask of time."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since the epoch; may jump; never used for order or time-outs."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; for durations and time-outs."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        ...


class SystemClock(Clock):
    """The machine's own clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        import asyncio  # noqa: PLC0415 - it takes 20 ms; commands that only read a store have no loop

        await asyncio.sleep(seconds)
