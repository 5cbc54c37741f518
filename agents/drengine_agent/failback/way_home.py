"""From being in charge to being fenced, and back: quiesce, fence, preserve, reverse, release. See docs/failback.md.

Invariants:
- A source that is not in charge serves nobody, whatever was restarted; one that is fenced ships nothing either.
- No byte of the disks is overwritten before what they held is durable at the target, unless somebody forced it.
- While the disks are being made equal to a point the record says so; only a run that ends, or force, takes that back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from drengine.control.dispatch import Tell
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.wire.events import Purpose
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.capture import Capture
from drengine_agent.errors import COMMAND_REFUSED, REVERSE_REFUSED
from drengine_agent.failback.point_reader import session_errors
from drengine_agent.failback.preserve import PreserveReport, preserve
from drengine_agent.failback.reverse import Reversal, ReverseReport
from drengine_agent.fencing.account import how_it_ends, why_it_stands
from drengine_agent.fencing.charge import Charge
from drengine_agent.fencing.fence import SOURCE_FENCED, FenceRecord, Preserved, Standing
from drengine_agent.fencing.possession import possessed
from drengine_agent.ship.pipeline import Progress
from drengine_agent.ship.uplink import Uplink

log = logging.getLogger("drengine.agent")

_T = TypeVar("_T")
_NOT_TO_BE_RELEASED = frozenset({"moved", "spare"})
"""Reasons of a fence that no release ends by mistake."""


class Source(Protocol):
    """What a way home needs of the source that it is about."""

    @property
    def capture(self) -> Capture:
        """Its volumes and their tracker."""
        ...

    @property
    def generation(self) -> int:
        """That it ships under."""
        ...

    @property
    def branch(self) -> int:
        """That this generation writes."""
        ...

    def take_generation(self, generation: int, branch: int) -> None:
        """Ship under this generation from now on, also over restarts; DrengineError when that can't be kept."""
        ...

    def go_on(self) -> None:
        """Nothing keeps it from shipping any more."""
        ...

    async def cut(self, label: str) -> int:
        """Cut a point, and return its position once it is durable; DrengineError when that can't be had."""
        ...


