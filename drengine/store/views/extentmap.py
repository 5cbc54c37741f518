"""Extent maps: which bytes of a volume lie where. Pure numpy over sorted columns; no I/O.

Invariant of a FlatMap: rows are sorted by start, have positive length and do not overlap. Segment number 0 means zeros.
A row says: bytes `start .. start+length` of the volume are bytes `plain_offset ...` of record `record` of `segment`.
What no row covers was never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

ZERO_SEGMENT = 0
EXPANSION_MAX = 1 << 24
"""Elementary intervals painted at once; more are painted in parts, so memory stays bounded."""

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
Index = NDArray[np.int64]


class Mapping(NamedTuple):
    """One row, as Python numbers."""

    start: int
    length: int
    segment: int
    record: int
    plain_offset: int


@dataclass(frozen=True, slots=True, eq=False)
class FlatMap:
    """A volume's map as columns of equal length; 28 bytes a row."""

    starts: U64
    lengths: U64
    segments: U32
    records: U32
    plain_offsets: U32

    @classmethod
    def empty(cls) -> Self:
        """A map that knows nothing."""
        wide, narrow = np.empty(0, np.uint64), np.empty(0, np.uint32)
        return cls(wide, wide, narrow, narrow, narrow)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """All columns, in the order of the fields."""
        return (self.starts, self.lengths, self.segments, self.records, self.plain_offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in self.columns)

    @property
    def ends(self) -> U64:
        """End of each row, exclusive."""
        return self.starts + self.lengths

    def take(self, rows: Any) -> FlatMap:
        """Some rows, by slice, mask or index."""
        return FlatMap(*(column[rows] for column in self.columns))

    def lookup(self, offset: int, length: int) -> list[Mapping]:
        """Rows inside ``offset .. offset+length``, in order, cut to it."""
        starts = self.starts
        if length <= 0 or not len(starts):
            return []
        end = offset + length
        # As uint64: numpy would turn a Python int above 2**63 into a float.
        first = last = int(starts.searchsorted(np.uint64(offset), "right"))
        if last < len(starts) and int(starts[last]) < end:
            last = int(starts.searchsorted(np.uint64(end), "left"))
        if first and int(starts[first - 1]) + int(self.lengths[first - 1]) > offset:
            first -= 1
        found = []
        columns = (column[first:last].tolist() for column in self.columns)
        for start, size, segment, record, plain_offset in zip(*columns, strict=True):
            begin, stop = max(start, offset), min(start + size, end)
            shift = begin - start if segment != ZERO_SEGMENT else 0
            found.append(Mapping(begin, stop - begin, segment, record, plain_offset + shift))
        return found

    def around(self, start: int, end: int) -> FlatMap:
        """Rows that have bytes in ``start .. end``, uncut."""
        starts = self.starts
        # As uint64: see lookup.
        last = int(starts.searchsorted(np.uint64(end), "left"))
        first = int(starts.searchsorted(np.uint64(start), "right"))
        if first and int(starts[first - 1]) + int(self.lengths[first - 1]) > start:
            first -= 1
        return self.take(slice(first, last))

    def clip(self, size: int) -> FlatMap:
        """Only what lies below `size`."""
        count = int(self.starts.searchsorted(np.uint64(size), "left"))
        clipped = self.take(slice(0, count))
        if not count or int(clipped.starts[-1]) + int(clipped.lengths[-1]) <= size:
            return clipped
        lengths = clipped.lengths.copy()
        lengths[-1] = np.uint64(size) - clipped.starts[-1]
        return FlatMap(clipped.starts, lengths, clipped.segments, clipped.records, clipped.plain_offsets)


def resolve(
    start: NDArray[Any],
    length: NDArray[Any],
    *,
    segment: NDArray[Any],
    record: NDArray[Any],
    plain_offset: NDArray[Any],
) -> FlatMap:
    """Turn extents in log order (they may overlap, the last wins) into a flat map.

    Rows of segment 0 are zeros; their record and plain offset are ignored. Rows of length 0 say nothing. Cost: sorts,
    plus work in proportion to the pieces that come out. The idea: coordinate compression, then painting in order.
    """
    said = np.flatnonzero(length)
    if len(said) < len(length):
        start, length, segment = start[said], length[said], segment[said]
        record, plain_offset = record[said], plain_offset[said]
    is_zero = segment == ZERO_SEGMENT
    rows = FlatMap(
        starts=start.astype(np.uint64),
        lengths=length.astype(np.uint64),
        segments=segment.astype(np.uint32),
        records=np.where(is_zero, 0, record).astype(np.uint32),
        plain_offsets=np.where(is_zero, 0, plain_offset).astype(np.uint32),
    )
    begins, lengths, owners = visible(rows.starts, rows.ends)
    return coalesce(_pieces(rows, owners, begins, lengths))


