"""A segment's extents as numpy columns in log order, for resolving and for liveness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drengine.model.extents import EXTENT, ExtentKind
from drengine.model.points import VolumeGeometry
from drengine.store.segments.format import EXTENT_DTYPE, RecordType, SegmentIndex, parse_geometry


@dataclass(frozen=True, slots=True)
class RowSet:
    """Rows of consecutive records, in log order. Columns have one entry a row.

    Attributes:
        volume, kind, start, length: as in the table. What a GEOMETRY record cut off a volume appears as a ZERO
            row of that record, so that a volume grown again reads zeros there.
        record: the record's number.
        plain_offset: where the row's bytes begin in the record's plain form (DATA and DROPPED rows).
        row: position of the row in its table; -1 for one that a GEOMETRY record implies.
    """

    volume: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    start: NDArray[np.uint64]
    length: NDArray[np.uint64]
    record: NDArray[np.uint32]
    plain_offset: NDArray[np.uint32]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.volume)

    @property
    def carries(self) -> NDArray[np.bool_]:
        """Rows that have plain bytes: DATA, and what was DATA before compaction dropped it."""
        return np.isin(self.kind, (ExtentKind.DATA, ExtentKind.DROPPED))

    def take(self, mask: NDArray[Any]) -> RowSet:
        """Some of the rows, in the same order."""
        return RowSet(*(getattr(self, name)[mask] for name in self.__slots__))

    def volumes(self) -> list[int]:
        """Volumes that occur."""
        return [int(number) for number in np.unique(self.volume)]


def row_set(index: SegmentIndex, first: int = 0, count: int | None = None) -> RowSet:
    """Rows of records `first` to `first + count` (default: all from `first`)."""
    end = index.record_count if count is None else min(first + count, index.record_count)
    types = index.records["type"]
    numbers = first + np.flatnonzero(types[first:end] == RecordType.BATCH)
    if len(numbers) == end - first:
        packed = index.tables[int(index.table_starts[first]) : int(index.table_starts[end])]
    else:
        packed = b"".join(index.table(int(number)) for number in numbers)
    table = np.frombuffer(packed, dtype=EXTENT_DTYPE)
    counts = np.diff(index.table_starts)[numbers] // EXTENT.size
    ends = np.cumsum(counts)
    record_of = np.repeat(np.arange(len(numbers)), counts)
    kind = table["kind"]
    carried = np.where((kind == ExtentKind.DATA) | (kind == ExtentKind.DROPPED), table["length"], 0)
    before = np.cumsum(carried, dtype=np.int64) - carried.astype(np.int64)
    starts = ends - counts
    base = np.zeros(len(numbers), dtype=np.int64)
    filled = counts > 0
    base[filled] = before[starts[filled]]
    rows = RowSet(
        volume=table["volume"],
        kind=kind,
        start=table["offset"],
        length=table["length"],
        record=numbers[record_of].astype(np.uint32),
        plain_offset=(before - base[record_of]).astype(np.uint32),
        row=np.arange(len(table)) - starts[record_of],
    )
    return _with_truncations(rows, index, first, end)


def _with_truncations(rows: RowSet, index: SegmentIndex, first: int, end: int) -> RowSet:
    """Insert what GEOMETRY records cut off, where they stand in the log."""
    geometries = first + np.flatnonzero(index.records["type"][first:end] == RecordType.GEOMETRY)
    if not len(geometries):
        return rows
    cut: list[tuple[int, int, int, int]] = []
    current = index.geometry_at(first)
    for number in geometries.tolist():
        fresh = parse_geometry(index.table(number))
        cut += [(number, *lost) for lost in truncations(current, fresh)]
        current = fresh
    if not cut:
        return rows
    record, volume, start, length = (np.array(column, dtype=np.int64) for column in zip(*cut, strict=True))
    at = np.searchsorted(rows.record, record)
    return RowSet(
        volume=np.insert(rows.volume, at, volume.astype(np.uint32)),
        kind=np.insert(rows.kind, at, np.uint8(ExtentKind.ZERO)),
        start=np.insert(rows.start, at, start.astype(np.uint64)),
        length=np.insert(rows.length, at, length.astype(np.uint64)),
        record=np.insert(rows.record, at, record.astype(np.uint32)),
        plain_offset=np.insert(rows.plain_offset, at, np.uint32(0)),
        row=np.insert(rows.row, at, -1),
    )


def truncations(old: tuple[VolumeGeometry, ...], new: tuple[VolumeGeometry, ...]) -> list[tuple[int, int, int]]:
    """(volume, start, length) of what a new geometry takes away; a volume no longer named loses everything."""
    sizes = {volume.volume: volume.size_bytes for volume in new}
    lost = []
    for volume in old:
        left = sizes.get(volume.volume, 0)
        if left < volume.size_bytes:
            lost.append((volume.volume, left, volume.size_bytes - left))
    return lost
