"""A view: all volumes of a source as they were at one position, readable at random.

A view is opened without replaying the log: it stacks the merged layers below its position and resolves
only the rest of its own segment. What it hands out has passed the record's checksum; what cannot be
read is refused with DAMAGED, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import numpy as np

from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint, VolumeGeometry
from drengine.model.sectors import HEAD_BYTES, sector_bytes_of
from drengine.store.errors import DAMAGED, OUT_OF_RANGE, UNKNOWN_VOLUME
from drengine.store.locks import Lock, Position
from drengine.store.views.content import Buffer, Content, Part
from drengine.store.views.extentmap import ZERO_SEGMENT, FlatMap, coalesce, merge
from drengine.store.views.records import Address, Records
from drengine.store.views.stack import StackLayer
from drengine.store.views.windows import (
    WINDOW_BYTES,
    ExtentType,
    Piece,
    Window,
    Windows,
    resolve_window,
)
from drengine.wire.payload import digest

_WINDOW_BYTES = 1 << 34
_READ_BYTES = 4 << 20
WINDOWS_BYTES_MAX = 32 << 20
"""Memory for a view's resolved windows: enough for 200 GiB of large extents, or 6 GiB of scattered 4 KiB writes."""

_ZEROS = bytes(1 << 16)

GATHERED_BYTES = 256 << 10
"""What is gathered comes in buffers of this size, each of which lives as long as a reader holds a part of it."""

Held = tuple[int, int, Buffer | None]
"""Offset, length and bytes (None: zeros) of what is in memory only."""


