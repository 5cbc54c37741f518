"""Branches: growing one from a point, promoting it, closing it. All at once, without copying data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from drengine.crypt.errors import SOURCE_ERASED
from drengine.model.errors import DrengineError
from drengine.model.extents import OFFSET_MAX
from drengine.model.homes import Home
from drengine.model.points import Mark, RecoveryPoint
from drengine.store.catalogue.rows import ERASED, SIDE_ROLES, BranchRow, PointRow
from drengine.store.context import StoreContext
from drengine.store.copies import first_number, part, require_own
from drengine.store.errors import DAMAGED, FENCED, POINT_IN_USE, UNKNOWN_POINT
from drengine.store.log.grants import take_branch
from drengine.store.rebuild.manifest import write_manifest

_HANDED_BACK = re.compile(r"run:[^:]+:back(?::(?P<home>[a-z0-9._-]+))?")


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """A branch of a source.

    Attributes:
        number: 1 is the trunk.
        parent, base_sequence: where it grew from; 0 for the trunk.
        generation: of its writer when it was made.
        role: ``trunk``, ``promoted``, ``drill`` or ``divergent`` (what a source had beyond the replica).
        closed: it takes no more writes.
        durable_sequence: its newest durable position.
        active: the branch that the source's generation writes.
    """

    number: int
    parent: int
    base_sequence: int
    generation: int
    role: str
    label: str
    closed: bool
    durable_sequence: int
    active: bool

    @property
    def is_sources_own(self) -> bool:
        """Whether the source's own disks write it: its trunk, or what a run handed back to it (failover/labels.py)."""
        return self.role == "trunk" or (self.role == "promoted" and _HANDED_BACK.fullmatch(self.label) is not None)

    @property
    def home(self) -> str:
        """Name of the agent to which a run handed it back, where that is not the source's namesake; else empty."""
        found = _HANDED_BACK.fullmatch(self.label) if self.role == "promoted" else None
        return (found["home"] or "") if found else ""


