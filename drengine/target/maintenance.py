"""What the store does by itself: thinning points, giving back space, scrubbing, gathering figures.

Each task runs on a thread at its own interval; whatever goes wrong is logged, counted and tried again at the next turn,
and never ends the daemon. Ingest goes first: the tasks stand aside while batches wait, but only so long that space
still comes back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.care.looks import Looks
from drengine.store.care.retire import Keeping
from drengine.store.errors import MAINTENANCE_BUSY
from drengine.store.names import segment_name
from drengine.store.store import Store
from drengine.target import metrics as m
from drengine.target.metrics import StoreFigures, TargetMetrics

log = logging.getLogger("drengine.target")

FIGURES_SECONDS = 10.0
FIGURES_REST = 20
"""Gathering them takes a twentieth of the time at most."""
REMOVING = frozenset({"retention", "compaction"})
YIELD_SECONDS = 0.02
YIELDS_MAX = 50


class Stopping(Exception):
    """The daemon stops: a task gives up where it is, which harms nothing."""


@dataclass
class Maintenance:
    """The tasks of one store.

    Attributes:
        keeping: how long a source's points are kept.
        is_ingest_busy: whether batches wait; asked from the tasks' threads.
        on_scrubbed: told when a scrub has ended, on the loop.
    """

    store: Store
    metrics: TargetMetrics
    clock: Clock
    keeping: Callable[[str], Keeping]
    retention_seconds: float
    compaction_seconds: float
    scrub_seconds: float
    is_ingest_busy: Callable[[], bool]
    on_scrubbed: Callable[[], Awaitable[None]]
    _stop: threading.Event = field(default_factory=threading.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Retention and compaction exclude each other in the store: here they queue instead of failing."""
    _looks: Looks = field(default_factory=Looks)

    def start(self) -> None:
        """Begin, on the running loop. The first scrub comes after an interval, the others at once."""
        self.metrics.last_success = dict.fromkeys(("figures", *REMOVING, "scrub"), self.clock.monotonic())
        self._tasks = [
            asyncio.ensure_future(self._repeat("figures", FIGURES_SECONDS, self.gather)),
            asyncio.ensure_future(self._repeat("retention", self.retention_seconds, self.retain)),
            asyncio.ensure_future(self._repeat("compaction", self.compaction_seconds, self.compact)),
            asyncio.ensure_future(self._repeat("scrub", self.scrub_seconds, self.scrub, wait_first=True)),
        ]

    async def stop(self) -> None:
        """End the tasks; one that is at work stops between two records."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run_once(self, task: str, work: Callable[[], None]) -> bool:
        """One turn of a task; whether it succeeded."""
        try:
            await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(work)))
        except Stopping:
            return False
        except DrengineError as error:
            if error.kind is MAINTENANCE_BUSY:
                log.info("maintenance waits for another process", extra={"task": task})
                return False
            log.warning("maintenance failed", extra={"task": task, "reason": error.kind.id, "detail": error.message})
        except Exception:  # a defect in one task must not take the daemon with it
            log.exception("maintenance failed", extra={"task": task})
        else:
            self.metrics.last_success[task] = self.clock.monotonic()
            return True
        self.metrics.count(m.MAINTENANCE_FAILURES, 1, task)
        return False

    def retain(self) -> None:
        """Thin the points."""
        removed = self.store.retain(self.keeping, self.clock.now_ns(), self._looks)
        self.metrics.count(m.RETIRED, len(removed))

    def compact(self) -> None:
        """Give back space."""
        report = self.store.compact(yield_to=self._yield, looks=self._looks)
        self.metrics.count(m.FREED, max(0, report.bytes_freed))
        if report.set_aside and len(report.set_aside) != self.metrics.set_aside:
            log.warning(
                "segment files that the catalogue does not name are set aside",
                extra={"segments": len(report.set_aside), "first": segment_name(*report.set_aside[0])},
            )
        self.metrics.set_aside = len(report.set_aside)
        if report.segments_rewritten or report.segments_removed:
            log.info(
                "space given back",
                extra={
                    "bytes": report.bytes_freed,
                    "segments": report.segments_rewritten + report.segments_removed,
                },
            )

    def scrub(self) -> None:
        """Re-read and re-hash everything."""
        report = self.store.scrub(yield_to=self._yield)
        self.metrics.count(m.SCRUBBED, report.bytes_read)
        self.metrics.count(m.SCRUB_DAMAGE, len(report.records_damaged))
        if report.records_damaged:
            log.error("the scrub found damage", extra={"records": len(report.records_damaged)})

    def gather(self) -> None:
        """Refresh the figures that metrics show."""
        stats = self.store.stats()
        self.metrics.figures = StoreFigures(
            bytes=stats.stored_bytes,
            live_bytes=stats.plain_bytes - sum(source.dead_bytes for source in stats.sources),
            free_bytes=stats.free_bytes,
            points={source.name: source.points for source in stats.sources},
            damaged_ranges={source.name: len(self.store.damaged_ranges(source.name)) for source in stats.sources},
        )

    async def _repeat(self, task: str, seconds: float, work: Callable[[], None], *, wait_first: bool = False) -> None:
        if wait_first:
            await self.clock.sleep(seconds)
        while not self._stop.is_set():
            begun = self.clock.monotonic()
            if task in REMOVING:
                async with self._turn:
                    done = await self.run_once(task, work)
            else:
                done = await self.run_once(task, work)
            if done and task == "scrub":
                await self.on_scrubbed()
            # Figures are for looking at: in a large store they may not take what the work needs.
            rest = FIGURES_REST * (self.clock.monotonic() - begun) if task == "figures" else 0.0
            await self.clock.sleep(max(seconds, rest))

    def _yield(self) -> None:
        """Called between two records of a long task."""
        for _ in range(YIELDS_MAX):
            if self._stop.is_set():
                raise Stopping
            if not self.is_ingest_busy() or self._stop.wait(YIELD_SECONDS):
                break
