"""Cutting a branch back, where the host that wrote it is gone and its newest bytes never reached the object store.

This happens under `ack = "local"` alone, and only to a writer that takes the branch over on another host. In one
transaction the durable position goes back to the newest record all of whose bytes are in the object store or here; the
points behind it go, and so do drills that grew from one of those: what they show can't be read by anybody any more. The
agent sees its target's position go back, and compares everything. What the other host has beyond stays in its spool.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from drengine.model.errors import DrengineError
from drengine.store.blobs import ObjectStorage
from drengine.store.catalogue.interface import Catalogue, Fence
from drengine.store.catalogue.rows import BranchRow, PointRow, SegmentRow
from drengine.store.context import StoreContext
from drengine.store.errors import DAMAGED
from drengine.store.log.grants import take_branch
from drengine.store.names import layer_last, segment_directory, segment_name
from drengine.store.rebuild.salvage import SalvagedBranch, add_records
from drengine.store.segments.format import SegmentIndex
from drengine.store.views.records import SegmentScan

_log = logging.getLogger(__name__)


def cut_back(context: StoreContext, catalogue: Catalogue, row: BranchRow, fence: Fence | None) -> BranchRow:
    """The branch's row as it is then; the same where nothing is lacking. The caller holds the branch's lock.

    Raises:
        DrengineError: LOCK_LOST; what keeps catalogue or storage from answering: then nothing was cut.
    """
    segments = catalogue.segments(row.source, row.branch)
    first = _first_lacking(context, catalogue, row, segments)
    if first is None:
        return row
    kept = [part for part in segments if part.segment < first.segment]
    left = _left_of(context, catalogue, row, kept, first)
    cut = row._replace(
        durable_sequence=left.sequence,
        durable_epoch=left.mark.epoch,
        durable_position=left.mark.position,
        geometry=left.geometry,
    )
    gone = [part for part in segments if part.segment >= first.segment and not _is_kept(part, left)]
    points = [point for point in catalogue.points(row.source, row.branch) if point.sequence > left.sequence]
    with catalogue.transaction(row.source, fence=fence):
        catalogue.put(cut, *left.segments)
        catalogue.remove(*gone, *points, *_damage_of(catalogue, gone))
        _close_beyond(catalogue, cut)
        if judgement := catalogue.judgement(row.source, row.branch):
            catalogue.remove(judgement)
    lost = {"source": row.source, "branch": row.branch, "from": row.durable_sequence, "to": left.sequence}
    _log.warning(
        "a branch is cut back: its newest bytes are on a host that is gone", extra={**lost, "by": first.segment}
    )
    _forget_layers(context, row, first.segment)
    for part in gone:
        context.storage.delete(segment_name(part.source, part.branch, part.segment, part.revision))
    return cut


def _first_lacking(
    context: StoreContext, catalogue: Catalogue, row: BranchRow, segments: list[SegmentRow]
) -> SegmentRow | None:
    """The oldest segment whose committed bytes are not all within reach."""
    storage = context.storage
    if not isinstance(storage, ObjectStorage):
        return None
    ends: dict[str, int] = {}
    for part in catalogue.parts_below(row.source, f"{segment_directory(row.source, row.branch)}/"):
        ends[part.name] = max(ends.get(part.name, 0), part.end)
    for segment in segments:
        name = segment_name(row.source, row.branch, segment.segment, segment.revision)
        if ends.get(name, 0) < segment.committed_length > storage.reachable_length(name):
            return segment
    return None


def _left_of(
    context: StoreContext, catalogue: Catalogue, row: BranchRow, kept: list[SegmentRow], first: SegmentRow
) -> SalvagedBranch:
    """The branch's state after the newest record that is within reach; `segments` has what is left of the first."""
    left = SalvagedBranch(sequence=row.base_sequence)
    base = catalogue.point(row.source, row.parent, row.base_sequence) if row.parent else None
    left.geometry = base.geometry if base else b""
    if kept:
        add_records(left, context.records.index(kept[-1]), kept[-1].revision)
        left.segments = []
    index = _index_within_reach(context, first)
    if index is not None and index.record_count:
        add_records(left, index, first.revision)
    return left


def _index_within_reach(context: StoreContext, part: SegmentRow) -> SegmentIndex | None:
    """A segment's committed records that are whole within what can be read of its file; None: not even its header."""
    name = segment_name(part.source, part.branch, part.segment, part.revision)
    assert isinstance(context.storage, ObjectStorage)
    until = min(context.storage.reachable_length(name), part.committed_length)
    if not until:
        return None
    reader = context.storage.open(name)
    try:
        scan = SegmentScan(reader, context.keys)
        scan.extend(reader, until)
    except DrengineError as error:
        if error.kind is not DAMAGED:
            raise
        return None
    finally:
        reader.close()
    return scan.index()


def _is_kept(part: SegmentRow, left: SalvagedBranch) -> bool:
    return any(part.segment == each.segment for each in left.segments)


def _damage_of(catalogue: Catalogue, gone: list[SegmentRow]) -> Iterator[object]:
    numbers = {(part.branch, part.segment) for part in gone}
    if gone:
        yield from (bad for bad in catalogue.damage(gone[0].source) if (bad.branch, bad.segment) in numbers)


def _close_beyond(catalogue: Catalogue, cut: BranchRow) -> None:
    """Close the branches that grew from a position that is gone, and those that grew from them; their points go."""
    branches = catalogue.branches(cut.source)
    beyond = {
        each.branch for each in branches if each.parent == cut.branch and each.base_sequence > cut.durable_sequence
    }
    while more := {each.branch for each in branches if each.parent in beyond} - beyond:
        beyond |= more
    for each in branches:
        if each.branch in beyond:
            points: list[PointRow] = catalogue.points(cut.source, each.branch)
            catalogue.remove(*points)
            catalogue.put(each._replace(closed=1))
            take_branch(catalogue, cut.source, each.branch, points=True)


def _forget_layers(context: StoreContext, row: BranchRow, segment: int) -> None:
    """No layer may know of records that are gone."""
    for name in context.storage.list(f"{segment_directory(row.source, row.branch)}/"):
        if layer_last(name) >= segment:
            context.storage.delete(name)
    context.layers.forget(row.source, row.branch)
    context.records.forget_source(row.source)
