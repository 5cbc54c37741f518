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

    def since_boot(self) -> tuple[str, int]:
        """A random name of this boot of the host, and nanoseconds since it, also those in which the host slept."""
        return _boot(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        ...


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - as it is read everywhere
        return file.read().strip()


class SystemClock(Clock):
    """The machine's own clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        import asyncio  # noqa: PLC0415 - it takes 20 ms; commands that only read a store have no loop

        await asyncio.sleep(seconds)
