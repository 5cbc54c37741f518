"""A branch that can be written at random: a view of its head, and what was written since laid over it.

Writes are packed into records of about a megabyte, appended to the branch's log and made durable by `flush`. What is
written is read back at once. Until it is durable its plain bytes stay in memory (bounded), so that a full disk loses
nothing: the next flush appends it again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, Batch, Extent, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint
from drengine.store.context import StoreContext
from drengine.store.errors import STORE_FULL
from drengine.store.leases import Position
from drengine.store.log.writer import Appended, BranchWriter, Committed
from drengine.store.segments.format import parse_geometry
from drengine.store.segments.rowset import RowSet
from drengine.store.views.extentmap import FlatMap, merge
from drengine.store.views.stack import StackLayer, resolve_rows
from drengine.store.views.view import Piece, View
from drengine.wire.payload import cut_blocks, data_extent, make_batch

_MEMORY = 0xFFFFFFFF
"""Segment number that stands for plain bytes not durable yet; the record number says which."""

_ROWS_MAX = 4096
_ROW_COST_BYTES = 64
_LEVEL = 1
_TAIL_RATIO = 2


class _Pending:
    """Writes in order that are not durable yet: first a buffer that grows, then one record."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows: list[tuple[int, int, int, int]] = []
        """(volume, kind, offset, length)."""
        self.plain = bytearray()
        self.batch: Batch | None = None
        self.place: Appended | None = None
        self._maps: dict[int, FlatMap] | None = None

    @property
    def cost_bytes(self) -> int:
        return len(self.plain) + _ROW_COST_BYTES * len(self.rows)

    def add(self, volume: int, kind: ExtentKind, offset: int, data: memoryview | None, length: int) -> None:
        self.rows.append((volume, kind, offset, length))
        if data is not None:
            self.plain += data
        self._maps = None

    def maps(self) -> dict[int, FlatMap]:
        """Where the newest bytes of each volume are, in memory."""
        if self._maps is None:
            self._maps = self.resolved(Appended(_MEMORY, self.number))
        return self._maps

    def resolved(self, place: Appended) -> dict[int, FlatMap]:
        """The same as they will be, or are, in the log."""
        columns = np.array(self.rows, dtype=np.uint64).reshape(-1, 4)
        carries = columns[:, 1] == ExtentKind.DATA
        carried = np.where(carries, columns[:, 3], 0)
        rows = RowSet(
            volume=columns[:, 0].astype(np.uint32),
            kind=columns[:, 1].astype(np.uint8),
            start=columns[:, 2],
            length=columns[:, 3],
            record=np.full(len(columns), place.record, dtype=np.uint32),
            plain_offset=(np.cumsum(carried) - carried).astype(np.uint32),
            row=np.arange(len(columns)),
        )
        return resolve_rows(place.segment, rows)

    def pack(self) -> Batch:
        """As a batch, hashed and encoded, made once."""
        if self.batch is None:
            plain, at, extents = memoryview(bytes(self.plain)), 0, []
            for volume, kind, offset, length in self.rows:
                if kind == ExtentKind.DATA:
                    extents.append(data_extent(volume, offset, plain[at : at + length]))
                    at += length
                else:
                    extents.append(Extent(volume, kind, offset, length))
            self.batch = make_batch(extents, plain, _LEVEL)
        return self.batch


