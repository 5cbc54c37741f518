"""What was written to a branch and lies in memory: in order, for the log, and resolved, for readers.

`Pending` is what goes into the log next: changes in the order of their writes. `Recent` answers reads: the newest bytes
of each range, found by bisection. A change is laid over `Recent` once, when it is written; there it stays, durable or
not, until so much has gathered that it pays to turn it into extent maps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from drengine.model.extents import Batch, Extent, ExtentKind
from drengine.store.log.writer import Appended
from drengine.store.segments.rowset import RowSet
from drengine.store.views.extentmap import FlatMap, merge
from drengine.store.views.stack import resolve_rows
from drengine.wire.payload import cut_blocks, data_extent, make_batch

MEMORY_SEGMENT = 0xFFFFFFFF
"""Segment number that stands for bytes in memory."""

CHANGE_COST_BYTES = 512
"""About what a change takes beside its data, in all lists that hold it."""

Held = tuple[int, int, memoryview | None]
"""Offset, length and bytes (None: zeros) of what is in memory."""

Gap = tuple[int, int]
"""Offset and length."""

_LEVEL = 1
_RECORD_CHANGES_MAX = 4096


class Change(NamedTuple):
    """A part of a write that is one row of the log; `data` is there for DATA only."""

    volume: int
    kind: ExtentKind
    offset: int
    length: int
    data: memoryview | None


class Record:
    """Consecutive changes that are logged as one record; `place` says where, once they are."""

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.place: Appended | None = None

    def batch(self) -> Batch:
        """As the log takes it, hashed and encoded."""
        extents: list[Extent] = []
        for volume, kind, offset, length, data in self.changes:
            extents.append(Extent(volume, kind, offset, length) if data is None else data_extent(volume, offset, data))
        plain = b"".join(change.data for change in self.changes if change.data is not None)
        return make_batch(extents, plain, _LEVEL)


class Pending:
    """Changes in the order of their writes, and where readers find them until they are in extent maps."""

    def __init__(self, recent: Recent) -> None:
        self.recent = recent
        self.changes: list[Change] = []
        self.cost_bytes = 0
        self._records: list[Record] | None = None

    def add(self, changes: list[Change], cost: int) -> None:
        """Take changes in, which cost so many bytes of memory, and show them to readers."""
        self.changes += changes
        self.cost_bytes += cost
        self.recent.lay(changes, cost)

    def records(self, plain_bytes_max: int) -> list[Record]:
        """All of it as records of at most so many plain bytes (but one change at least). Nothing is added later."""
        if self._records is None:
            self._records = [Record(part) for part in _parts(self.changes, plain_bytes_max)]
        return self._records


class _Ranges:
    """Ranges of one volume, sorted, none overlapping another: `data` is None where zeros are."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.data: list[memoryview | None] = []

    def lay(self, start: int, end: int, data: memoryview | None) -> None:
        """Put a range over what is there."""
        starts, ends = self.starts, self.ends
        first = bisect_right(ends, start)
        last = bisect_left(starts, end, first)
        if first == last:
            starts.insert(first, start)
            ends.insert(first, end)
            self.data.insert(first, data)
            return
        fresh: list[tuple[int, int, memoryview | None]] = [(start, end, data)]
        if starts[first] < start:
            fresh.insert(0, self._cut(first, starts[first], start))
        if ends[last - 1] > end:
            fresh.append(self._cut(last - 1, end, ends[last - 1]))
        starts[first:last], ends[first:last], self.data[first:last] = map(list, zip(*fresh, strict=True))

    def find(self, start: int, end: int) -> Iterator[Held]:
        """What is there of a range, in order."""
        for at in range(bisect_right(self.ends, start), bisect_left(self.starts, end)):
            begin, stop, data = self._cut(at, max(start, self.starts[at]), min(end, self.ends[at]))
            yield begin, stop - begin, data

    def _cut(self, at: int, start: int, end: int) -> tuple[int, int, memoryview | None]:
        data, begin = self.data[at], self.starts[at]
        return start, end, None if data is None else data[start - begin : end - begin]


