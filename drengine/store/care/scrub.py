"""Scrub and verify: reading everything again, hashing it again, and remembering what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.model.extents import BATCH_PLAIN_BYTES_MAX
from drengine.model.points import RecoveryPoint
from drengine.store.blobs import has_copies
from drengine.store.care.compaction import CompactionReport, rewrite
from drengine.store.catalogue.rows import OPEN, SEALED, DamageRow, SegmentRow
from drengine.store.context import StoreContext
from drengine.store.copies import copy_row
from drengine.store.damage import WHOLE_SEGMENT, DamagedRange, damage_row, judge_points
from drengine.store.errors import DAMAGED, MAINTENANCE_BUSY, NOT_UPLOADED, read_errors
from drengine.store.names import segment_name
from drengine.store.segments.format import RecordType, SegmentIndex
from drengine.store.views.records import Address, RecordFault, read_sealed
from drengine.store.views.view import View
from drengine.store.views.windows import Piece

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes to do) now and then."""

_WINDOW_BYTES = 1 << 30


@dataclass(slots=True)
class VerifyReport:
    """What verifying a point found.

    Attributes:
        point: the point.
        bytes_read: plain bytes of the point that were read and hashed.
        damaged: ranges of it that cannot be read; empty when it is whole.
    """

    point: RecoveryPoint
    bytes_read: int = 0
    damaged: list[DamagedRange] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Everything was read and matched its hash."""
        return not self.damaged


@dataclass(slots=True)
class ScrubReport:
    """What a scrub found.

    Attributes:
        segments, records, bytes_read: how much was read (file bytes).
        records_damaged: records whose data cannot be read, as text for people.
        segments_repaired: segments in which one of two copies of the index was damaged, written anew.
        points_damaged: (source, point id) of points that need damaged data.
    """

    segments: int = 0
    records: int = 0
    bytes_read: int = 0
    records_damaged: list[str] = field(default_factory=list)
    segments_repaired: int = 0
    points_damaged: list[tuple[str, str]] = field(default_factory=list)


def verify(context: StoreContext, view: View, progress: Progress) -> VerifyReport:
    """Read and hash again everything that a point shows; the point then says when, or that it is damaged."""
    if view.point is None:
        raise ValueError("only a point can be verified")
    point = view.point
    report = VerifyReport(point)
    bad: list[DamageRow] = []
    addresses, ranges = _addresses(view)
    for number, address in enumerate(sorted(addresses)):
        if faults := _faults(context, address):
            bad.append(damage_row(context, address, faults[0].reason))
            report.damaged += ranges(address, faults)
        else:
            report.bytes_read += addresses[address]
        progress(number + 1, len(addresses))
    if context.read_only:
        return report
    catalogue = context.catalogue
    with catalogue.transaction(point.source):
        catalogue.put(*bad)
        row = catalogue.point(point.source, point.branch, point.sequence)
        if row and not bad:
            known = {(d.branch, d.segment, d.record): d for d in catalogue.damage(point.source)}
            healed = [known[address[1:]] for address in addresses if address[1:] in known]
            catalogue.remove(*healed)
            catalogue.put(row._replace(verified_ns=context.clock.now_ns()))
    judge_points(context, point.source)
    return report


def scrub(context: StoreContext, progress: Progress, yield_to: Callable[[], None]) -> ScrubReport:
    """Read and hash again everything that is stored, needed or not."""
    report = ScrubReport()
    catalogue = context.catalogue
    if context.keys.is_encrypted:
        catalogue.check()  # its seal, which otherwise is compared with all rows only when a store is opened
    parts = [
        row
        for source in catalogue.sources()
        for branch in catalogue.branches(source.name)
        for row in catalogue.segments(source.name, branch.branch)
    ]
    total = sum(row.committed_length for row in parts)
    found: list[DamageRow] = []
    looked_at: list[SegmentRow] = []
    for row in parts:
        fresh = catalogue.segment(row.source, row.branch, row.segment)
        if fresh is None:
            continue
        try:
            found += _scrub_segment(context, fresh, report, yield_to)
        except DrengineError as error:
            if error.kind is not NOT_UPLOADED:  # the host that has it looks at it
                raise
            continue
        looked_at.append(row)
        report.bytes_read += fresh.committed_length
        progress(report.bytes_read, total)
    report.records_damaged = [
        f"{Address(row.source, row.branch, row.segment, row.record)}: {row.reason}" for row in found
    ]
    if not context.read_only:
        _remember(context, found, looked_at)
    for source in catalogue.sources():
        damaged = [point for point in catalogue.points(source.name) if point.damaged]
        report.points_damaged += [(point.source, point.value().id) for point in damaged]
    return report


def _remember(context: StoreContext, found: list[DamageRow], looked_at: list[SegmentRow]) -> None:
    """Replace what was known of these segments by what was found."""
    catalogue = context.catalogue
    seen = {(row.source, row.branch, row.segment) for row in looked_at}
    for source in catalogue.sources():
        with catalogue.transaction(source.name):
            known = catalogue.damage(source.name)
            catalogue.remove(*(row for row in known if (row.source, row.branch, row.segment) in seen))
            catalogue.put(*(row for row in found if row.source == source.name))
        judge_points(context, source.name)


def _scrub_segment(
    context: StoreContext, row: SegmentRow, report: ScrubReport, yield_to: Callable[[], None]
) -> list[DamageRow]:
    found = list(segment_damage(context, row, report, yield_to))
    if not found and row.state != OPEN and not context.read_only and copy_row(context.catalogue) is None:
        _repair(context, row, report, yield_to)
    return found


def segment_damage(
    context: StoreContext, row: SegmentRow, report: ScrubReport, yield_to: Callable[[], None]
) -> Iterator[DamageRow]:
    """Read and hash again everything in a segment; what of it cannot be read."""
    report.segments += 1
    try:
        index = context.records.index(row)
    except DrengineError as error:
        if error.kind is not DAMAGED:
            raise
        first = row.first_sequence + _readable_records(context, row)
        place = (row.source, row.branch, row.segment)
        yield DamageRow(*place, WHOLE_SEGMENT, first, context.clock.now_ns(), error.message)
        return
    for number in range(index.record_count):
        yield_to()
        report.records += 1
        if index.type(number) != RecordType.BATCH:
            continue
        address = Address(row.source, row.branch, row.segment, number)
        if faults := _faults(context, address):
            context.records.forget(address)
            yield damage_row(context, address, faults[0].reason)


def _repair(context: StoreContext, row: SegmentRow, report: ScrubReport, yield_to: Callable[[], None]) -> None:
    """Write a whole segment anew of which one of two copies of the index is damaged."""
    if _copies_agree(context, row, context.records.index(row)):
        return
    try:
        with context.locks.maintenance():
            rewrite(context, row, None, CompactionReport(), yield_to)
        report.segments_repaired += 1
    except DrengineError as error:
        if error.kind is not MAINTENANCE_BUSY:
            raise


def _readable_records(context: StoreContext, row: SegmentRow) -> int:
    """How many records from the start of a damaged segment can be read."""
    try:
        return context.records.index(row, 0).record_count
    except DrengineError:
        return 0


def _copies_agree(context: StoreContext, row: SegmentRow, index: SegmentIndex) -> bool:
    """Whether a sealed segment's index is intact in storage and repeats what its records say."""
    name = segment_name(row.source, row.branch, row.segment, index.header.revision)
    if _agree(context, row, index, name):
        return True
    if not has_copies(context.storage):
        return False
    context.storage.forget_copies(name)
    return _agree(context, row, index, name)


