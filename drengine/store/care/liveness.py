"""Which extents somebody can still see. Decided by positions only, never by time (fault 13).

Roots are the positions of a branch that somebody may look at: kept points, leases, where other branches grew from,
and the head. A row is live when it is visible at the first root at or after it, looking only at what was written
since the root before: were it covered there, every later root would see it covered too. So each
interval between two roots is resolved once, from the newest segment to the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drengine.model.extents import ExtentKind
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import BranchRow, SegmentRow
from drengine.store.locks import Position
from drengine.store.segments.rowset import RowSet, row_set
from drengine.store.views.extentmap import FlatMap, Ranges, resolve
from drengine.store.views.records import Records

_CANDIDATE = 1
"""Segment number of rows being judged."""
_COVER_RATIO = 2


@dataclass(frozen=True, slots=True)
class SegmentLiveness:
    """What is live in a segment.

    Attributes:
        record: the record of each of its rows in log order, those that GEOMETRY records imply included.
        live: one truth value a row.
        needed: some row is live, or a root lies in it.
        dead_bytes: plain bytes that no root sees and that compaction has not dropped yet.
    """

    row: SegmentRow
    record: NDArray[np.uint32]
    live: NDArray[np.bool_]
    needed: bool
    dead_bytes: int

    def of_record(self, number: int) -> NDArray[np.bool_]:
        """Truth values of the rows in one BATCH record's table."""
        begin, end = np.searchsorted(self.record, (number, number + 1))
        return self.live[begin:end]


@dataclass(frozen=True, slots=True)
class BranchRoots:
    """A branch and its roots, ascending; none when the branch can be seen no more."""

    branch: BranchRow
    positions: list[int]

    @property
    def dead(self) -> bool:
        """Whether no root sees it: none ever will again."""
        return not self.positions and bool(self.branch.closed)


def branch_roots(catalogue: Catalogue, branches: list[BranchRow], leases: Iterable[Position]) -> list[BranchRoots]:
    """Roots of every branch of a source, children first.

    The branches must have been read before the leases: a reader of a head takes its lease first and then looks whether
    the head has moved. What was written behind a head since then counts as live. And points must not be retired between
    this and the end of what it is done for.
    """
    positions: dict[int, set[int]] = {row.branch: set() for row in branches}
    for lease in leases:
        if lease.branch in positions:
            positions[lease.branch].add(lease.sequence)
    for point in catalogue.points(branches[0].source) if branches else ():
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


def branch_liveness(
    records: Records, roots: BranchRoots, segments: list[SegmentRow], wanted: Wanted | None = None
) -> Iterator[SegmentLiveness]:
    """Judge a branch's segments, or those that are wanted of them, newest first.

    Raises:
        DrengineError: DAMAGED when an index cannot be read: then nothing older may be judged.
    """
    positions = np.array(roots.positions, dtype=np.int64)
    cover: dict[int, _Cover] = {}
    interval = -1
    for number in reversed(range(len(segments))):
        segment = segments[number]
        if wanted and not wanted.looked_at[number]:
            continue
        rows = row_set(records.index(segment))
        live = np.zeros(len(rows), dtype=bool)
        intervals = np.searchsorted(positions, segment.first_sequence + rows.record.astype(np.int64), "left")
        beyond = intervals == len(positions)
        # Committed after the roots were read: live on an open branch, out of everybody's sight on a closed one.
        live[beyond] = not roots.branch.closed
        for each in np.unique(intervals[~beyond])[::-1].tolist():
            if each != interval:
                cover, interval = {}, each
            _judge(rows, np.flatnonzero(intervals == each), live, cover)
        if wanted and not wanted.judged[number]:
            continue
        first, last = np.searchsorted(positions, (segment.first_sequence, segment.last_sequence + 1))
        visible = live & (rows.kind != ExtentKind.DROPPED)
        dead = (rows.kind == ExtentKind.DATA) & ~live
        needed = bool(visible.any()) or bool(last > first)
        yield SegmentLiveness(segment, rows.record.astype(np.uint32), live, needed, int(rows.length[dead].sum()))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which segments of a branch must be judged anew, and which must be looked at for that; one truth value each."""

    judged: NDArray[np.bool_]
    looked_at: NDArray[np.bool_]


def to_judge(roots: BranchRoots, known: Sequence[int], segments: list[SegmentRow], due: NDArray[np.bool_]) -> Wanted:
    """What may have changed since the branch was judged by other roots (`known`), and what is `due` anyway.

    What is live in an interval depends on its rows alone. So an interval between two roots that were neighbours
    before is as it was, and so is a segment that lies in such ones. To judge another segment, all newer ones must be
    looked at that share an interval with it, which is its newest: of any other it holds the newest rows itself.
    """
    new, changed = np.array(roots.positions, np.int64), _changed(roots, known)
    before = np.concatenate(([0], np.cumsum(changed)))
    low = np.searchsorted(new, [row.first_sequence for row in segments], "left")
    high = np.searchsorted(new, [row.last_sequence for row in segments], "left")
    judged = due | (before[high + 1] > before[low])
    looked_at = judged.copy()
    shared = -1
    for number in range(len(segments)):
        looked_at[number] |= low[number] == shared
        if judged[number]:
            shared = high[number]
    return Wanted(judged, looked_at)


def first_changed(roots: BranchRoots, known: Sequence[int]) -> int:
    """The position from which on something may have changed since the branch was judged by other roots: not behind
    the last root. 0: anything may have.
    """
    changed = _changed(roots, known)
    if changed[-1]:
        return 0
    first = int(np.argmax(changed)) if changed.any() else len(roots.positions) - 1
    return roots.positions[first - 1] + 1 if first else 0


def _changed(roots: BranchRoots, known: Sequence[int]) -> NDArray[np.bool_]:
    """Of the interval up to each root, and of what lies behind the last: whether it may not be as it was."""
    new, old = np.array(roots.positions, np.int64), np.array(known, np.int64)
    place = np.searchsorted(old, new)
    is_known = np.isin(new, old)
    follows = np.concatenate(([True], is_known[:-1])) & (np.diff(place, prepend=-1) == 1)
    beyond = bool(roots.branch.closed) or not len(new) or bool(len(old) and new[-1] < old[-1])
    return np.append(~(is_known & follows), beyond)


class _Cover:
    """Which bytes of a volume what is newer covers: few sets of ranges, each at least twice as large as the next.

    So it costs no more to add to it, all in all, than to sort what was added.
    """

    def __init__(self) -> None:
        self._sets: list[Ranges] = []

    def left_of(self, flat: FlatMap) -> FlatMap:
        """The parts of a map that are not covered."""
        for ranges in self._sets:
            flat = ranges.left_of(flat)
        return flat

    def add(self, flat: FlatMap) -> None:
        """Cover what a map covers, too."""
        added = Ranges(flat.starts, flat.ends)
        while self._sets and len(self._sets[-1]) <= _COVER_RATIO * len(added):
            added = added.joined(self._sets.pop())
        self._sets.append(added)


def _judge(rows: RowSet, numbers: NDArray[np.int64], live: NDArray[np.bool_], cover: dict[int, _Cover]) -> None:
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
        covered = cover.setdefault(volume, _Cover())
        live[np.unique(covered.left_of(flat).records)] = True
        covered.add(flat)
