"""A store's objects: deleting those about which it was decided, and holding the catalogue against what is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from drengine.model.errors import DrengineError
from drengine.store.blobs import ObjectStorage
from drengine.store.blobs.index import PartRow, end_of
from drengine.store.catalogue.rows import SegmentRow
from drengine.store.context import StoreContext
from drengine.store.names import segment_directory, segment_name
from drengine.store.views.records import SegmentScan

AT_ONCE = 10_000


def delete_decided(context: StoreContext) -> int:
    """Delete objects whose decision is old enough and whose source nobody reads; how many decisions were carried out.

    A reader that comes later goes by the rows that the deciding transaction left, so it does not need them. The caller
    maintains the store.

    Raises:
        DrengineError: what is wrong with the object store; the decisions stay.
    """
    storage = context.storage
    if not isinstance(storage, ObjectStorage):
        return 0
    read = {lease.source for lease in context.locks.leased_positions()}
    before_ns = context.clock.now_ns() - int(storage.delete_delay_seconds * 1e9)
    decided = sorted(context.catalogue.object_removals(), key=lambda row: row.source)
    due = [row for row in decided if row.source not in read and row.decided_ns <= before_ns][:AT_ONCE]
    for source, rows in groupby(due, key=lambda row: row.source):
        gone = list(rows)
        storage.delete_objects(gone)
        with context.catalogue.transaction(source):
            context.catalogue.remove(*gone)
    return len(due)


def uploaded_sequence(context: StoreContext, source: str, branch: int) -> int | None:
    """The newest position of a branch before which the object store has every byte; None where there is none.

    What a branch grew from counts: a history that the object store does not have is not there with it.
    """
    if not isinstance(context.storage, ObjectStorage):
        return None
    row = context.catalogue.branch(source, branch)
    if row.parent:
        base = uploaded_sequence(context, source, row.parent)
        if base is not None and base < row.base_sequence:
            return base
    prefix = f"{segment_directory(source, branch)}/"
    parts: dict[str, list[PartRow]] = {}
    for part in context.catalogue.parts_below(source, prefix):
        parts.setdefault(part.name, []).append(part)
    for segment in context.catalogue.segments(source, branch):
        available = end_of(parts.get(segment_name(*segment[:4]), []))
        if available < segment.committed_length:
            return segment.first_sequence - 1 + _whole_records(context, segment, available)
    return row.durable_sequence


def _whole_records(context: StoreContext, segment: SegmentRow, length: int) -> int:
    """How many records of a segment lie in its first bytes; none where it can't be told."""
    try:
        reader = context.storage.open(segment_name(*segment[:4]))
        try:
            scan = SegmentScan(reader, context.keys)
            scan.extend(reader, length)
            index = scan.index()
        finally:
            reader.close()
    except (OSError, DrengineError):
        return 0
    ends = (sum(index.payload_range(number)) for number in range(index.record_count))
    return sum(end <= length for end in ends)


@dataclass(slots=True)
class ObjectReport:
    """The catalogue beside the object store.

    Attributes:
        named: objects that the catalogue names.
        missing: those of them that are not there, or are shorter than it says: their keys.
        unnamed, unnamed_bytes: objects that it neither names nor decided about. They stay: a rebuild looks at them.
        decided: objects and files that are to be deleted.
        aside: files in this host's spool that count no more, because another host has written the branch since.
        waiting_bytes: what is acknowledged and was not uploaded from this host.
    """

    named: int = 0
    missing: list[str] = field(default_factory=list)
    unnamed: int = 0
    unnamed_bytes: int = 0
    decided: int = 0
    aside: list[str] = field(default_factory=list)
    waiting_bytes: int = 0


def compare_objects(context: StoreContext) -> ObjectReport:
    """Hold the catalogue against a listing; what the listing lacks is asked for by its key.

    Raises:
        DrengineError: what is wrong with the object store.
    """
    report, storage = ObjectReport(), context.storage
    if not isinstance(storage, ObjectStorage):
        return report
    listed = storage.objects()
    with context.catalogue.snapshot():
        named = {row.key: row.length for row in context.catalogue.all_parts() if row.object}
        decided = {row.key for row in context.catalogue.object_removals()}
    report.named, report.decided = len(named), len(decided)
    for key, length in sorted(named.items()):
        if listed.get(key) != length and storage.size_of(key) != length:
            report.missing.append(key)
    for key, size in listed.items():
        folder = key.rpartition("/")[0] + "/"
        if key not in named and key not in decided and folder not in decided:
            report.unnamed += 1
            report.unnamed_bytes += size
    report.aside = [f"{name}.{file}" for name, file in storage.aside()]
    report.waiting_bytes = storage.backlog().bytes
    return report