class Branches:
    """The tree of branches of each source."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context

    def list(self, source: str) -> list[BranchInfo]:
        """All branches, by number."""
        active = self._context.catalogue.source(source).active_branch
        return [_info(row, active) for row in self._context.catalogue.branches(source)]

    def home(self, source: str) -> Home:
        """Where a source lives: with the agent that was given its newest own branch."""
        own = [each for each in self.list(source) if each.is_sources_own]
        homes = [each.home or source for each in sorted(own, key=lambda each: (each.generation, each.number))]
        return Home(homes[-1], frozenset(homes) - {homes[-1]}) if homes else Home(source)

    def create(self, point: RecoveryPoint, *, role: str, label: str) -> BranchInfo:
        """A branch beside the active one; it is fenced by its own generation only."""
        if role not in SIDE_ROLES:
            raise ValueError(f"a branch beside the active one is no {role!r}")
        catalogue = self._context.catalogue
        if role != "drill":
            require_own(catalogue, "what a source had beyond it belongs there")
        mark = self._mark_of(point)
        with catalogue.transaction(point.source):
            source = catalogue.source(point.source)
            row = self._new_row(self.kept(point), mark, source.generation, role, label)
            catalogue.put(row)
        write_manifest(self._context, point.source)
        return _info(row, source.active_branch)

    def promote(
        self, point: RecoveryPoint, *, expected_generation: int, label: str, permit: Callable[[], None]
    ) -> BranchInfo:
        """The new active branch, under the next generation. The transaction lets one of two promoters win."""
        catalogue = self._context.catalogue
        mark = self._mark_of(point)
        with catalogue.transaction(point.source):
            permit()
            source = catalogue.source(point.source)
            if source.generation != expected_generation:
                raise DrengineError(
                    FENCED,
                    f"{point.source!r} is at generation {source.generation}, not {expected_generation}: "
                    "somebody else promoted it",
                )
            kept = self.kept(point)
            if kept.damaged == ERASED:
                raise DrengineError(SOURCE_ERASED, f"point {point.id} of {point.source!r} needs what was erased")
            if kept.damaged:
                raise DrengineError(DAMAGED, f"point {point.id} of {point.source!r} has unreadable data")
            row = self._new_row(kept, mark, source.generation + 1, "promoted", label)
            left = catalogue.branch(point.source, source.active_branch)
            part(catalogue, self._context.directory)
            take_branch(catalogue, point.source, left.branch, points=False)
            catalogue.put(
                row,
                left._replace(superseded_ns=self._context.clock.now_ns()),
                source._replace(generation=row.generation, active_branch=row.branch),
            )
        # A catalogue lost from now on must not bring the old generation back.
        write_manifest(self._context, point.source)
        return _info(row, row.branch)

    def close(self, source: str, branch: int) -> None:
        """Close a branch that is not the active one."""
        catalogue = self._context.catalogue
        catalogue.branch(source, branch)
        with self._context.locks.branch(source, branch), catalogue.transaction(source):
            if catalogue.source(source).active_branch == branch:
                raise DrengineError(POINT_IN_USE, f"branch {branch} is the active one of {source!r}")
            catalogue.put(catalogue.branch(source, branch)._replace(closed=1))
            take_branch(catalogue, source, branch, points=True)
        write_manifest(self._context, source)

    def ancestry_points(self, source: str) -> Iterator[PointRow]:
        """Points of the active branch and of what it grew from, newest first."""
        branch = self._context.catalogue.source(source).active_branch
        sequence = OFFSET_MAX
        while branch:
            yield from self._context.catalogue.points_newest_first(source, branch, sequence)
            row = self._context.catalogue.branch(source, branch)
            branch, sequence = row.parent, row.base_sequence

    def is_in_history(self, point: RecoveryPoint) -> bool:
        """Whether a point lies on the active branch or on what it grew from."""
        branch, sequence = self._context.catalogue.source(point.source).active_branch, OFFSET_MAX
        while branch:
            if branch == point.branch:
                return point.sequence <= sequence
            row = self._context.catalogue.branch(point.source, branch)
            branch, sequence = row.parent, min(sequence, row.base_sequence)
        return False

    def kept(self, point: RecoveryPoint) -> PointRow:
        """A point's row.

        Raises:
            DrengineError: UNKNOWN_POINT.
        """
        row = self._context.catalogue.point(point.source, point.branch, point.sequence)
        if row is None:
            raise DrengineError(UNKNOWN_POINT, f"point {point.id} of {point.source!r} is gone")
        return row

    def _new_row(self, point: PointRow, mark: Mark, generation: int, role: str, label: str) -> BranchRow:
        catalogue = self._context.catalogue
        number = max(row.branch for row in catalogue.branches(point.source)) + 1
        return BranchRow(
            source=point.source,
            branch=max(number, first_number(catalogue)),
            parent=point.branch,
            base_sequence=point.sequence,
            generation=generation,
            role=role,
            label=label,
            closed=0,
            created_ns=self._context.clock.now_ns(),
            superseded_ns=0,
            durable_sequence=point.sequence,
            durable_epoch=mark.epoch,
            durable_position=mark.position,
            geometry=point.geometry,
        )

    def _mark_of(self, point: RecoveryPoint) -> Mark:
        """The mark at the point's cut; none when its record cannot be read, which only costs a rescan."""
        row = self._context.catalogue.segment_at(point.source, point.branch, point.sequence)
        if row is None or row.last_sequence < point.sequence:
            return Mark()
        try:
            return self._context.records.index(row).mark(point.sequence - row.first_sequence)
        except DrengineError:
            return Mark()


def _info(row: BranchRow, active: int) -> BranchInfo:
    return BranchInfo(
        number=row.branch,
        parent=row.parent,
        base_sequence=row.base_sequence,
        generation=row.generation,
        role=row.role,
        label=row.label,
        closed=bool(row.closed),
        durable_sequence=row.durable_sequence,
        active=row.branch == active,
    )