def visible(starts: U64, ends: U64) -> tuple[U64, U64, Index]:
    """What shows of non-empty ranges in log order, where later ones hide earlier ones: starts, lengths, owning rows."""
    order = np.argsort(starts)
    sorted_starts, sorted_ends = starts[order], ends[order]
    if bool(np.all(sorted_ends[:-1] <= sorted_starts[1:])):
        return sorted_starts, sorted_ends - sorted_starts, order
    edges = _distinct(np.concatenate((starts, ends)))
    # Searched in order of start, which the caches like; then put back into log order for painting.
    first, last = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
    first[order] = np.searchsorted(edges, sorted_starts)
    last[order] = np.searchsorted(edges, sorted_ends)
    owners = _paint(first, last, len(edges) - 1)
    seen = np.flatnonzero(owners >= 0)
    begins = edges[seen]
    return begins, edges[seen + 1] - begins, owners[seen]


def merge(newer: FlatMap, older: FlatMap) -> FlatMap:
    """One map of both; `newer` wins where they overlap."""
    if not len(newer) or not len(older):
        return newer if len(newer) else older
    left = Ranges(newer.starts, newer.ends).left_of(older)
    both = [np.concatenate(pair) for pair in zip(left.columns, newer.columns, strict=True)]
    return coalesce(FlatMap(*both).take(np.argsort(both[0])))


def coalesce(flat: FlatMap) -> FlatMap:
    """Join rows that continue each other: contiguous bytes of one record, or neighbouring zeros."""
    if len(flat) < 2:
        return flat
    touches = flat.ends[:-1] == flat.starts[1:]
    zeros = (flat.segments[:-1] == ZERO_SEGMENT) & (flat.segments[1:] == ZERO_SEGMENT)
    follows = flat.plain_offsets[:-1].astype(np.uint64) + flat.lengths[:-1] == flat.plain_offsets[1:]
    same = (flat.segments[:-1] == flat.segments[1:]) & (flat.records[:-1] == flat.records[1:]) & follows
    heads = np.flatnonzero(np.concatenate(([True], ~(touches & (zeros | same)))))
    if len(heads) == len(flat):
        return flat
    lengths = np.add.reduceat(flat.lengths, heads)
    return FlatMap(flat.starts[heads], lengths, *(column[heads] for column in flat.columns[2:]))


def _distinct(values: U64) -> U64:
    """As np.unique, ten times as fast: numpy's plain sort is vectorised."""
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]


def _paint(first: Index, last: Index, count: int) -> Index:
    """Owner of each of `count` elementary intervals: the highest row that covers it, or -1.

    numpy assigns repeated indices in order, so the last one, the newest row, wins.
    """
    owners = np.full(count, -1, dtype=np.int64)
    counts = last - first
    totals = np.cumsum(counts)
    at = 0
    while at < len(counts):
        done = int(totals[at - 1]) if at else 0
        stop = max(at + 1, int(np.searchsorted(totals, done + EXPANSION_MAX, "right")))
        if stop == at + 1:
            owners[int(first[at]) : int(last[at])] = at
        else:
            owners[runs(first[at:stop], counts[at:stop])] = np.repeat(np.arange(at, stop), counts[at:stop])
        at = stop
    return owners


class Ranges:
    """Ranges of bytes: sorted, disjoint, none touching another. A value, made of sorted disjoint ranges."""

    def __init__(self, starts: U64, ends: U64) -> None:
        heads = np.concatenate(([True], starts[1:] > ends[:-1])) if len(starts) else np.empty(0, bool)
        self._starts, self._ends = starts[heads], ends[np.roll(heads, -1)]
        self._gap_starts = np.concatenate((np.zeros(1, np.uint64), self._ends))
        self._gap_ends = np.concatenate((self._starts, np.full(1, np.iinfo(np.uint64).max, np.uint64)))
        if len(starts) and not starts[0]:
            self._gap_starts, self._gap_ends = self._gap_starts[1:], self._gap_ends[1:]

    def __len__(self) -> int:
        return len(self._starts)

    def joined(self, other: Ranges) -> Ranges:
        """What lies in either."""
        starts = np.concatenate((self._starts, other._starts))
        order = np.argsort(starts, kind="stable")
        ends = np.concatenate((self._ends, other._ends))[order]
        return Ranges(starts[order], np.maximum.accumulate(ends))

    def left_of(self, flat: FlatMap) -> FlatMap:
        """The parts of a map that lie in none of them."""
        ends = flat.ends
        first = np.searchsorted(self._gap_ends, flat.starts, "right")
        counts = np.maximum(np.searchsorted(self._gap_starts, ends, "left") - first, 0)
        owners = np.repeat(np.arange(len(flat)), counts)
        gaps = runs(first, counts)
        begins = np.maximum(flat.starts[owners], self._gap_starts[gaps])
        return _pieces(flat, owners, begins, np.minimum(ends[owners], self._gap_ends[gaps]) - begins)


def _pieces(rows: FlatMap, owners: Index, begins: U64, lengths: U64) -> FlatMap:
    """Parts of rows, each with its owner's place shifted to where the part begins."""
    segments = rows.segments[owners]
    shift = np.where(segments == ZERO_SEGMENT, np.uint64(0), begins - rows.starts[owners]).astype(np.uint32)
    return FlatMap(begins, lengths, segments, rows.records[owners], rows.plain_offsets[owners] + shift)


def runs(first: Index, counts: Index) -> Index:
    """``first[0], first[0]+1, ...`` (``counts[0]`` of them), then the same for the next, in one array."""
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(int(counts.sum()))
