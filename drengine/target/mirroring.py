"""A second copy of the store, kept by the target or by `drengine mirror`: pass after pass, and again after errors."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.options import ACK_OBJECT, S3Options
from drengine.store.mirror import Lag, Mirror, MirrorOptions, Pace, PassReport, Stopped, opened_copy
from drengine.store.store import Store
from drengine.target.config import MirrorSection
from drengine.telemetry.metrics import Family, Kind, Sample

log = logging.getLogger("drengine.mirror")

RETRY_SECONDS = 5.0
"""From a failed pass to the next."""

LAG = Family(
    "target_mirror_lag_seconds",
    Kind.GAUGE,
    "Seconds since the second copy last held all that the store held of the source; grows while it is out of reach.",
    ("source",),
)
BEHIND = Family(
    "target_mirror_behind_bytes",
    Kind.GAUGE,
    "Committed bytes that the second copy lacks, as the mirror last looked.",
    ("source",),
)
WORKING = Family("target_mirror_working", Kind.GAUGE, "1 while the mirror works, 0 while an error keeps it.")
COPIED = Family("target_mirror_copied_bytes_total", Kind.COUNTER, "Bytes that the mirror has copied.")
FAMILIES = (LAG, BEHIND, WORKING, COPIED)


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """What is mirrored whereto, and how.

    Attributes:
        destination: the copy's directory.
        interval_seconds: from the end of a pass to the next.
        bytes_per_second: what is copied at most; 0: no bound.
        options: see MirrorOptions.
        may_make: the copy is made where there is none.
        place: where its segments lie, if not in the directory.
        storage_options: how that is reached; what is mirrored there counts when it is there.
    """

    destination: Path
    interval_seconds: float = 1.0
    bytes_per_second: int = 0
    options: MirrorOptions = field(default_factory=MirrorOptions)
    may_make: bool = True
    place: str = ""
    storage_options: S3Options | None = None

    @staticmethod
    def of(section: MirrorSection, reached: S3Options | None = None) -> MirrorPlan | None:
        """What [mirror] says; None: nothing is to be mirrored. `reached`: how object stores are."""
        if section.destination is None:
            return None
        return MirrorPlan(
            section.destination,
            section.interval,
            section.limit,
            MirrorOptions(hashes=section.hashes),
            may_make=False,
            place=section.place,
            storage_options=reached,
        )


class Mirroring:
    """Mirrors a store until it is told to stop.

    Attributes:
        reason: id of the error that keeps it from mirroring now; ``none``: nothing does.
        lags: how far each source's copy is behind.
        copied_bytes: since it began.
    """

    def __init__(self, origin: Store, plan: MirrorPlan, keks: KeyEncryptionKeys | None, clock: Clock) -> None:
        self.reason = "none"
        self.lags: dict[str, Lag] = {}
        self.copied_bytes = 0
        self._origin = origin
        self._plan = plan
        self._may_make = plan.may_make
        self._keks = keks
        self._clock = clock
        self._began_ns = clock.now_ns()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have it end soon: within a chunk of what is being copied."""
        self._stop.set()

    def gauges(self, sources: Iterable[str]) -> Iterator[Sample]:
        """How far behind the copy is, also of sources that it has never seen."""
        now_ns = self._clock.now_ns()
        for source in sources:
            lag = self.lags.get(source, Lag(0, 0))
            yield Sample(LAG, max(now_ns - (lag.as_of_ns or self._began_ns), 0) / 1e9, (source,))
            yield Sample(BEHIND, lag.bytes, (source,))
        yield Sample(WORKING, float(self.reason == "none"))

    def counts(self) -> Iterator[Sample]:
        """What was copied."""
        yield Sample(COPIED, self.copied_bytes)

    async def follow(self, told: Callable[[PassReport], None] = lambda report: None) -> None:
        """Mirror until `stop`; errors that may pass are waited out.

        Raises:
            DrengineError: one that stays: what lies at the destination is not this store's copy (any more).
        """
        while not self._stop.is_set():
            try:
                await asyncio.to_thread(self._passes, told, once=False)
            except DrengineError as error:
                if error.kind.id != self.reason:
                    log.warning("the mirror waits: %s", error.message, extra={"reason": error.kind.id})
                self.reason = error.kind.id
                if error.kind.final:
                    raise
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
            copy = opened.enter_context(
                opened_copy(
                    self._origin,
                    plan.destination,
                    keks=self._keks,
                    clock=self._clock,
                    may_make=self._may_make,
                    place=plan.place,
                    storage_options=replace(plan.storage_options or S3Options(), ack=ACK_OBJECT),
                )
            )
            self._may_make = False  # what is gone later may be mounted no more
            mirror = Mirror(self._origin, copy, Pace(self._clock, plan.bytes_per_second, self._stop), plan.options)
            opened.callback(mirror.close)
            try:
                while not self._stop.is_set():
                    self.lags = mirror.lags
                    report = mirror.run()
                    self.reason, self.lags = "none", mirror.lags
                    self.copied_bytes += report.bytes
                    told(report)
                    if report.complete and once:
                        return
                    if report.complete:
                        self._stop.wait(plan.interval_seconds)
            except Stopped:
                return
