"""Which extents somebody can still see. Decided by positions only, never by time (fault 13).

Roots are the positions of a branch that somebody may look at: kept points, leases, where other branches grew from,
and the head. A row is live when it is visible at the first root at or after it, looking only at what was written
since the root before: were it covered there, every later root would see it covered too. So each
interval between two roots is resolved once, from the newest segment to the oldest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drengine.model.extents import ExtentKind
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import BranchRow, SegmentRow
from drengine.store.locks import Position
from drengine.store.segments.rowset import RowSet, row_set
from drengine.store.views.extentmap import ZERO_SEGMENT, FlatMap, merge, resolve
from drengine.store.views.records import Records

_CANDIDATE = 1
"""Segment number of rows being judged; what covers them is mapped as ZERO_SEGMENT, which joins well."""


@dataclass(frozen=True, slots=True)
class SegmentLiveness:
    """What is live in a segment.

    Attributes:
        rows: all its rows in log order, those that GEOMETRY records imply included.
        live: one truth value a row.
        needed: some row is live, or a root lies in it.
    """

    row: SegmentRow
    rows: RowSet
    live: NDArray[np.bool_]
    needed: bool

    def of_record(self, number: int) -> NDArray[np.bool_]:
        """Truth values of the rows in one BATCH record's table."""
        begin, end = np.searchsorted(self.rows.record, (number, number + 1))
        return self.live[begin:end]

    @property
    def dead_bytes(self) -> int:
        """Plain bytes that no root sees and that compaction has not dropped yet."""
        dead = (self.rows.kind == ExtentKind.DATA) & ~self.live
        return int(self.rows.length[dead].sum())


@dataclass(frozen=True, slots=True)
class BranchRoots:
    """A branch and its roots, ascending; none when the branch can be seen no more."""

    branch: BranchRow
    positions: list[int]

    @property
    def dead(self) -> bool:
        """Whether no root sees it: none ever will again."""
        return not self.positions and bool(self.branch.closed)


def branch_roots(catalogue: Catalogue, source: str, read_leases: Callable[[], set[Position]]) -> list[BranchRoots]:
    """Roots of every branch of a source, children first.

    Heads are read before leases: a reader of a head takes its lease first and then looks whether the head has moved.
    """
    branches = catalogue.branches(source)
    positions: dict[int, set[int]] = {row.branch: set() for row in branches}
    for lease in read_leases():
        if lease.source == source and lease.branch in positions:
            positions[lease.branch].add(lease.sequence)
    for point in catalogue.points(source):
        positions[point.branch].add(point.sequence)
    found = []
    for row in sorted(branches, key=lambda row: -row.branch):
        mine = positions[row.branch]
        # What lies at or before the base belongs to the parent.
        for sequence in [sequence for sequence in mine if sequence <= row.base_sequence]:
            mine.discard(sequence)
            positions.get(row.parent, set()).add(min(sequence, row.base_sequence))
        if not row.closed:
            mine.add(row.durable_sequence)
        if (mine or not row.closed) and row.parent in positions:
            positions[row.parent].add(row.base_sequence)
        found.append(BranchRoots(row, sorted(mine)))
    return found


def branch_liveness(catalogue: Catalogue, records: Records, roots: BranchRoots) -> Iterator[SegmentLiveness]:
    """Judge a branch's segments, newest first.

    Raises:
        DrengineError: DAMAGED when an index cannot be read: then nothing older may be judged.
    """
    positions = np.array(roots.positions, dtype=np.int64)
    cover: dict[int, FlatMap] = {}
    interval = -1
    for segment in reversed(catalogue.segments(roots.branch.source, roots.branch.branch)):
        rows = row_set(records.index(segment))
        live = np.zeros(len(rows), dtype=bool)
        intervals = np.searchsorted(positions, segment.first_sequence + rows.record.astype(np.int64), "left")
        beyond = intervals == len(positions)
        # Committed after the roots were read: live on an open branch, out of everybody's sight on a closed one.
        live[beyond] = not roots.branch.closed
        for number in np.unique(intervals[~beyond])[::-1].tolist():
            if number != interval:
                cover, interval = {}, number
            _judge(rows, np.flatnonzero(intervals == number), live, cover)
        first, last = np.searchsorted(positions, (segment.first_sequence, segment.last_sequence + 1))
        visible = live & (rows.kind != ExtentKind.DROPPED)
        yield SegmentLiveness(segment, rows, live, bool(visible.any()) or bool(last > first))


def _judge(rows: RowSet, numbers: NDArray[np.int64], live: NDArray[np.bool_], cover: dict[int, FlatMap]) -> None:
    """Mark which of these rows show past `cover`, and add them to it."""
    for volume in np.unique(rows.volume[numbers]).tolist():
        mine = numbers[rows.volume[numbers] == volume]
        flat = resolve(
            rows.start[mine],
            rows.length[mine],
            segment=np.full(len(mine), _CANDIDATE),
            record=mine,
            plain_offset=np.zeros(len(mine)),
        )
        seen = merge(cover[volume], flat) if volume in cover else flat
        live[np.unique(seen.records[seen.segments == _CANDIDATE])] = True
        nothing = np.zeros(len(seen), dtype=np.uint32)
        cover[volume] = resolve(
            seen.starts,
            seen.lengths,
            segment=nothing + np.uint32(ZERO_SEGMENT),
            record=nothing,
            plain_offset=nothing,
        )
