"""What cannot be read, and which points need it.

Damage is recorded per record. A point is damaged when something it shows lies in such a record; one cut later, after
the source has sent the range again, is not. Damage never shortens a branch: later good data stays (fault 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from drengine.model.errors import DrengineError
from drengine.model.extents import OFFSET_MAX
from drengine.model.points import VolumeGeometry
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import ERASED, BranchRow, DamageRow, PointRow
from drengine.store.context import StoreContext
from drengine.store.errors import DAMAGED
from drengine.store.locks import Position
from drengine.store.segments.format import parse_geometry
from drengine.store.segments.rowset import row_set
from drengine.store.views.records import ERASED_REASON, Address
from drengine.store.views.view import look_up

WHOLE_SEGMENT = -1
"""Record number of damage to a segment of which not even the tables can be read."""


class DamagedRange(NamedTuple):
    """Bytes of a volume that cannot be read at the head of the active branch."""

    volume: int
    offset: int
    length: int


def damage_row(context: StoreContext, address: Address, reason: str) -> DamageRow:
    """The row for a record that was found unreadable."""
    row = context.catalogue.segment(address.source, address.branch, address.segment)
    first = row.first_sequence if row else 0
    return DamageRow(*address, first + address.record, context.clock.now_ns(), reason)


def record_damage(context: StoreContext, rows: Iterable[DamageRow]) -> None:
    """Remember damage and mark the points that need it."""
    found = list(rows)
    if not found or context.read_only:
        return
    context.place.require()  # what is missing with the whole store is not damaged
    for source in {row.source for row in found}:
        with context.catalogue.transaction(source):
            context.catalogue.put(*(row for row in found if row.source == source))
        judge_points(context, source)


def judge_points(context: StoreContext, source: str, only: Iterable[PointRow] | None = None) -> list[PointRow]:
    """Decide anew for each point (or some) whether it needs anything that is damaged; returns them as judged."""
    catalogue = context.catalogue
    damage = catalogue.damage(source)
    judged = []
    for point in catalogue.points(source) if only is None else only:
        position = Position(source, point.branch, point.sequence)
        geometry = parse_geometry(point.geometry)
        damaged = int(bool(damage) and bool(_needed(context, damage, position, geometry)))
        if damaged and (gone := [row for row in damage if row.reason == ERASED_REASON]):
            damaged = ERASED if _needed(context, gone, position, geometry) else damaged
        judged.append(point._replace(damaged=damaged))
        if damaged == point.damaged:
            continue
        with catalogue.transaction(source):
            fresh = catalogue.point(point.source, point.branch, point.sequence)
            if fresh:
                catalogue.put(fresh._replace(damaged=damaged))
    return judged


def damaged_ranges(context: StoreContext, source: str) -> list[DamagedRange]:
    """What the source should send again: unreadable bytes at the head of its active branch, in order."""
    catalogue = context.catalogue
    damage = catalogue.damage(source)
    if not damage:
        return []
    head = catalogue.branch(source, catalogue.source(source).active_branch)
    sizes = {volume.volume: volume.size_bytes for volume in parse_geometry(head.geometry)}
    position = Position(source, head.branch, head.durable_sequence)
    needed = _needed(context, damage, position, parse_geometry(head.geometry))
    if needed is _EVERYTHING:
        return [DamagedRange(volume, 0, size) for volume, size in sorted(sizes.items()) if size]
    clipped = [
        DamagedRange(item.volume, item.offset, min(item.length, sizes.get(item.volume, 0) - item.offset))
        for item in needed
    ]
    return _joined(item for item in clipped if item.length > 0)


_EVERYTHING: list[DamagedRange] = [DamagedRange(0, 0, OFFSET_MAX)]


def _needed(
    context: StoreContext,
    damage: list[DamageRow],
    position: Position,
    geometry: tuple[VolumeGeometry, ...],
) -> list[DamagedRange]:
    """Ranges that a position shows and that lie in damaged records; _EVERYTHING when that cannot be known."""
    source, branch, sequence = position.source, position.branch, position.sequence
    visible = [row for row in damage if _sees(context.catalogue, source, branch, sequence, row)]
    if not visible:
        return []
    try:
        stack = context.layers.stack(source, branch, sequence, geometry)
        found = []
        for bad in visible:
            for volume, start, length in _ranges_of(context, bad, geometry):
                for piece in look_up(stack, volume, start, length):
                    if (piece.branch, piece.segment) == (bad.branch, bad.segment) and bad.record in (
                        piece.record,
                        WHOLE_SEGMENT,
                    ):
                        found.append(DamagedRange(volume, piece.offset, piece.length))
    except DrengineError as error:
        if error.kind is not DAMAGED:
            raise
        return _EVERYTHING
    return found


def _ranges_of(
    context: StoreContext, bad: DamageRow, geometry: tuple[VolumeGeometry, ...]
) -> Iterator[tuple[int, int, int]]:
    """(volume, start, length) that cannot be read of what a record wrote; all of every volume when it cannot be told.

    The record is read again, because one bad frame spoils only what lies in it. Where nothing fails now, something
    failed before: then all of it counts.
    """
    segment = context.catalogue.segment(bad.source, bad.branch, bad.segment)
    if bad.record == WHOLE_SEGMENT or segment is None:
        yield from ((volume.volume, 0, volume.size_bytes) for volume in geometry)
        return
    rows = row_set(context.records.index(segment), bad.record, 1)
    rows = rows.take(rows.carries)
    faults = context.records.faults(Address(*bad[:4]))
    if faults:
        plain_ends = rows.plain_offset + rows.length
        rows = rows.take(
            np.any([(rows.plain_offset < fault.end) & (plain_ends > fault.begin) for fault in faults], axis=0)
        )
    yield from zip(rows.volume.tolist(), rows.start.tolist(), rows.length.tolist(), strict=True)


def _sees(catalogue: Catalogue, source: str, branch: int, sequence: int, row: DamageRow) -> bool:
    """Whether a position lies behind the damage, on its branch or on one that grew from it later."""
    at: BranchRow | None = None
    while branch and branch != row.branch:
        at = catalogue.branch(source, branch)
        branch, sequence = at.parent, at.base_sequence
    return branch == row.branch and sequence >= row.sequence


def _joined(ranges: Iterable[DamagedRange]) -> list[DamagedRange]:
    joined: list[DamagedRange] = []
    for item in sorted(ranges):
        last = joined[-1] if joined else None
        if last and last.volume == item.volume and item.offset <= last.offset + last.length:
            end = max(last.offset + last.length, item.offset + item.length)
            joined[-1] = last._replace(length=end - last.offset)
        else:
            joined.append(item)
    return joined