def _agree(context: StoreContext, row: SegmentRow, index: SegmentIndex, name: str) -> bool:
    with read_errors(name):
        reader = context.storage.open(name)
        try:
            if row.state == SEALED:
                read_sealed(reader, row.length, context.keys)
            for number, offset in enumerate(index.offsets.tolist()):
                expected = index.records[number].tobytes() + index.stored_table(number)
                if reader.read_at(offset, len(expected)) != expected:
                    return False
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
            return False
        finally:
            reader.close()
    return True


def _addresses(view: View) -> tuple[dict[Address, int], Callable[[Address, list[RecordFault]], list[DamagedRange]]]:
    """Every record that a view shows with the bytes that it shows of it, and a way to ask where faults of one show."""

    def walk() -> Iterator[tuple[int, Address, Piece]]:
        for volume, geometry in view.geometry.items():
            for at in view.data_windows(volume, _WINDOW_BYTES):
                for piece in view.pieces(volume, at, min(_WINDOW_BYTES, geometry.size_bytes - at)):
                    if piece.segment > 0:
                        yield volume, Address(view.position.source, piece.branch, piece.segment, piece.record), piece

    def ranges(wanted: Address, faults: list[RecordFault]) -> list[DamagedRange]:
        found = []
        for volume, address, piece in walk():
            for fault in faults if address == wanted else ():
                begin, end = fault.within(piece.plain_offset, piece.length)
                if begin < end:
                    found.append(DamagedRange(volume, piece.offset + begin - piece.plain_offset, end - begin))
        return found

    shown: dict[Address, int] = {}
    for _, address, piece in walk():
        shown[address] = shown.get(address, 0) + piece.length
    return shown, ranges


def _faults(context: StoreContext, address: Address) -> list[RecordFault]:
    """What of a record cannot be read from storage; all of it when not even its table can."""
    try:
        return context.records.faults(address)
    except DrengineError as error:
        if error.kind is not DAMAGED:
            raise
        return [RecordFault(0, BATCH_PLAIN_BYTES_MAX, error.message)]
