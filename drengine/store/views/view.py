"""A view: all volumes of a source as they were at one position, readable at random.

A view is opened without replaying the log: it stacks the merged layers below its position and resolves
only the rest of its own segment. What it hands out has passed the record's checksum; what cannot be
read is refused with DAMAGED, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self

import numpy as np

from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint, VolumeGeometry
from drengine.model.sectors import HEAD_BYTES, sector_bytes_of
from drengine.store.errors import DAMAGED, OUT_OF_RANGE, UNKNOWN_VOLUME
from drengine.store.leases import Lock, Position
from drengine.store.views.extentmap import FlatMap, coalesce, merge
from drengine.store.views.records import Address, Records
from drengine.store.views.stack import StackLayer
from drengine.wire.payload import digest

ExtentType = Literal["data", "zero", "hole"]

_WINDOW_BYTES = 1 << 34
_READ_BYTES = 4 << 20
_ZEROS = bytes(1 << 16)


class Piece(NamedTuple):
    """A run of bytes that comes from one place: plain bytes of a record, zeros (segment 0) or never written (-1)."""

    offset: int
    length: int
    branch: int
    segment: int
    record: int
    plain_offset: int

    @property
    def type(self) -> ExtentType:
        """What a client may be told about it."""
        return "data" if self.segment > 0 else "zero" if self.segment == 0 else "hole"


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

    def _fill(self, volume: int, offset: int, target: memoryview) -> None:
        self._copy([p for p in self.pieces(volume, offset, len(target)) if p.segment > 0], volume, offset, target)

    def _copy(self, pieces: list[Piece], volume: int, offset: int, target: memoryview) -> None:
        for piece in pieces:
            at = piece.offset - offset
            target[at : at + piece.length] = self._bytes(volume, piece)

    def _bytes(self, volume: int, piece: Piece) -> memoryview:
        address = Address(self.position.source, piece.branch, piece.segment, piece.record)
        try:
            return self._records.read(address, piece.plain_offset, piece.length)
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
