"""Sweeping: read ranges of volumes, find what the target doesn't have, hand it on as batches. Runs in worker threads.

Each worker owns a buffer of one slab and a batch builder, and takes the next slab when it has done one, so reading,
hashing and compressing overlap on all cores (the C calls release the GIL). A finished batch is handed over in exchange
for a permit; when all are out the worker waits: memory is bounded by workers + permits, whatever the network does.

A slab whose hashes all match costs one read, sixteen hashes and one comparison. Blocks that differ are compared by
grain. A block that can't be read is reported, never invented, and the other blocks go on (fault 26).
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, GRAIN_BYTES
from drengine_agent.capture.index import (
    DIGEST_BYTES,
    GRAIN_DIGEST_BYTES,
    SLAB_BYTES,
    BlockHashes,
    block_digest,
    grain_digest,
    hash_block,
)
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.tracker import Range, Readable
from drengine_agent.ship.baseline import Baseline
from drengine_agent.ship.batches import BatchBuilder, Notes, Outgoing
from drengine_agent.ship.handover import Stopped


class Builder(Protocol):
    """What a sweep's workers give their pieces to."""

    notes: Notes

    def add(
        self, volume: int, offset: int, data: bytes | bytearray | memoryview, *, known: bytes | None = None
    ) -> None:
        """See BatchBuilder."""
        ...

    def zero(self, volume: int, offset: int, length: int, *, discard: bool = False) -> None:
        """See BatchBuilder."""
        ...

    def flush(self) -> None:
        """See BatchBuilder."""
        ...


@dataclass(slots=True)
class SweepReport:
    """What a sweep did. `unread` must be swept again before a point may be cut."""

    scanned_bytes: int = 0
    read_bytes: int = 0
    hole_bytes: int = 0
    unread: list[Range] = field(default_factory=list)
    read_error: str = ""


