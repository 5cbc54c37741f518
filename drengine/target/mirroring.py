"""A second copy of the store, kept by the target or by `drengine mirror`: pass after pass, and again after errors."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.mirror import Lag, Mirror, MirrorOptions, Pace, PassReport, Stopped, opened_copy
from drengine.store.store import Store

log = logging.getLogger("drengine.mirror")

RETRY_SECONDS = 5.0
"""From a failed pass to the next."""


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """What is mirrored whereto, and how.

    Attributes:
        destination: the copy's directory.
        interval_seconds: from the end of a pass to the next.
        bytes_per_second: what is copied at most; 0: no bound.
    """

    destination: Path
    interval_seconds: float = 1.0
    bytes_per_second: int = 0
    options: MirrorOptions = field(default_factory=MirrorOptions)


class Mirroring:
    """Mirrors a store until it is told to stop.

    Attributes:
        reason: id of the error that keeps it from mirroring now; ``none``: nothing does.
        lags: how far each source's copy is behind.
    """

    def __init__(self, origin: Store, plan: MirrorPlan, keks: KeyEncryptionKeys | None, clock: Clock) -> None:
        self.reason = "none"
        self.lags: dict[str, Lag] = {}
        self._origin = origin
        self._plan = plan
        self._keks = keks
        self._clock = clock
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have it end soon: within a chunk of what is being copied."""
        self._stop.set()

    async def follow(self, told: Callable[[PassReport], None] = lambda report: None) -> None:
        """Mirror until `stop`; errors that may pass are waited out.

        Raises:
            DrengineError: one that stays: what lies at the destination is not this store's copy (any more).
        """
        while not self._stop.is_set():
            try:
                await asyncio.to_thread(self._passes, told, once=False)
            except DrengineError as error:
                if error.kind.final:
                    raise
                if error.kind.id != self.reason:
                    log.warning("the mirror waits: %s", error.message, extra={"reason": error.kind.id})
                self.reason = error.kind.id
                await asyncio.to_thread(self._stop.wait, RETRY_SECONDS)

    def once(self) -> PassReport:
        """Mirror until the copy holds all that the store held when the last pass began; what it did in all.

        Raises:
            DrengineError: whatever ends it.
        """
        total = PassReport()

        def add(report: PassReport) -> None:
            total.bytes += report.bytes
            total.segments += report.segments
            total.damaged.extend(each for each in report.damaged if each not in total.damaged)
            total.complete = report.complete

        self._passes(add, once=True)
        return total

    def _passes(self, told: Callable[[PassReport], None], *, once: bool) -> None:
        plan = self._plan
        with ExitStack() as opened:
            copy = opened.enter_context(opened_copy(self._origin, plan.destination, keks=self._keks, clock=self._clock))
            mirror = Mirror(self._origin, copy, Pace(self._clock, plan.bytes_per_second, self._stop), plan.options)
            opened.callback(mirror.close)
            try:
                while not self._stop.is_set():
                    self.lags = mirror.lags
                    report = mirror.run()
                    self.reason, self.lags = "none", mirror.lags
                    told(report)
                    if report.complete and once:
                        return
                    if report.complete:
                        self._stop.wait(plan.interval_seconds)
            except Stopped:
                return
