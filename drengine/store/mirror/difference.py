"""What a copy of a source lacks, and how far it may be brought with what has arrived. Pure: rows in, rows out.

What the catalogue says of a source grows at its end, and old segments are written anew by compaction. Any older
revision of a segment shows at every kept point what the newest one shows, so only new records are in a hurry: what
compaction has replaced or removed follows when there is time for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import (
    OPEN,
    SEALED,
    SIDE_ROLES,
    BranchRow,
    InventoryRow,
    PointRow,
    SegmentRow,
    SourceRow,
)
from drengine.store.copies import LOCAL_BRANCHES

Key = tuple[int, int]
"""A branch, and the number of a segment or point on it."""


@dataclass(slots=True)
class SourceRows:
    """A source as a catalogue has it, without branches that only the copy has."""

    source: SourceRow | None = None
    branches: dict[int, BranchRow] = field(default_factory=dict)
    segments: dict[Key, SegmentRow] = field(default_factory=dict)
    points: dict[Key, PointRow] = field(default_factory=dict)
    locked_seconds: dict[Key, int] = field(default_factory=dict)
    inventory: InventoryRow | None = None

    @staticmethod
    def read(catalogue: Catalogue, name: str) -> SourceRows:
        """All of it, of one moment if the caller holds a snapshot."""
        rows = SourceRows(next((row for row in catalogue.sources() if row.name == name), None))
        for branch in catalogue.branches(name):
            if branch.branch < LOCAL_BRANCHES:
                rows.branches[branch.branch] = branch
                rows.segments |= {(row.branch, row.segment): row for row in catalogue.segments(name, branch.branch)}
        for point in catalogue.points(name):
            if point.branch < LOCAL_BRANCHES:
                rows.points[point.branch, point.sequence] = point
        rows.inventory = catalogue.inventory(name)
        return rows


def file_length(row: SegmentRow | None) -> int:
    """How much of a segment's file counts."""
    if row is None:
        return 0
    return row.length if row.state == SEALED else row.committed_length


def is_urgent(theirs: SegmentRow, mine: SegmentRow | None) -> bool:
    """Whether a segment has records, or a seal, that no file of the copy has."""
    if mine is None:
        return True
    if theirs.revision == mine.revision:
        return file_length(theirs) > file_length(mine)
    return theirs.last_sequence > mine.last_sequence


