"""A clock that a test owns."""

from __future__ import annotations

import asyncio

from drengine.model.clock import Clock


class ManualClock(Clock):
    """A clock that only its owner moves; `sleep` returns when `advance` has reached the moment."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._monotonic = 0.0
        self.boot = "a boot"
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic(self) -> float:
        return self._monotonic

    def since_boot(self) -> tuple[str, int]:
        return self.boot, int(self._monotonic * 1e9)

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        """Move both clocks and wake who is due."""
        self._monotonic += seconds
        self._now_ns += int(seconds * 1e9)
        due = [future for moment, future in self._sleepers if moment <= self._monotonic]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > self._monotonic]
        for future in due:
            if not future.done():
                future.set_result(None)

    def jump_wall(self, seconds: float) -> None:
        """Move only the wall clock, as NTP or an operator would (faults 13 and 61)."""
        self._now_ns += int(seconds * 1e9)