class WayHome:
    """What is done about one source's standing. Its methods belong to the agent's event loop."""

    def __init__(self, source: Source, charge: Charge, uplink: Uplink, *, vouched: bool) -> None:
        """`vouched`: somebody vouches for the stillness of volumes whose file system knows no leases."""
        self.fence = charge.fence
        self._source = source
        self._uplink = uplink
        self._clock = uplink.clock
        self._changing = charge.changing
        self._vouched = vouched
        self._busy = ""
        self._closing = False
        self._task: asyncio.Task[Any] | None = None
        self._work: dict[str, Any] = {}

    def status(self) -> dict[str, object]:
        """For `status`."""
        record = self.fence.record
        return {
            "standing": record.standing.value,
            "fence_reason": record.reason,
            "fence_run": record.run,
            "fence_by": record.by,
            "fence_since_ns": record.since_ns,
            "why": why_it_stands(record),
            "release": how_it_ends(record),
            "reversing": record.reversing,
            "equals": record.equals,
            "replaced": record.replaced,
            "preserved": f"{record.preserved.branch}-{record.preserved.sequence}" if record.preserved else "",
            "way_home": self._busy,
            **self._work,
        }

    async def quiesce(self, label: str, *, run: str = "", by: str = "") -> dict[str, Any]:
        """For a planned switch: stop serving in peace, and wait until a last point is durable.

        Raises:
            DrengineError: COMMAND_REFUSED, SOURCE_FENCED; the source then serves as before.
        """
        self._require_shipping()
        return await self._alone("quiesce", self._quiesce(label, run, by))

    async def preserve(self, branch: int, generation: int, tell: Tell) -> PreserveReport:
        """See Agent.preserve."""
        self._require_fenced("preserve")
        return await self._alone("preserve", self._preserve(branch, generation, tell))

    async def reverse(self, point: str, tell: Tell, *, force: bool) -> ReverseReport:
        """See Agent.reverse."""
        self._require_fenced("reverse")
        return await self._alone("reverse", self._reverse(point, tell, force=force))

    async def release(self, generation: int, branch: int, *, force: bool) -> None:
        """See Agent.release."""
        await self._alone("release", self._release(generation, branch, force=force))

    async def _release(self, generation: int, branch: int, *, force: bool) -> None:
        source, record = self._source, self.fence.record
        if record.reason in _NOT_TO_BE_RELEASED and not force:
            raise DrengineError(SOURCE_FENCED, f"{why_it_stands(record)}: it is not released", hint=how_it_ends(record))
        if record.reversing and not force:
            raise DrengineError(
                REVERSE_REFUSED,
                f"the disks are on the way to point {record.reversing}: they are neither what they were nor that point",
                hint="Run the reversal again until it ends; it goes on where it is.",
            )
        if record.replaced and not force:
            raise DrengineError(
                REVERSE_REFUSED,
                f"the disk of {', '.join(record.replaced)} was replaced and holds nothing of this source yet",
                hint="Bring its content home first: `drengine failback RUNBOOK` writes all of it. If it has the right "
                "content already: `drengine-agent release --force`.",
            )
        if generation < source.generation and not force:
            ours = source.generation
            raise DrengineError(SOURCE_FENCED, f"generation {generation} is over, this source is at {ours}")
        await asyncio.to_thread(source.take_generation, generation, branch)
        if record.equals or record.reversing:
            # The next session proves that nothing differs, and ships nothing.
            await asyncio.to_thread(source.capture.tracker.request_rescan, "reversed")
        async with self._changing:
            await asyncio.to_thread(self.fence.replace, FenceRecord())
            await asyncio.to_thread(source.capture.serve)
            source.go_on()
        log.warning("this source is in charge again, under generation %d", generation)

    async def close(self) -> None:
        """Break off what is under way, and return when it has let go of the volumes."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _alone(self, verb: str, work: Coroutine[Any, Any, _T]) -> _T:
        """One thing at a time; whoever stops waiting for it ends it."""
        if self._busy or self._closing:
            work.close()
            raise DrengineError(COMMAND_REFUSED, f"the agent is busy: {self._busy or 'stopping'}")
        self._busy = verb
        task = self._task = asyncio.create_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            if self._closing:
                raise DrengineError(COMMAND_REFUSED, f"the agent stops: {verb} was broken off") from None
            raise
        finally:
            self._task = None
            self._busy, self._work = "", {}

    async def _quiesce(self, label: str, run: str, by: str) -> dict[str, Any]:
        source, before = self._source, self.fence.record
        async with self._changing:
            self._require_shipping()
            await asyncio.to_thread(source.capture.stop_serving, cut=False)
        try:
            async with self._changing:
                self._require_shipping()
                now_ns, standing = self._clock.now_ns(), Standing.QUIESCED
                record = FenceRecord(standing, source.generation, "quiesced", run=run, by=by, since_ns=now_ns)
                await asyncio.to_thread(self.fence.replace, record)
            sequence = await source.cut(label)
        except BaseException:
            async with self._changing:
                if before.standing is Standing.IN_CHARGE and self.fence.may_ship:
                    await asyncio.to_thread(self.fence.replace, before)
                    await asyncio.to_thread(source.capture.serve)
            raise
        return {"sequence": sequence, "point": f"{source.branch}-{sequence}"}

    async def _preserve(self, branch: int, generation: int, tell: Tell) -> PreserveReport:
        record = self.fence.record
        if record.preserved and record.preserved.branch == branch:
            return PreserveReport(branch, record.preserved.sequence, 0, 0)
        progress = Progress()
        async with self._possessed() as volumes:
            if record.reversing or (record.equals and record.stamps == _stamps(volumes)):
                # What they held was preserved, or given up, before the target's bytes took its place.
                return PreserveReport(branch, 0, 0, 0)
            ours = {number: volume for number, volume in volumes.items() if volume.name not in record.replaced}
            if not ours:
                return PreserveReport(branch, 0, 0, 0)  # nothing that this source wrote is left
            told = lambda: {  # noqa: E731
                "compared_bytes": progress.sweep.scanned_bytes,
                "total_bytes": progress.sweep_bytes,
            }
            async with self._telling(tell, told), session_errors():
                report = await preserve(
                    ours,
                    self._uplink,
                    self._uplink.hello(generation, Purpose.PRESERVE, branch),
                    progress=progress,
                )
            kept = msgspec.structs.replace(self.fence.record, preserved=Preserved(branch, report.sequence))
            await asyncio.to_thread(self.fence.replace, kept)
        return report

    async def _reverse(self, point: str, tell: Tell, *, force: bool) -> ReverseReport:
        source, record = self._source, self.fence.record
        at = PointSelector.parse(point)
        if at.branch is None or at.sequence is None:
            raise DrengineError(REVERSE_REFUSED, f"a point is named by its id, not {point[:60]!r}")
        async with self._possessed() as volumes:
            untouched = record.stamps == _stamps(volumes)
            lost = record.replaced and all(volume.name in record.replaced for volume in volumes.values())
            if not (record.preserved or record.reversing or lost or (record.equals and untouched) or force):
                raise DrengineError(
                    REVERSE_REFUSED,
                    "what the disks hold has not been preserved at the target",
                    hint="Preserve it first, or give it up with force.",
                )
            run = Reversal(
                volumes,
                self._uplink,
                self._uplink.hello(source.generation, Purpose.REVERSE, at.branch, sequence=at.sequence),
                since=_known_position(record, at.branch, at.sequence) if untouched else 0,
                before_first_write=lambda: self._mark_reversing(point),
            )
            async with self._telling(tell, lambda: _told(run.report)), session_errors():
                report = await run.run()
            equal = msgspec.structs.replace(
                self.fence.record, reversing="", equals=point, stamps=_stamps(volumes), preserved=None, replaced=[]
            )
            await asyncio.to_thread(self.fence.replace, equal)
        return report

    def _require_shipping(self) -> None:
        if not self.fence.may_ship:
            raise DrengineError(SOURCE_FENCED, "the source is fenced: it has no last point to give")

    def _require_fenced(self, verb: str) -> None:
        if self.fence.record.standing is not Standing.FENCED:
            raise DrengineError(SOURCE_FENCED, f"the source is in charge: fence it before you {verb}")

    def _mark_reversing(self, point: str) -> None:
        """Before a byte is changed: durable, and no tracker believes what it knew."""
        self._source.capture.tracker.request_rescan("reversed")
        marked = msgspec.structs.replace(self.fence.record, reversing=point, equals="", stamps={}, preserved=None)
        self.fence.replace(marked)

    @contextlib.asynccontextmanager
    async def _possessed(self) -> AsyncIterator[dict[int, Volume]]:
        source = self._source
        await asyncio.to_thread(source.capture.check)
        with contextlib.ExitStack() as stack:
            held = possessed(source.capture.volumes, vouched=self._vouched)
            volumes = await asyncio.to_thread(stack.enter_context, held)
            yield volumes

    @contextlib.asynccontextmanager
    async def _telling(self, tell: Tell, work: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
        """Say how far it has come, now and then and at the end."""

        async def keep_telling() -> None:
            while True:
                self._work = work()
                tell(self._work)
                await self._clock.sleep(1.0)

        telling = asyncio.create_task(keep_telling())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


def _stamps(volumes: Mapping[int, Volume]) -> dict[str, str]:
    """Texts that change when anybody writes to the volumes."""
    return {volume.name: volume.stamp() for volume in volumes.values()}


def _known_position(record: FenceRecord, branch: int, sequence: int) -> int:
    """The position on this branch, at or before `sequence`, that the disks equal; 0 when nothing is known."""
    if not record.equals or record.reversing:
        return 0
    at = PointSelector.parse(record.equals)
    return at.sequence if at.branch == branch and at.sequence is not None and at.sequence <= sequence else 0


def _told(report: ReverseReport) -> dict[str, Any]:
    return {
        "compared_bytes": report.bytes_compared,
        "total_bytes": report.bytes_total,
        "shipped_bytes": report.bytes_shipped,
        "written_bytes": report.bytes_written,
    }