def missing_bytes(theirs: SegmentRow, mine: SegmentRow | None) -> int:
    """How many bytes of its file the copy lacks."""
    known = file_length(mine) if mine and mine.revision == theirs.revision else 0
    return max(file_length(theirs) - known, 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a copy lacks of a source.

    Attributes:
        theirs, mine: the original's rows, and the copy's.
        urgent: segments with new records, in the order in which they are taken.
        replaced: segments that compaction has written anew, as the original has them.
        removed: segments of the copy that the original has removed.
    """

    theirs: SourceRows
    mine: SourceRows
    urgent: tuple[SegmentRow, ...]
    replaced: tuple[SegmentRow, ...]
    removed: tuple[SegmentRow, ...]

    @staticmethod
    def between(theirs: SourceRows, mine: SourceRows) -> Difference:
        """Compare."""
        urgent, replaced = [], []
        for key, row in sorted(theirs.segments.items()):
            known = mine.segments.get(key)
            if is_urgent(row, known):
                urgent.append(row)
            elif known and known.revision != row.revision:
                replaced.append(row)
        removed = [row for key, row in sorted(mine.segments.items()) if key not in theirs.segments]
        return Difference(theirs, mine, tuple(urgent), tuple(replaced), tuple(removed))

    @property
    def name(self) -> str:
        """Of the source."""
        return self.theirs.source.name if self.theirs.source else ""

    @property
    def bytes_behind(self) -> int:
        """File bytes of new records that the copy lacks."""
        return sum(missing_bytes(row, self.mine.segments.get((row.branch, row.segment))) for row in self.urgent)

    @property
    def grown(self) -> list[SegmentRow]:
        """Segments that were closed here and have other records there: a rebuild found more, or a target lost some."""
        return [
            row
            for key, row in self.theirs.segments.items()
            if (known := self.mine.segments.get(key))
            and known.state != OPEN
            and known.last_sequence != row.last_sequence
        ]

    def reach(self, arrived: Collection[Key]) -> dict[int, int]:
        """Up to which position of each branch the copy may go, once these urgent segments have arrived.

        A branch whose parent does not reach its base is not among them.
        """
        reached: dict[int, int] = {}
        for number, branch in sorted(self.theirs.branches.items()):
            if branch.parent and reached.get(branch.parent, -1) < branch.base_sequence:
                continue
            missing = [row for row in self.urgent if row.branch == number and (number, row.segment) not in arrived]
            if not missing:
                reached[number] = branch.durable_sequence
                continue
            known = self.mine.segments.get((number, missing[0].segment))
            before = [row.last_sequence for key, row in self.theirs.segments.items() if _is_before(key, missing[0])]
            reached[number] = known.last_sequence if known else max(before, default=branch.base_sequence)
        return reached

    def rows(
        self, reached: dict[int, int], protected: Collection[Key], at: Callable[[BranchRow, int], BranchRow]
    ) -> tuple[list[Any], list[Any]]:
        """Rows that the copy is to put, and those that it is to remove.

        Args:
            reached: see `reach`.
            protected: points of the copy that somebody there reads, or has grown a branch from.
            at: a branch's row as it was at an earlier position.
        """
        put: list[Any] = []
        for number, position in reached.items():
            row, known = self.theirs.branches[number], self.mine.branches.get(number)
            if position < row.durable_sequence:
                row = _held_back(row, known, position, at)
            put.append(row)
        put += self._segments(reached)
        put += [self._point(row) for row in self.theirs.points.values() if row.sequence <= reached.get(row.branch, -1)]
        put += self._source(reached)
        put += [self.theirs.inventory] if self.theirs.inventory else []
        mine = [*self._known(), *self.mine.segments.values()]
        known_rows = set(map(tuple, mine))
        gone: list[Any] = [
            row for key, row in self.mine.points.items() if key not in self.theirs.points and key not in protected
        ]
        gone += [row for number, row in self.mine.branches.items() if number not in self.theirs.branches]
        gone += [self.mine.inventory] if self.mine.inventory and not self.theirs.inventory else []
        return [row for row in put if tuple(row) not in known_rows], gone

    def _known(self) -> Iterator[Any]:
        if self.mine.source:
            yield self.mine.source
        yield from self.mine.branches.values()
        yield from self.mine.points.values()
        if self.mine.inventory:
            yield self.mine.inventory

    def _segments(self, reached: dict[int, int]) -> Iterator[SegmentRow]:
        """Rows of what has arrived; what compaction has replaced stays as the copy has it."""
        for key, row in self.theirs.segments.items():
            known = self.mine.segments.get(key)
            if row.last_sequence > reached.get(row.branch, -1):
                continue
            if known is None or known.revision == row.revision or is_urgent(row, known):
                yield row

    def _point(self, row: PointRow) -> PointRow:
        """A point as the copy is to have it: what is known of its own bytes is its own."""
        known = self.mine.points.get((row.branch, row.sequence))
        mine = (known.verified_ns, known.damaged) if known else (0, 0)
        return row._replace(verified_ns=mine[0], damaged=mine[1])

    def _source(self, reached: dict[int, int]) -> Iterator[SourceRow]:
        wanted = self.theirs.source
        if wanted is None or not reached:
            return
        if wanted.active_branch in reached:
            yield wanted
        elif self.mine.source is None:
            newest = max(number for number in reached if self.theirs.branches[number].role not in SIDE_ROLES)
            yield SourceRow(wanted.name, self.theirs.branches[newest].generation, newest)


def _is_before(key: Key, row: SegmentRow) -> bool:
    return key[0] == row.branch and key[1] < row.segment


def _held_back(
    row: BranchRow, known: BranchRow | None, position: int, at: Callable[[BranchRow, int], BranchRow]
) -> BranchRow:
    if known and known.durable_sequence == position:
        durable = known
    elif position == row.base_sequence and not row.parent:
        return row._replace(durable_sequence=0, durable_epoch=bytes(16), durable_position=0, geometry=b"")
    else:
        durable = at(row, position)
    return row._replace(
        durable_sequence=position,
        durable_epoch=durable.durable_epoch,
        durable_position=durable.durable_position,
        geometry=durable.geometry,
    )
