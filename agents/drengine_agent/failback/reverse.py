"""Reverse replication: make a fenced source's disks equal to a point at the target, shipping only what differs.

Per window of a volume: compare hashes (64 KiB blocks, then 4 KiB grains), fetch the ranges that differ as verified
batches, write them, sync, and read them back against their hashes. Where the disks are known to equal an earlier
position of the point's branch, the target's log tells what may differ, and nothing else is read.

Nothing is half right: `before_first_write` is called, and may refuse, before a byte is changed; whoever is interrupted
runs it again, and it converges, because every run compares what is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, Batch, Extent, ExtentKind, iter_table
from drengine.model.points import VolumeGeometry
from drengine.wire.events import Hello, Span
from drengine.wire.payload import digest, verify_batch
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.indexes import Note
from drengine_agent.capture.tracker import Range
from drengine_agent.errors import REVERSE_REFUSED, adoption_hint
from drengine_agent.failback.point_reader import PointReader
from drengine_agent.ship.baseline import TargetBaseline
from drengine_agent.ship.sweep import Sweep
from drengine_agent.ship.uplink import Uplink

WINDOW_BYTES = 256 << 20
"""What is compared before any of it is fetched: bounds what is remembered."""

WINDOW_SPANS = 16384
FETCH_BYTES = 1 << 20
FETCH_SPANS = 1024
FETCHERS = 4
COMPARERS = 8
_T = TypeVar("_T")
_ZERO_BLOCK = bytes(BLOCK_BYTES)


@dataclass(slots=True)
class ReverseReport:
    """What a run did, so far.

    Attributes:
        bytes_compared: of the volumes, by hashes or because the log says that they are equal.
        bytes_written: that differed and were written, zeros included.
        bytes_shipped: payload bytes that came from the target.
        bytes_total: of the volumes.
    """

    bytes_compared: int = 0
    bytes_written: int = 0
    bytes_shipped: int = 0
    bytes_total: int = 0

    @property
    def unmodified(self) -> bool:
        """The disks were equal to the point already."""
        return not self.bytes_written


@dataclass
class Reversal:
    """One run onto one point.

    Attributes:
        volumes: to be written, ours alone.
        uplink, hello: how the point is reached.
        since: position on the point's branch that the disks are known to equal; 0: nothing is known.
        before_first_write: called once, in a thread, before anything is changed.
        all_volumes: of the point; else only those that are given.
    """

    volumes: Mapping[int, Volume]
    uplink: Uplink
    hello: Hello
    since: int = 0
    before_first_write: Callable[[], None] = lambda: None
    all_volumes: bool = True
    report: ReverseReport = field(default_factory=ReverseReport)
    _written: list[Extent] = field(default_factory=list)
    _begun: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> ReverseReport:
        """Make the disks equal; they are when this returns, on stable storage and read back.

        Raises:
            SessionEnded, OSError, EOFError: the session ended: run it again.
            DrengineError: REVERSE_REFUSED: the volumes are not those of the point, or did not keep what was written.
        """
        async with PointReader.opened(self.uplink, self.hello) as reader:
            theirs = reader.session.welcome.geometry
            if not self.all_volumes:
                theirs = tuple(each for each in theirs if each.volume in self.volumes)
            check_geometry(theirs, self.volumes)
            sizes = {volume.volume: volume.size_bytes for volume in theirs}
            self.report.bytes_total = sum(sizes.values())
            for number, size in sorted(sizes.items()):
                windows = self._changed(reader, number, size) if self.since else self._compared(reader, number, size)
                async for spans, looked_at in windows:
                    await self._fetch_all(reader, spans)
                    await _whole(self._settle)
                    self.report.bytes_compared += looked_at
        return self.report

    async def _compared(self, reader: PointReader, number: int, size: int) -> AsyncIterator[tuple[list[Span], int]]:
        """Windows by hashes: what differs in each, and its length."""
        sizes = {number: size}
        baseline = TargetBaseline(reader.ask, sizes)
        for start in range(0, size, WINDOW_BYTES):
            length = min(WINDOW_BYTES, size - start)
            found = _Differences()
            sweep = Sweep(
                volumes=self.volumes,
                sizes=sizes,
                ranges=[Range(number, start, length)],
                baseline=baseline,
                indexes=None,
                hand_over=lambda _: None,
                level=lambda: None,
                plain_bytes_max=FETCH_BYTES,
                make_builder=lambda found=found: found,  # type: ignore[misc]
            )
            await _whole(sweep.run, COMPARERS, cancel=sweep.cancel)
            # What can't be read may still be written.
            found.spans += [Span(part.volume, part.offset, part.length) for part in sweep.report.unread]
            yield joined(found.spans), length

    async def _changed(self, reader: PointReader, number: int, size: int) -> AsyncIterator[tuple[list[Span], int]]:
        """Windows by the target's log."""
        at = 0
        spans: list[Span] = []
        held = 0
        async for span in reader.changed(number, self.since, size):
            spans.append(span)
            held += span.length
            if held >= WINDOW_BYTES or len(spans) >= WINDOW_SPANS:
                end = span.offset + span.length
                yield spans, end - at
                spans, held, at = [], 0, end
        yield spans, size - at

    async def _fetch_all(self, reader: PointReader, spans: Sequence[Span]) -> None:
        if not spans:
            return
        if not self._begun:
            await _whole(self.before_first_write)
            self._begun = True
        groups = iter(grouped(spans))

        async def work() -> None:
            for group in groups:
                batch = await reader.fetch(group)
                await self._limit(len(batch.payload) + len(batch.table))
                self._written += await _whole(self._write, batch)
                self.report.bytes_shipped += len(batch.payload)
                self.report.bytes_written += sum(span.length for span in group)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(FETCHERS):
                    tasks.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _limit(self, length: int) -> None:
        async with self._lock:
            await self.uplink.bandwidth.wait(self.uplink.bandwidth.reserve(length))

    def _write(self, batch: Batch) -> list[Extent]:
        """Write a batch that has proved itself; returns its extents, to be read back."""
        plain = verify_batch(batch)
        extents, at = list(iter_table(batch.table)), 0
        try:
            for extent in extents:
                volume = self.volumes[extent.volume]
                if extent.kind == ExtentKind.DATA:
                    volume.write(extent.offset, plain[at : at + extent.length])
                    at += extent.length
                else:
                    volume.zero(extent.offset, extent.length)
        except OSError as error:
            raise DrengineError(REVERSE_REFUSED, f"volume {volume.name} can't be written: {error.strerror}") from error
        return extents

    def _settle(self) -> None:
        """Sync what was written and read it back from the disk."""
        written, self._written = self._written, []
        try:
            for number in {extent.volume for extent in written}:
                self.volumes[number].sync()
                self.volumes[number].forget_cached()
            for extent in written:
                volume = self.volumes[extent.volume]
                found = volume.read(extent.offset, extent.length)
                wanted = extent.digest if extent.kind == ExtentKind.DATA else digest(_ZERO_BLOCK[: extent.length])
                if digest(found) != wanted:
                    raise DrengineError(
                        REVERSE_REFUSED,
                        f"volume {volume.name} did not keep what was written at {extent.offset}+{extent.length}",
                    )
        except OSError as error:
            raise DrengineError(REVERSE_REFUSED, f"volume {volume.name} failed: {error.strerror}") from error