class WritableView(View):
    """Reads and writes a branch as its only writer. Threads may share it."""

    def __init__(self, context: StoreContext, writer: BranchWriter) -> None:
        durable = writer.durable
        position = Position(writer.source, writer.branch, durable.sequence)
        row = context.catalogue.branch(writer.source, writer.branch)
        geometry = parse_geometry(row.geometry)
        stack = context.layers.stack(position.source, position.branch, position.sequence, geometry)
        super().__init__(context.records, position, geometry, stack, lease=None)
        self._context = context
        self._writer = writer
        self._epoch = secrets.token_bytes(16)
        self._lock = threading.RLock()
        self._buffer = _Pending(0)
        self._packed: list[_Pending] = []
        self._tail: list[dict[int, FlatMap]] = []
        """Maps of durable records that `_stack` does not show yet, oldest first."""
        self._tail_segment = 0
        self._must_replay = False
        self._uncut = context.catalogue.point(writer.source, writer.branch, durable.sequence) is None and (
            durable.sequence > row.base_sequence
        )

    @property
    def is_uncut(self) -> bool:
        """Whether anything was written since the newest point on the branch."""
        with self._lock:
            return self._uncut or bool(self._buffer.rows or self._packed)

    @property
    def branch(self) -> int:
        """Number of the branch."""
        return self._writer.branch

    def close(self) -> None:
        """Let the branch go. What was not flushed is gone, as on any disk."""
        with self._lock:
            self._writer.close()
        super().close()

    def write(self, volume: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes; durable after `flush`.

        Raises:
            DrengineError: OUT_OF_RANGE, UNKNOWN_VOLUME, FENCED, STORE_FULL, STORE_IO; then nothing was written.
        """
        view = memoryview(data).cast("B")
        self._check_range(volume, offset, len(view))
        with self._lock:
            self._make_room(len(view))
            for at, part, is_zero in cut_blocks(offset, view):
                kind = ExtentKind.ZERO if is_zero else ExtentKind.DATA
                self._buffer.add(volume, kind, at, None if is_zero else part, len(part))
                self._pack_when_full()

    def zero(self, volume: int, offset: int, length: int) -> None:
        """Make a range read as zeros; see `write`."""
        self._clear(volume, ExtentKind.ZERO, offset, length)

    def discard(self, volume: int, offset: int, length: int) -> None:
        """Say that a range is not needed; it reads as zeros. See `write`."""
        self._clear(volume, ExtentKind.DISCARD, offset, length)

    def flush(self) -> None:
        """Make everything written so far durable.

        Raises:
            DrengineError: FENCED, STORE_IO; STORE_FULL: what was written is kept and the next flush tries again.
        """
        with self._lock:
            self._commit()

    def cut(self, kind: PointKind, label: str = "") -> RecoveryPoint:
        """Flush, and make a recovery point of what was written so far; see `flush`."""
        with self._lock:
            self._append_all()
            sequence = self._writer.appended_sequence + 1
            cut = Cut(self._context.clock.now_ns(), kind, label)
            with self._replaying_when_full():
                self._writer.append_cut(sequence, Mark(self._epoch, sequence), cut, generation=self._writer.generation)
            point = self._commit().points[-1]
            self._uncut = False
        return point

    def pieces(self, volume: int, offset: int, length: int) -> list[Piece]:
        """See View; bytes not durable yet appear as those of segment 2**32 - 1."""
        with self._lock:
            return super().pieces(volume, offset, length)

    def _layers(self) -> list[StackLayer]:
        with self._lock:
            newest = [self._buffer, *reversed(self._packed)]
            stack = [StackLayer(self.branch, pending.maps()) for pending in newest]
            stack += [StackLayer(self.branch, maps) for maps in reversed(self._tail)]
            return [*stack, *self._stack]

    def _fill(self, volume: int, offset: int, target: memoryview) -> None:
        with self._lock:
            pieces = self.pieces(volume, offset, len(target))
            pending = {entry.number: entry for entry in (*self._packed, self._buffer)}
            for piece in pieces:
                if piece.segment == _MEMORY:
                    plain, at = pending[piece.record].plain, piece.offset - offset
                    target[at : at + piece.length] = plain[piece.plain_offset : piece.plain_offset + piece.length]
        self._copy([piece for piece in pieces if 0 < piece.segment != _MEMORY], volume, offset, target)

    def _clear(self, volume: int, kind: ExtentKind, offset: int, length: int) -> None:
        self._check_range(volume, offset, length)
        if length:
            with self._lock:
                self._make_room(0)
                self._buffer.add(volume, kind, offset, None, length)
                self._pack_when_full()

    def _make_room(self, length: int) -> None:
        held = self._buffer.cost_bytes + sum(entry.cost_bytes for entry in self._packed)
        if held and held + length > self._context.options.uncommitted_bytes_max:
            self._commit()

    def _pack_when_full(self) -> None:
        buffer, options = self._buffer, self._context.options
        if len(buffer.plain) + BLOCK_BYTES > options.write_buffer_bytes or len(buffer.rows) >= _ROWS_MAX:
            self._pack()
            # A full disk shows at the next flush; until then the bytes are kept in memory.
            with suppress_full():
                self._append_all()

    def _pack(self) -> None:
        if self._buffer.rows:
            self._packed.append(self._buffer)
            self._buffer = _Pending(self._buffer.number + 1)

    def _append_all(self) -> None:
        """Append whatever the log does not hold yet; all of it again after a full disk threw it out."""
        self._pack()
        if self._must_replay:
            for entry in self._packed:
                entry.place = None
            self._must_replay = False
        with self._replaying_when_full():
            for entry in self._packed:
                if entry.place is None:
                    sequence = self._writer.appended_sequence + 1
                    entry.place = self._writer.append_batch(
                        sequence,
                        Mark(self._epoch, sequence),
                        entry.pack(),
                        generation=self._writer.generation,
                    )

    def _commit(self) -> Committed:
        self._append_all()
        with self._replaying_when_full():
            committed = self._writer.commit(generation=self._writer.generation)
        self.position = Position(self.position.source, self.branch, committed.sequence)
        for entry in self._packed:
            if entry.place is not None:
                self._extend_tail(entry.resolved(entry.place))
        newest = self._packed[-1].place if self._packed else None
        self._uncut = self._uncut or newest is not None
        self._packed = []
        if newest and newest.segment != self._tail_segment:
            self._rebase(newest.segment)
        return committed

    def _extend_tail(self, maps: dict[int, FlatMap]) -> None:
        """Keep few layers: a newer one swallows older ones that are not much larger."""
        while self._tail and _mappings(self._tail[-1]) <= _TAIL_RATIO * _mappings(maps):
            older = self._tail.pop()
            maps = {**older, **{v: merge(flat, older[v]) if v in older else flat for v, flat in maps.items()}}
        self._tail.append(maps)

    def _rebase(self, segment: int) -> None:
        """Look through the layers on disk again now that a segment was closed."""
        self._stack = self._context.layers.stack(
            self.position.source, self.position.branch, self.position.sequence, tuple(self._geometry.values())
        )
        self._tail, self._tail_segment = [], segment

    @contextmanager
    def _replaying_when_full(self) -> Iterator[None]:
        """A failed append or commit put the log back at its durable position: all must be appended again."""
        try:
            yield
        except DrengineError:
            self._must_replay = True
            raise


@contextmanager
def suppress_full() -> Iterator[None]:
    """Let STORE_FULL pass by."""
    try:
        yield
    except DrengineError as error:
        if error.kind is not STORE_FULL:
            raise


def _mappings(maps: dict[int, FlatMap]) -> int:
    return sum(len(flat) for flat in maps.values())
