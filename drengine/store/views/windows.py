"""Windows: what parts of a volume's layers come to, resolved once and kept, so that a read costs one search.

A view looks through dozens of layers. A window is a piece of the volume of fixed size for which that has been done. It
does not change; a write to a branch puts a patched copy in its place.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from drengine.store.views.cache import ByteCache
from drengine.store.views.extentmap import ZERO_SEGMENT, FlatMap, visible
from drengine.store.views.gather import Places
from drengine.store.views.stack import StackLayer

ExtentType = Literal["data", "zero", "hole"]

WINDOW_BYTES = 4 << 20
_COST_BYTES = 1024
"""Of a window's objects, without its columns."""

_SPAN_BYTES_MAX = 64 * WINDOW_BYTES
_PATCH_ROWS_MAX = 64
"""More rows than this are not patched into a window: it is resolved again when it is wanted."""

_SCATTERED_PIECES = 8
_SCATTERED_BYTES = 32 << 10
"""A range in at least so many pieces is scattered, when they are smaller than this on average."""

Key = tuple[int, int]
"""Volume, and the window's number in it."""
Row = tuple[int, int, int, int, int, int]
"""Start, end, branch, segment, record and plain offset."""


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


class Window:
    """Pieces without gaps from 0 to `length`, as columns; what was never written counts as zeros."""

    __slots__ = ("branches", "length", "plain_offsets", "records", "segments", "starts")

    def __init__(self, length: int, columns: Sequence[array[int]]) -> None:
        self.length = length
        self.starts, self.branches, self.segments, self.records, self.plain_offsets = columns

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return _COST_BYTES + 5 * self.starts.itemsize * len(self.starts)

    def piece(self, at: int, end: int) -> Piece:
        """The piece at `at`, cut to ``at .. end``."""
        starts = self.starts
        index = bisect_right(starts, at) - 1
        following = starts[index + 1] if index + 1 < len(starts) else self.length
        segment = self.segments[index]
        shift = at - starts[index] if segment else 0
        return Piece(
            at,
            (end if end < following else following) - at,
            self.branches[index],
            segment,
            self.records[index],
            self.plain_offsets[index] + shift,
        )

    def is_scattered(self, begin: int, end: int) -> bool:
        """Whether a range lies in so many pieces that they are better gathered than read one by one."""
        count = bisect_left(self.starts, end) - bisect_right(self.starts, begin) + 1
        return count >= _SCATTERED_PIECES and count * _SCATTERED_BYTES > end - begin

    def places(self, begin: int, end: int, cut_bytes: int) -> Places:
        """The pieces of data of a range; where they go is counted from `begin`, and none crosses a multiple of
        `cut_bytes` there.
        """
        columns = (self.starts, self.branches, self.segments, self.records, self.plain_offsets)
        starts, *rest = (np.frombuffer(column, np.uint32).astype(np.int64) for column in columns)
        first = int(starts.searchsorted(begin, "right")) - 1
        last = int(starts.searchsorted(end, "left"))
        inner = starts[first + 1 : last]
        edges = np.unique(np.concatenate((np.arange(begin, end, cut_bytes), inner)))
        owners = starts.searchsorted(edges, "right") - 1
        lengths = np.diff(edges, append=end)
        data = np.flatnonzero(rest[1][owners])
        owners, edges = owners[data], edges[data]
        branches, segments, records, plain_offsets = (column[owners] for column in rest)
        return Places(edges - begin, lengths[data], branches, segments, records, plain_offsets + edges - starts[owners])

    def laid_over(self, rows: Sequence[Row]) -> Window:
        """A copy with rows over it."""
        columns = [self.starts, self.branches, self.segments, self.records, self.plain_offsets]
        for start, end, *place in rows:
            starts = columns[0]
            first = bisect_right(starts, start) - 1
            last = bisect_left(starts, end)
            fresh = [(start, *place)]
            if starts[first] < start:
                fresh.insert(0, tuple(column[first] for column in columns))
            following = starts[last] if last < len(starts) else self.length
            if following > end:
                shift = end - starts[last - 1] if columns[2][last - 1] else 0
                _, *rest, plain_offset = (column[last - 1] for column in columns)
                fresh.append((end, *rest, plain_offset + shift))
            columns = [
                column[:first] + array("I", added) + column[last:]
                for column, added in zip(columns, zip(*fresh, strict=True), strict=True)
            ]
        return Window(self.length, columns)