async def _whole(function: Callable[..., _T], *arguments: Any, cancel: Callable[[], None] = lambda: None) -> _T:
    """Run it in a thread; not even a cancelled caller goes on before it has ended: the volumes may be closed then."""
    working = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        cancel()
        await asyncio.wait({working})
        raise


class _Differences:
    """Takes a sweep's place for batches: where something differs, not what is there."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.notes: list[Note] = []

    def add(
        self, volume: int, offset: int, data: bytes | bytearray | memoryview, *, known: bytes | None = None
    ) -> None:
        self.spans.append(Span(volume, offset, len(data)))

    def zero(self, volume: int, offset: int, length: int, *, discard: bool = False) -> None:
        self.spans.append(Span(volume, offset, length))

    def flush(self) -> None:
        """See BatchBuilder."""


def joined(spans: Iterable[Span]) -> list[Span]:
    """In ascending order, neighbours joined."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and found[-1].volume == span.volume and found[-1].offset + found[-1].length >= span.offset:
            last = found[-1]
            end = max(last.offset + last.length, span.offset + span.length)
            found[-1] = last._replace(length=end - last.offset)
        else:
            found.append(span)
    return found


def grouped(spans: Iterable[Span]) -> Iterable[list[Span]]:
    """Questions of a bounded number of ranges and bytes; long ranges are cut at block boundaries."""
    group: list[Span] = []
    held = 0
    for volume, offset, length in spans:
        at, end = offset, offset + length
        while at < end:
            room = FETCH_BYTES - held
            size = min(end - at, room)
            if at + size < end:
                size = (at + size) // BLOCK_BYTES * BLOCK_BYTES - at
            if size <= 0 or len(group) >= FETCH_SPANS:
                yield group
                group, held = [], 0
                continue
            group.append(Span(volume, at, size))
            held += size
            at += size
    if group:
        yield group


def check_geometry(theirs: Sequence[VolumeGeometry], ours: Mapping[int, Volume]) -> None:
    """Refuse to write one volume's bytes over another's.

    Raises:
        DrengineError: REVERSE_REFUSED, naming what differs.
    """
    wanted = {volume.volume: volume for volume in theirs}
    for number in sorted(wanted.keys() | ours.keys()):
        there, here = wanted.get(number), ours.get(number)
        if there is None or here is None:
            name = (there or here).name  # type: ignore[union-attr]
            where = "the point has no such volume" if there is None else "it is not protected here"
            raise DrengineError(REVERSE_REFUSED, f"volume {number} ({name}): {where}")
        if (there.name, there.identity) != (here.name, here.declared):
            raise DrengineError(
                REVERSE_REFUSED,
                f"volume {number} is {there.name} ({there.identity}) at the point, here {here.name} ({here.declared})",
                hint=adoption_hint(there) if there.name == here.name else None,
            )
        adopted = here.declared != here.identity  # somebody said that this disk replaces that one: it may be larger
        if there.size_bytes > here.size_bytes or (there.size_bytes < here.size_bytes and not adopted):
            raise DrengineError(
                REVERSE_REFUSED,
                f"volume {here.name} has {there.size_bytes} bytes at the point, and {here.size_bytes} here",
                hint="Give the disk the size that it has at the point, or recover that point to another disk.",
            )