class View:
    """Reads a source at one position; several threads may read. Close it: it holds a lease."""

    def __init__(
        self,
        records: Records,
        position: Position,
        geometry: tuple[VolumeGeometry, ...],
        stack: list[StackLayer],
        *,
        lease: Lock | None,
        point: RecoveryPoint | None = None,
        on_damage: Callable[[Address, str], None] | None = None,
    ) -> None:
        self.point = point
        self.position = position
        self._records = records
        self._stack = stack
        self._lease = lease
        self._on_damage = on_damage
        self._reported: set[Address] = set()
        self._geometry = {volume.volume: volume for volume in geometry}
        self._windows = Windows(WINDOWS_BYTES_MAX)

    @property
    def geometry(self) -> dict[int, VolumeGeometry]:
        """Volumes and their sizes at this position, by number."""
        return dict(self._geometry)

    def close(self) -> None:
        """Give up the lease; harmless when done twice."""
        if self._lease:
            self._lease.release()
            self._lease = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, volume: int, offset: int, length: int) -> bytes:
        """Bytes of a volume.

        Raises:
            DrengineError: DAMAGED, UNKNOWN_VOLUME, OUT_OF_RANGE, STORE_IO.
        """
        self._check_range(volume, offset, length)
        buffer = bytearray(length)
        self._fill(volume, offset, memoryview(buffer))
        return bytes(buffer)

    def parts(self, volume: int, offset: int, length: int) -> list[Part]:
        """As `read`, as it comes and without a copy: lengths, and bytes that nobody may change (None: zeros)."""
        self._check_range(volume, offset, length)
        return self._parts(volume, offset, length)

    def read_now(self, volume: int, offset: int, length: int) -> Buffer | None:
        """As `read`, but None where that would have to wait, or fails: `read` does it, or says why not. Nobody may
        change what it gives.

        Raises:
            DrengineError: UNKNOWN_VOLUME, OUT_OF_RANGE.
        """
        self._check_range(volume, offset, length)
        held = self._held(volume, offset, length, wait=False)
        if held is None:
            return None
        if len(held) == 1 and held[0][1] == length:
            return bytes(length) if held[0][2] is None else held[0][2]
        number, at = divmod(offset, WINDOW_BYTES)
        window = self._windows.get((volume, number))
        if window is None or at + length > window.length:
            return None
        piece = window.piece(at, at + length)
        if not held and piece.length == length:
            return self._piece_now(piece) if piece.segment else bytes(length)
        buffer = memoryview(bytearray(length))
        _lay(held, offset, buffer)
        for start, size in gaps(held, offset, length):
            begin, end = start - offset, start - offset + size
            while begin < end:
                piece = window.piece(at + begin, at + end)
                if piece.segment:
                    found = self._piece_now(piece)
                    if found is None:
                        return None
                    buffer[begin : begin + piece.length] = found
                begin += piece.length
        return buffer

    def prepare(self, volume: int, offset: int) -> None:
        """Bring the window that holds an offset near: `parts_now` answers from it, until it is written or other things
        need the memory. What fails shows when it is read.
        """
        window, base = self._window_at(volume, offset)
        with suppress(DrengineError):
            if self._records.content(window) is None:
                parts = self._window_parts(volume, window, base, base, window.length)
                self._records.keep_content(window, Content(parts))

    def is_prepared(self, volume: int, offset: int) -> bool:
        """Whether `parts_now` can look into the window that holds an offset."""
        window = self._windows.get((volume, offset // WINDOW_BYTES))
        return window is not None and self._records.content(window) is not None

    def let_go(self, volume: int, offset: int) -> None:
        """The window that holds an offset need not be kept near any more."""
        window = self._windows.get((volume, offset // WINDOW_BYTES))
        if window is not None:
            self._records.forget_content(window)

    def parts_now(self, volume: int, offset: int, length: int) -> list[Part] | None:
        """As `parts`, of a range that was prepared; None where it was not, is not any more, or would have to wait.

        Raises:
            DrengineError: UNKNOWN_VOLUME, OUT_OF_RANGE.
        """
        self._check_range(volume, offset, length)
        held = self._held(volume, offset, length, wait=False)
        if held is None:
            return None
        parts: list[Part] = []
        at, end = offset, offset + length
        while at < end:
            # Only now: what memory did not hold any more when it was looked at shows in the window.
            number, begin = divmod(at, WINDOW_BYTES)
            window = self._windows.get((volume, number))
            content = None if window is None else self._records.content(window)
            if window is None or content is None:
                return None
            stop = min(begin + end - at, window.length)
            parts += content.cut(begin, stop)
            at += stop - begin
        return laid_over(parts, held, offset)

    def sector_bytes(self, volume: int) -> int:
        """The logical sector size of the disk that a volume's content was made on; see drengine.model.sectors."""
        geometry = self.geometry[volume]
        try:
            head = self.read(volume, 0, min(HEAD_BYTES, geometry.size_bytes))
        except DrengineError:
            head = b""  # whoever reads it hears of the damage
        return sector_bytes_of(geometry.identity, head)

    def read_into(self, volume: int, offset: int, buffer: memoryview | bytearray) -> None:
        """Fill a writable buffer of bytes from a volume; see `read`."""
        target = memoryview(buffer).cast("B")
        self._check_range(volume, offset, len(target))
        for at in range(0, len(target), len(_ZEROS)):
            part = target[at : at + len(_ZEROS)]
            part[:] = _ZEROS[: len(part)]
        self._fill(volume, offset, target)

    def extents(self, volume: int, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int, ExtentType]]:
        """(offset, length, type) of consecutive runs; ZERO was written, HOLE never was, both read as zeros."""
        length = self._size(volume) - offset if length is None else length
        self._check_range(volume, offset, length)
        held: tuple[int, int, ExtentType] | None = None
        for at in range(offset, offset + length, _WINDOW_BYTES):
            for run in self._runs(volume, at, min(at + _WINDOW_BYTES, offset + length)):
                if held and held[2] == run[2]:
                    held = (held[0], held[1] + run[1], held[2])
                    continue
                if held:
                    yield held
                held = run
        if held:
            yield held

    def _runs(self, volume: int, start: int, end: int) -> Iterator[tuple[int, int, ExtentType]]:
        """Runs of one type between two offsets; neighbours may be of one type."""
        at = start
        for run_start, run_length, segment, _, _ in merged_types(self._layers(), volume, start, end).lookup(
            start, end - start
        ):
            if run_start > at:
                yield at, run_start - at, "hole"
            yield run_start, run_length, "data" if segment else "zero"
            at = run_start + run_length
        if at < end:
            yield at, end - at, "hole"

    def _layers(self) -> list[StackLayer]:
        """What the view looks through, newest first."""
        return self._stack

    def digests(self, volume: int, offset: int, chunk_bytes: int, count: int) -> bytes:
        """xxh3-128 of `count` chunks, from real reads; a chunk is cut off at the volume's end (beyond it: empty)."""
        size = self._size(volume)
        if offset < 0 or chunk_bytes <= 0 or count < 0:
            raise DrengineError(OUT_OF_RANGE, f"digests of {count} chunks of {chunk_bytes} at {offset}")
        zero_digest = digest(bytes(chunk_bytes))
        found: list[bytes] = []
        batch = max(1, _READ_BYTES // chunk_bytes)
        for first in range(0, count, batch):
            chunks = min(batch, count - first)
            start = min(offset + first * chunk_bytes, size)
            length = min(chunks * chunk_bytes, size - start)
            pieces = self.pieces(volume, start, length)
            if length == chunks * chunk_bytes and all(piece.segment <= 0 for piece in pieces):
                found.append(zero_digest * chunks)
                continue
            data = memoryview(self.read(volume, start, length))
            found += [digest(data[i * chunk_bytes : (i + 1) * chunk_bytes]) for i in range(chunks)]
        return b"".join(found)

    def pieces(self, volume: int, offset: int, length: int) -> list[Piece]:
        """Where the bytes of a range come from, in order, without gaps."""
        return look_up(self._layers(), volume, offset, length)

    def data_windows(self, volume: int, window_bytes: int) -> list[int]:
        """Offsets of the windows in which data may lie, in order: as many as were written, however large the volume is.

        No piece of data is longer than a window.
        """
        touched = [np.empty(0, np.uint64)]
        for layer in self._layers():
            flat = layer.maps.get(volume)
            if flat is not None:
                rows = flat.take(flat.segments != ZERO_SEGMENT)
                touched += [rows.starts, rows.ends - np.uint64(1)]
        numbers = np.unique(np.concatenate(touched) // np.uint64(window_bytes))
        return [number * window_bytes for number in numbers.tolist()]

    def _held(self, volume: int, offset: int, length: int, *, wait: bool = True) -> Sequence[Held] | None:
        """What only memory holds of a range, in order; None when that can't be said without waiting, and may not."""
        return ()

    def _durable_layers(self) -> Sequence[StackLayer]:
        """What lies below `_held`, newest first."""
        return self._stack

    def _window_at(self, volume: int, offset: int) -> tuple[Window, int]:
        """The window that holds an offset, and where it begins."""
        key = (volume, offset // WINDOW_BYTES)
        base = key[1] * WINDOW_BYTES
        window = self._windows.get(key)
        if window is None:
            ticket = self._windows.begin(key)
            window = resolve_window(self._durable_layers(), volume, base, min(base + WINDOW_BYTES, self._size(volume)))
            self._windows.put(key, window, ticket)
        return window, base

    def _fill(self, volume: int, offset: int, target: memoryview) -> None:
        """Put a range into `target`, which is all zeros."""
        for begin in range(0, len(target), WINDOW_BYTES):
            at = begin
            for length, data in self._parts(volume, offset + begin, min(WINDOW_BYTES, len(target) - begin)):
                if data is not None:
                    target[at : at + length] = data
                at += length

    def _parts(self, volume: int, offset: int, length: int) -> list[Part]:
        parts: list[Part] = []
        at, end = offset, offset + length
        while at < end:
            size = min(end, at - at % WINDOW_BYTES + WINDOW_BYTES) - at
            # First: what memory does not hold any more when it is looked at, the window shows.
            held = self._held(volume, at, size) or ()
            window, base = self._window_at(volume, at)
            parts += self._window_parts(volume, window, base, at, size, held)
            at += size
        return parts

    def _window_parts(
        self, volume: int, window: Window, base: int, offset: int, length: int, held: Sequence[Held] = ()
    ) -> list[Part]:
        begin, end = offset - base, offset - base + length
        if window.is_scattered(begin, end):
            # What fails is read one by one: then it shows what is wrong, or that it is not wanted.
            with suppress(DrengineError):
                return laid_over(self._gathered(window, begin, end), held, offset)
        parts: list[Part] = []
        at = begin
        for start, size, data in (*held, (base + end, 0, None)):
            while at < start - base:
                piece = window.piece(at, start - base)
                if piece.segment:
                    where = piece._replace(offset=base + at)
                    parts += [(len(each), each) for each in self._read_piece(volume, where)]
                else:
                    parts.append((piece.length, None))
                at += piece.length
            if size:
                parts.append((size, data))
            at += size
        return parts

    def _gathered(self, window: Window, begin: int, end: int) -> list[Part]:
        """A range of a window in buffers of `GATHERED_BYTES`."""
        places = window.places(begin, end, GATHERED_BYTES)
        sizes = [min(GATHERED_BYTES, end - at) for at in range(begin, end, GATHERED_BYTES)]
        has_data = set((places.begins // GATHERED_BYTES).tolist())
        targets = [memoryview(bytearray(size if number in has_data else 0)) for number, size in enumerate(sizes)]
        self._records.gather(self.position.source, places, targets, GATHERED_BYTES)
        return [(size, target if len(target) else None) for size, target in zip(sizes, targets, strict=True)]

    def _address(self, piece: Piece) -> Address:
        return Address(self.position.source, piece.branch, piece.segment, piece.record)

    def _piece_now(self, piece: Piece) -> memoryview | None:
        try:
            return self._records.read_now(self._address(piece), piece.plain_offset, piece.length)
        except DrengineError:
            return None

    def _read_piece(self, volume: int, piece: Piece) -> list[memoryview]:
        address = self._address(piece)
        try:
            return self._records.parts(address, piece.plain_offset, piece.length)
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
            if self._on_damage and address not in self._reported:
                self._reported.add(address)
                self._on_damage(address, error.message)
            where = self.point.id if self.point else f"{self.position.branch}-{self.position.sequence}"
            raise DrengineError(
                DAMAGED,
                f"{self.position.source} at {where}: volume {volume} cannot be read at "
                f"{piece.offset}+{piece.length}: {error.message}",
            ) from error

    def _size(self, volume: int) -> int:
        found = self._geometry.get(volume)
        if found is None:
            raise DrengineError(UNKNOWN_VOLUME, f"{self.position.source!r} has no volume {volume} here")
        return found.size_bytes

    def _check_range(self, volume: int, offset: int, length: int) -> None:
        size = self._size(volume)
        if offset < 0 or length < 0 or offset + length > size:
            raise DrengineError(OUT_OF_RANGE, f"{offset}+{length} is outside volume {volume} of {size} bytes")


def gaps(held: Sequence[Held], offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts (offset, length) of a range that `held` leaves out."""
    at = offset
    for start, size, _ in held:
        if start > at:
            yield at, start - at
        at = start + size
    if at < offset + length:
        yield at, offset + length - at


def laid_over(parts: list[Part], held: Sequence[Held], offset: int) -> list[Part]:
    """Parts that begin at an offset of a volume, and what memory holds over them."""
    if not held:
        return parts
    buffer = memoryview(bytearray(sum(length for length, _ in parts)))
    at = 0
    for length, data in parts:
        if data is not None:
            buffer[at : at + length] = data
        at += length
    _lay(held, offset, buffer)
    return [(at, buffer)]


def _lay(held: Sequence[Held], offset: int, target: memoryview) -> None:
    for start, size, data in held:
        target[start - offset : start - offset + size] = bytes(size) if data is None else data


def look_up(stack: Sequence[StackLayer], volume: int, offset: int, length: int) -> list[Piece]:
    """Look through layers, newest first, until every byte of the range has been found or was never written."""
    gaps = [(offset, length)] if length else []
    found: list[Piece] = []
    for layer in stack:
        if not gaps:
            break
        flat = layer.maps.get(volume)
        if flat is None:
            continue
        left: list[tuple[int, int]] = []
        for start, size in gaps:
            at = start
            for piece in flat.lookup(start, size):
                if piece.start > at:
                    left.append((at, piece.start - at))
                found.append(Piece(piece.start, piece.length, layer.branch, *piece[2:]))
                at = piece.start + piece.length
            if at < start + size:
                left.append((at, start + size - at))
        gaps = left
    found += [Piece(start, size, 0, -1, 0, 0) for start, size in gaps]
    found.sort()
    return found


def merged_types(stack: Sequence[StackLayer], volume: int, start: int, end: int) -> FlatMap:
    """What is data (segment 1) and what is zeros (segment 0) around a range, joined into few rows."""
    merged = FlatMap.empty()
    for layer in reversed(stack):
        flat = layer.maps.get(volume)
        if flat is None or not len(flat):
            continue
        first = max(0, int(np.searchsorted(flat.starts, np.uint64(start), "right")) - 1)
        last = int(np.searchsorted(flat.starts, np.uint64(end), "left"))
        part = flat.take(slice(first, last))
        # Plain offsets that follow the volume's let any neighbouring data join.
        types = FlatMap(
            part.starts,
            part.lengths,
            (part.segments > 0).astype(np.uint32),
            np.zeros(len(part), dtype=np.uint32),
            part.starts.astype(np.uint32),
        )
        merged = merge(coalesce(types), merged)
    return merged