class Recent:
    """The newest bytes of what was written during some time. Not for several threads.

    Attributes:
        cost_bytes: memory that it holds, about.
        logged: the records of everything laid here that is durable; those that are not come later.
    """

    def __init__(self) -> None:
        self.cost_bytes = 0
        self.logged: list[Record] = []
        self._volumes: dict[int, _Ranges] = {}
        self._maps: dict[int, FlatMap] | None = None

    def lay(self, changes: list[Change], cost: int) -> None:
        """Put changes over what is there; see `Pending.add`."""
        self._maps = None
        self.cost_bytes += cost
        for volume, _, offset, length, data in changes:
            ranges = self._volumes.get(volume)
            if ranges is None:
                ranges = self._volumes[volume] = _Ranges()
            ranges.lay(offset, offset + length, data)

    def find(self, volume: int, gaps: list[Gap]) -> tuple[list[Held], list[Gap]]:
        """What is here of some ranges, and the parts of them that are not."""
        ranges = self._volumes.get(volume)
        if ranges is None:
            return [], gaps
        held: list[Held] = []
        left: list[Gap] = []
        for offset, length in gaps:
            at, end = offset, offset + length
            for part in ranges.find(at, end):
                if part[0] > at:
                    left.append((at, part[0] - at))
                held.append(part)
                at = part[0] + part[1]
            if at < end:
                left.append((at, end - at))
        return held, left

    def maps(self) -> dict[int, FlatMap]:
        """As extent maps, which nobody may change, of MEMORY_SEGMENT. Costs time in proportion to what is here."""
        if self._maps is None:
            self._maps = {volume: _flat(ranges) for volume, ranges in self._volumes.items()}
        return self._maps


def cut_changes(volume: int, offset: int, data: bytes | bytearray | memoryview) -> list[Change]:
    """A write as changes, none of which crosses a block boundary. Data that may change later is copied."""
    view = memoryview(data).cast("B")
    if not isinstance(data, bytes):
        view = memoryview(bytes(view))
    return [
        Change(volume, ExtentKind.ZERO if is_zero else ExtentKind.DATA, at, len(part), None if is_zero else part)
        for at, part, is_zero in cut_blocks(offset, view)
    ]


def cost_bytes(changes: Iterable[Change]) -> int:
    """Memory that changes take, about."""
    return sum(CHANGE_COST_BYTES + (0 if change.data is None else change.length) for change in changes)


def logged_maps(records: list[Record]) -> dict[int, FlatMap]:
    """Where the log holds the newest bytes of records that it has, in their order."""
    maps: dict[int, FlatMap] = {}
    by_segment: dict[int, list[Record]] = {}
    for record in records:
        assert record.place is not None
        by_segment.setdefault(record.place.segment, []).append(record)
    for segment, mine in by_segment.items():
        maps = laid_over(resolve_rows(segment, _row_set(mine)), maps)
    return maps


def laid_over(newer: dict[int, FlatMap], older: dict[int, FlatMap]) -> dict[int, FlatMap]:
    """Maps of both; `newer` wins."""
    return {**older, **{v: merge(flat, older[v]) if v in older else flat for v, flat in newer.items()}}


def _parts(changes: list[Change], plain_bytes_max: int) -> Iterator[list[Change]]:
    part: list[Change] = []
    plain = 0
    for change in changes:
        length = 0 if change.data is None else change.length
        if part and (plain + length > plain_bytes_max or len(part) >= _RECORD_CHANGES_MAX):
            yield part
            part, plain = [], 0
        part.append(change)
        plain += length
    if part:
        yield part


def _row_set(records: list[Record]) -> RowSet:
    rows = [change[:4] for record in records for change in record.changes]
    columns = np.array(rows, dtype=np.uint64).reshape(-1, 4)
    counts = np.array([len(record.changes) for record in records])
    numbers = np.array([record.place.record for record in records if record.place is not None], dtype=np.uint32)
    carried = np.where(columns[:, 1] == ExtentKind.DATA, columns[:, 3], 0)
    before = np.cumsum(carried) - carried
    firsts = np.cumsum(counts) - counts
    return RowSet(
        volume=columns[:, 0].astype(np.uint32),
        kind=columns[:, 1].astype(np.uint8),
        start=columns[:, 2],
        length=columns[:, 3],
        record=np.repeat(numbers, counts),
        plain_offset=(before - np.repeat(before[firsts], counts)).astype(np.uint32),
        row=np.arange(len(columns)),
    )


def _flat(ranges: _Ranges) -> FlatMap:
    starts = np.array(ranges.starts, dtype=np.uint64)
    segments = np.array([0 if data is None else MEMORY_SEGMENT for data in ranges.data], dtype=np.uint32)
    nothing = np.zeros(len(starts), dtype=np.uint32)
    return FlatMap(starts, np.array(ranges.ends, dtype=np.uint64) - starts, segments, nothing, nothing)