class Windows:
    """The windows of a view that were used last, bounded by bytes. Threads may share it."""

    def __init__(self, bytes_max: int) -> None:
        self._kept: ByteCache[Window] = ByteCache(bytes_max)
        self._lock = threading.Lock()
        self._tickets: dict[Key, object] = {}
        """One for each window that is being resolved and was not written to since that began."""

    def get(self, key: Key) -> Window | None:
        """A window, if it is kept."""
        return self._kept.get(key)

    def begin(self, key: Key) -> object:
        """To be called before the layers are looked at; `put` takes what it gives."""
        return self._tickets.setdefault(key, object())

    def put(self, key: Key, window: Window, ticket: object) -> None:
        """Keep a window, unless rows were laid over it since `begin`: it may not show them."""
        with self._lock:
            if self._tickets.pop(key, None) is ticket:
                self._kept.put(key, window, window.nbytes)

    def lay(self, volume: int, flat: FlatMap, branch: int) -> None:
        """Rows of a branch came over what there was. Call it when the view's layers show them, and not before."""
        changed: dict[Key, list[Row]] = {}
        with self._lock:
            for start, length, *place in zip(*(column.tolist() for column in flat.columns), strict=True):
                end = start + length
                if length > _SPAN_BYTES_MAX:
                    self._tickets.clear()
                    self._kept.forget_all(lambda key: isinstance(key, tuple) and key[0] == volume)
                    return
                for number in range(start // WINDOW_BYTES, -(-end // WINDOW_BYTES)):
                    base = number * WINDOW_BYTES
                    begin, stop = max(start, base), min(end, base + WINDOW_BYTES)
                    segment, record, plain_offset = place
                    plain_offset += begin - start if segment else 0
                    row = (begin - base, stop - base, branch, segment, record, plain_offset)
                    changed.setdefault((volume, number), []).append(row)
            for key, rows in changed.items():
                self._tickets.pop(key, None)
                window = self._kept.get(key)
                if window is not None and len(rows) > _PATCH_ROWS_MAX:
                    self._kept.forget(key)
                elif window is not None:
                    window = window.laid_over(rows)
                    self._kept.put(key, window, window.nbytes)


def resolve_window(layers: Sequence[StackLayer], volume: int, start: int, end: int) -> Window:
    """What the bytes ``start .. end`` of a volume come from; `layers` are newest first."""
    parts, branches = [], []
    for layer in layers:
        flat = layer.maps.get(volume)
        part = flat.around(start, end) if flat is not None else None
        if part is None or not len(part):
            continue
        parts.append(part)
        branches.append(layer.branch)
        if len(part) == 1 and int(part.starts[0]) <= start and int(part.ends[0]) >= end:
            break  # nothing shows through
    parts.append(_unwritten(start, end))
    branches.append(0)
    parts.reverse()
    rows = FlatMap(*(np.concatenate(columns) for columns in zip(*(part.columns for part in parts), strict=True)))
    branch = np.repeat(np.array(branches[::-1], np.uint32), [len(part) for part in parts])
    starts = np.maximum(rows.starts, np.uint64(start))
    begins, _, owners = visible(starts, np.minimum(rows.ends, np.uint64(end)))
    segments = rows.segments[owners]
    shift = np.where(segments == ZERO_SEGMENT, np.uint64(0), begins - rows.starts[owners]).astype(np.uint32)
    columns = (
        (begins - np.uint64(start)).astype(np.uint32),
        branch[owners],
        segments,
        rows.records[owners],
        rows.plain_offsets[owners] + shift,
    )
    return Window(end - start, [array("I", column.tobytes()) for column in columns])


def _unwritten(start: int, end: int) -> FlatMap:
    """One row of zeros."""
    wide, narrow = (np.array([start], np.uint64), np.array([end - start], np.uint64)), np.zeros(1, np.uint32)
    return FlatMap(*wide, narrow, narrow, narrow)