@dataclass(slots=True)
class Sweep:
    """One pass over ranges of volumes.

    Attributes:
        volumes: what to read, by number.
        sizes: their sizes in bytes.
        ranges: where; without a baseline exactly these bytes are shipped, with one whole slabs are compared.
        baseline: what the target has; None ships everything.
        indexes: indexes to keep up, or None. Blocks are forgotten here before they are handed over; blocks that the
            target turns out to have already are remembered at once, because it has nothing of this sweep's in
            flight at a block that wasn't compared yet.
        hand_over: takes a finished batch; may block.
        level: the compression level to use now.
        plain_bytes_max: the session's limit for one batch.
        make_builder: gives each worker what takes the pieces in place of a BatchBuilder; `hand_over` and what
            follows it are of no use then.
    """

    volumes: Mapping[int, Readable]
    sizes: Mapping[int, int]
    ranges: Iterable[Range]
    baseline: Baseline | None
    indexes: HashIndexes | None
    hand_over: Callable[[Outgoing], None]
    level: Callable[[], int | None]
    plain_bytes_max: int
    make_builder: Callable[[], Builder] | None = None
    report: SweepReport = field(default_factory=SweepReport)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, workers: int) -> SweepReport:
        """Sweep with so many threads; blocks until all is handed over.

        Raises:
            Stopped: `cancel` was called.
            Exception: whatever a worker met that is not a read error; the others are cancelled.
        """
        pieces = self._pieces() if self.baseline is None else self._slabs()
        with ThreadPoolExecutor(workers, thread_name_prefix="sweep") as pool:
            running = [pool.submit(self._work, pieces) for _ in range(workers)]
            failures = [error for future in running if (error := future.exception()) is not None]
        for error in sorted(failures, key=lambda error: isinstance(error, Stopped)):
            raise error
        return self.report

    def cancel(self) -> None:
        """Make `run` end soon; from any thread."""
        self._cancelled.set()

    def _batch_builder(self) -> Builder:
        return BatchBuilder(self.plain_bytes_max, self.level, self.hand_over)

    def _work(self, pieces: Iterator[_Piece]) -> None:
        buffer = memoryview(mmap.mmap(-1, SLAB_BYTES))  # direct reads need it aligned
        builder = self.make_builder() if self.make_builder else self._batch_builder()
        try:
            while True:
                with self._lock:
                    piece = next(pieces, None)
                    if piece is None:
                        break
                    self.report.scanned_bytes += piece.length
                self._sweep(piece, buffer[: piece.length], builder)
            builder.flush()
        except BaseException:
            self.cancel()
            raise

    def _sweep(self, piece: _Piece, view: memoryview, builder: Builder) -> None:
        if self._cancelled.is_set():
            raise Stopped
        unread: set[int] = set()
        if piece.hole:
            if self.baseline is None:
                builder.zero(piece.volume, piece.offset, piece.length)
                return
            view = _ZERO_SLAB[: piece.length]
        else:
            unread = self._read(piece, view)
        if self.baseline is None:
            if self.indexes is not None:
                first = piece.offset % SLAB_BYTES // BLOCK_BYTES
                last = (piece.offset + piece.length - 1) % SLAB_BYTES // BLOCK_BYTES
                self.indexes.forget(piece.volume, piece.offset // SLAB_BYTES, list(range(first, last + 1)))
            for at in range(0, piece.length, BLOCK_BYTES):
                if at not in unread:
                    builder.add(piece.volume, piece.offset + at, view[at : at + BLOCK_BYTES])
        else:
            self._compare(piece, view, self.baseline, unread, builder)

    def _read(self, piece: _Piece, view: memoryview) -> set[int]:
        """Fill `view`; returns where in it blocks could not be read."""
        try:
            self.volumes[piece.volume].read_into(piece.offset, view)
        except (OSError, DrengineError) as error:
            unread = self._read_by_block(piece, view, error)
        else:
            unread = set()
        with self._lock:
            self.report.read_bytes += piece.length
        return unread

    def _read_by_block(self, piece: _Piece, view: memoryview, error: Exception) -> set[int]:
        unread = set()
        for at in range(0, piece.length, BLOCK_BYTES):
            part = view[at : at + BLOCK_BYTES]
            try:
                self.volumes[piece.volume].read_into(piece.offset + at, part)
            except (OSError, DrengineError):
                unread.add(at)
                with self._lock:
                    self.report.unread.append(Range(piece.volume, piece.offset + at, len(part)))
                    self.report.read_error = str(error)
        return unread

    def _compare(self, piece: _Piece, view: memoryview, baseline: Baseline, unread: set[int], builder: Builder) -> None:
        volume, page = piece.volume, piece.offset // SLAB_BYTES
        parts = [view[at : at + BLOCK_BYTES] for at in range(0, piece.length, BLOCK_BYTES)]
        mine = list(map(block_digest, parts))
        expected = baseline.expected(volume, page, piece.length)
        if not expected.unknown and b"".join(mine) == expected.digests:
            return
        differing = [
            block
            for block, part in enumerate(mine)
            if part != expected.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
            and block * BLOCK_BYTES not in unread
        ]
        equal = expected.unknown.difference(differing, (at // BLOCK_BYTES for at in unread))
        if self.indexes is not None and equal:
            self.indexes.remember([(volume, page, block, hash_block(parts[block], mine[block])) for block in equal])
        noted = self.indexes is not None
        entries = [hash_block(parts[block], mine[block]) if noted else _NO_ENTRY for block in differing]
        runs = [
            (block, start, end)
            for block, entry in zip(differing, entries, strict=True)
            for start, end in self._differing_runs(
                baseline, volume, page, block, parts[block], entry.grains, known=block not in expected.unknown
            )
        ]
        if self.indexes is not None and differing:
            self.indexes.forget(volume, page, differing)
        for block, start, end in runs:
            part = parts[block][start:end]
            digest = mine[block] if len(part) == len(parts[block]) else None
            builder.add(volume, piece.offset + block * BLOCK_BYTES + start, part, known=digest)
        if noted:
            builder.notes.extend((volume, page, *each) for each in zip(differing, entries, strict=True))

    def _differing_runs(
        self, baseline: Baseline, volume: int, page: int, block: int, part: memoryview, grains: bytes, *, known: bool
    ) -> list[tuple[int, int]]:
        """Where in a differing block grains differ, neighbours joined; all of it when no grain tells."""
        length = len(part)
        answer = baseline.grains(volume, page, block, length, known=known)
        runs: list[tuple[int, int]] = []
        if answer is not None:
            theirs, width = answer
            mine = grains
            if not mine or width != GRAIN_DIGEST_BYTES:
                digest = grain_digest if width == GRAIN_DIGEST_BYTES else block_digest
                mine = b"".join([digest(part[at : at + GRAIN_BYTES]) for at in range(0, length, GRAIN_BYTES)])
            for number, at in enumerate(range(0, length, GRAIN_BYTES)):
                end = min(at + GRAIN_BYTES, length)
                if mine[number * width : (number + 1) * width] != theirs[number * width : (number + 1) * width]:
                    if runs and runs[-1][1] == at:
                        runs[-1] = (runs[-1][0], end)
                    else:
                        runs.append((at, end))
        return runs or [(0, length)]

    def _pieces(self) -> Iterator[_Piece]:
        """Exactly the ranges, cut at slab boundaries."""
        for wanted in self.ranges:
            at, end = wanted.offset, wanted.offset + wanted.length
            while at < end:
                length = min(end - at, SLAB_BYTES - at % SLAB_BYTES)
                yield _Piece(wanted.volume, at, length, hole=False)
                at += length

    def _slabs(self) -> Iterator[_Piece]:
        """Every slab that a range touches, once, in order; those that are holes are marked."""
        for volume, first, end in _slab_spans(self.ranges):
            size = self.sizes[volume]
            start, stop = first * SLAB_BYTES, min(end * SLAB_BYTES, size)
            for window in range(start, stop, _WINDOW_BYTES):
                window_bytes = min(_WINDOW_BYTES, stop - window)
                extents = self.volumes[volume].data_extents(window, window_bytes)
                data = [(at, at + length) for at, length, is_data in extents if is_data]
                yield from self._window_slabs(volume, window, window + window_bytes, data)

    def _window_slabs(self, volume: int, start: int, stop: int, data: list[tuple[int, int]]) -> Iterator[_Piece]:
        position = 0
        for offset in range(start, stop, SLAB_BYTES):
            length = min(SLAB_BYTES, stop - offset)
            while position < len(data) and data[position][1] <= offset:
                position += 1
            hole = position == len(data) or data[position][0] >= offset + length
            if hole:
                self.report.hole_bytes += length
            if not (hole and self.baseline is not None and self.baseline.zeros_everywhere):
                yield _Piece(volume, offset, length, hole=hole)


@dataclass(frozen=True, slots=True)
class _Piece:
    volume: int
    offset: int
    length: int
    hole: bool


_NO_ENTRY = BlockHashes(b"", b"")
_WINDOW_BYTES = 1 << 30
_ZERO_SLAB = memoryview(bytes(SLAB_BYTES))


def _slab_spans(ranges: Iterable[Range]) -> list[tuple[int, int, int]]:
    """(volume, first slab, end slab) of the ranges, sorted and merged."""
    spans: list[tuple[int, int, int]] = []
    for wanted in sorted(ranges, key=lambda wanted: (wanted.volume, wanted.offset)):
        first = wanted.offset // SLAB_BYTES
        end = -(-(wanted.offset + wanted.length) // SLAB_BYTES)
        if spans and spans[-1][0] == wanted.volume and first <= spans[-1][2]:
            spans[-1] = (wanted.volume, spans[-1][1], max(end, spans[-1][2]))
        elif end > first:
            spans.append((wanted.volume, first, end))
    return spans
