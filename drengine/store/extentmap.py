"""Extent maps: which bytes of a volume lie where. Pure numpy over sorted columns; no I/O.

Invariant of a FlatMap: rows are sorted by start, have positive length and do not overlap. Segment number 0 means zeros.
A row says: bytes `start .. start+length` of the volume are bytes `plain_offset ...` of record `record` of `segment`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

ZERO_SEGMENT = 0
EXPANSION_MAX = 1 << 24
"""Elementary intervals painted at once; more are painted in parts, so memory stays bounded."""

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]


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
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(getattr(self, column.name).nbytes for column in fields(self))

    @property
    def ends(self) -> U64:
        """End of each row, exclusive."""
        return self.starts + self.lengths

    def take(self, rows: Any) -> FlatMap:
        """Some rows, by slice, mask or index."""
        return FlatMap(*(getattr(self, column.name)[rows] for column in fields(self)))

    def lookup(self, offset: int, length: int) -> Iterator[Mapping]:
        """Rows inside ``offset .. offset+length``, in order, cut to it."""
        if length <= 0 or not len(self.starts):
            return
        end = offset + length
        # numpy would turn a Python int above 2**63 into a float; offsets are below it
        first = int(np.searchsorted(self.starts, np.uint64(offset), "right"))
        if first and int(self.starts[first - 1]) + int(self.lengths[first - 1]) > offset:
            first -= 1
        last = int(np.searchsorted(self.starts, np.uint64(end), "left"))
        if first >= last:
            return
        columns = (getattr(self, column.name)[first:last].tolist() for column in fields(self))
        for start, size, segment, record, plain_offset in zip(*columns, strict=True):
            begin, stop = max(start, offset), min(start + size, end)
            shift = begin - start if segment != ZERO_SEGMENT else 0
            yield Mapping(begin, stop - begin, segment, record, plain_offset + shift)

    def clip(self, size: int) -> FlatMap:
        """Only what lies below `size`."""
        count = int(np.searchsorted(self.starts, np.uint64(size), "left"))
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

    Rows of segment 0 are zeros; their record and plain offset are ignored. Cost: a sort, plus work in proportion to the
    pieces that come out. Source of the idea: coordinate compression, then painting in order.
    """
    starts, lengths = start.astype(np.uint64), length.astype(np.uint64)
    segments = segment.astype(np.uint32)
    is_zero = segments == ZERO_SEGMENT
    records = np.where(is_zero, 0, record).astype(np.uint32)
    plain_offsets = np.where(is_zero, 0, plain_offset).astype(np.uint32)
    ends = starts + lengths
    order = np.argsort(starts, kind="stable")
    sorted_starts, sorted_ends = starts[order], ends[order]
    if bool(np.all(sorted_ends[:-1] <= sorted_starts[1:])):
        disjoint = FlatMap(
            sorted_starts, lengths[order], segments[order], records[order], plain_offsets[order]
        )
        return coalesce(disjoint)
    edges = np.unique(np.concatenate((starts, ends)))
    owners = _paint(np.searchsorted(edges, starts), np.searchsorted(edges, ends), len(edges) - 1)
    seen = np.flatnonzero(owners >= 0)
    owner = owners[seen]
    begin = edges[seen]
    shift = np.where(is_zero[owner], 0, begin - starts[owner]).astype(np.uint32)
    return coalesce(
        FlatMap(begin, edges[seen + 1] - begin, segments[owner], records[owner], plain_offsets[owner] + shift)
    )


def _paint(first: NDArray[np.int64], last: NDArray[np.int64], count: int) -> NDArray[np.int64]:
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
            part = counts[at:stop]
            begins = np.repeat(first[at:stop] - (np.cumsum(part) - part), part)
            owners[begins + np.arange(int(part.sum()))] = np.repeat(np.arange(at, stop), part)
        at = stop
    return owners


def merge(newer: FlatMap, older: FlatMap) -> FlatMap:
    """One map of both; `newer` wins where they overlap."""
    if not len(newer) or not len(older):
        return newer if len(newer) else older
    both = [
        np.concatenate((getattr(older, column.name), getattr(newer, column.name)))
        for column in fields(FlatMap)
    ]
    return resolve(both[0], both[1], segment=both[2], record=both[3], plain_offset=both[4])


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
    return FlatMap(
        flat.starts[heads], lengths, flat.segments[heads], flat.records[heads], flat.plain_offsets[heads]
    )
