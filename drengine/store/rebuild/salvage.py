"""Reading a branch's segments without a catalogue: what is intact, what is torn, what is lost.

Every judgement a rebuild makes about segment files is made here, from the files and the newest manifest alone.

- Of several revisions of a segment the newest that is sealed and intact counts: roots only ever disappear or
  move forward, so what an unfinished compaction dropped is not needed.
- A segment's first position cuts off whatever earlier segments hold from there on: that was never committed.
- A jump in positions is a loss, unless the manifest says that the segments in between were removed.
- The last segment may end torn: whole records up to there are taken, committed or not, for each was
  verified before it was written. Behind the last position a manifest vouches for, the first record that is not whole
  ends the branch: what follows it could not be told from a write that never finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.model.points import Mark
from drengine.store.blobs import Reader, Storage
from drengine.store.catalogue.rows import CUT_OFF, SEALED, DamageRow, PointRow, SegmentRow
from drengine.store.damage import WHOLE_SEGMENT
from drengine.store.errors import DAMAGED, read_errors
from drengine.store.keys import StoreKeys
from drengine.store.names import SegmentPlace, segment_name
from drengine.store.rebuild.manifest import BranchState, branch_row
from drengine.store.segments.format import (
    RecordType,
    SegmentHeader,
    SegmentIndex,
    live_plain_bytes,
    pack_geometry,
    parse_cut,
    parse_geometry,
)
from drengine.store.views.records import SegmentScan, read_sealed


@dataclass(slots=True)
class SalvagedBranch:
    """What the files of one branch still tell.

    Attributes:
        header: start of any of its segments; None when none is readable.
        segments: rows for a new catalogue, oldest first.
        cuts: rows of all points found in the log, kept or not.
        sequence, mark, geometry: the state after the newest intact record.
        damage: what is lost.
    """

    header: SegmentHeader | None = None
    segments: list[SegmentRow] = field(default_factory=list)
    cuts: list[PointRow] = field(default_factory=list)
    sequence: int = 0
    mark: Mark = field(default_factory=Mark)
    geometry: bytes = b""
    damage: list[DamageRow] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """A segment file that can be read at least in part. `torn`: it does not end where a writer would end it."""

    index: SegmentIndex
    revision: int
    sealed_length: int
    torn: bool


def salvage_branch(
    storage: Storage,
    keys: StoreKeys,
    store: bytes | None,
    places: Iterable[SegmentPlace],
    known: BranchState | None,
    *,
    final: bool,
    now_ns: int,
) -> SalvagedBranch:
    """Read one branch's segments.

    Args:
        storage: where they are.
        keys: what decrypts them.
        store: identity of the store; None when it is not known.
        places: its files.
        known: what the newest manifest says of it.
        final: nothing could be committed after that manifest (the branch was superseded or closed before it).
        now_ns: time noted on damage.
    """
    by_segment: dict[int, list[SegmentPlace]] = {}
    for place in sorted(places, key=lambda place: place.segment):
        by_segment.setdefault(place.segment, []).append(place)
    source, branch = _names(by_segment, known)
    found = _readable(storage, keys, store, by_segment, known, final=final)
    result = SalvagedBranch()

    def lose(segment: int, sequence: int, reason: str) -> None:
        result.damage.append(DamageRow(source, branch, segment, WHOLE_SEGMENT, sequence, now_ns, reason))

    newest = _join(result, found, known, lose, now_ns)
    durable = branch_row(known).durable_sequence if known else 0
    if result.header is not None and result.sequence < durable:
        lose(newest, result.sequence + 1, f"the log ends before position {durable}, which was durable")
    if by_segment and result.header is None and known is None:
        lose(next(iter(by_segment)), 1, "no segment of the branch is readable")
    return result


def _readable(
    storage: Storage,
    keys: StoreKeys,
    store: bytes | None,
    by_segment: dict[int, list[SegmentPlace]],
    known: BranchState | None,
    *,
    final: bool,
) -> dict[int, _Found]:
    """The best file of each segment, as far as it belongs to the log."""
    found = {number: best for number, each in by_segment.items() if (best := _best(storage, keys, store, each))}
    durable = branch_row(known).durable_sequence if known else 0
    _cut_tails(found)
    if found:
        _cut_torn(storage, found, max(found), durable)
    if final and known:
        for number, item in list(found.items()):
            _keep_until(found, number, item, durable)
    return found


def _join(
    result: SalvagedBranch,
    found: dict[int, _Found],
    known: BranchState | None,
    lose: Callable[[int, int, str], None],
    now_ns: int,
) -> int:
    """Take the segments in order, and note what is missing between them; returns the newest segment's number."""
    live = {n for item in known.segments for n in range(item.first, item.last + 1)} if known else set()
    vouched = known.next_segment if known else 1
    expected: int | None = None
    previous = 0
    for number in sorted(set(found) | live):
        if number not in found:
            # Listed as live and gone: what it held is unknown.
            base = branch_row(known).base_sequence if known else 0
            lose(number, base + 1 if expected is None else expected, "the segment is missing or unreadable")
            previous = number
            continue
        item = found[number]
        header = item.index.header
        result.header = result.header or header
        begin = header.base_sequence + 1 if expected is None else expected
        between = range(previous + 1, number)
        explained = bool(between) and all(n < vouched and n not in live for n in between)
        reported = any(bad.segment == previous for bad in result.damage)
        if header.first_sequence > begin and not explained and not reported:
            lose(previous + 1 if between else previous, begin, "positions are missing from the log")
        add_records(result, item.index, item.revision, item.sealed_length)
        expected, previous = item.index.last_sequence + 1, number
    return previous


def _names(by_segment: dict[int, list[SegmentPlace]], known: BranchState | None) -> tuple[str, int]:
    if known:
        row = branch_row(known)
        return row.source, row.branch
    place = next(iter(by_segment.values()))[0]
    return place.source, place.branch


def _best(storage: Storage, keys: StoreKeys, store: bytes | None, places: list[SegmentPlace]) -> _Found | None:
    """The newest intact revision; failing that, whichever has the most intact records."""
    partial: list[_Found] = []
    for place in sorted(places, key=lambda place: -place.revision):
        item = _read(storage, keys, store, place)
        if item and item.sealed_length and not item.torn:
            return item
        if item:
            partial.append(item)
    return max(partial, key=lambda item: item.index.record_count, default=None)


def _read(storage: Storage, keys: StoreKeys, store: bytes | None, place: SegmentPlace) -> _Found | None:
    name = segment_name(*place)
    with read_errors(name):
        reader = storage.open(name)
        try:
            try:
                index, sealed = read_sealed(reader, reader.size(), keys), reader.size()
                torn = False
            except DrengineError as error:
                if error.kind is not DAMAGED:
                    raise
                scan = _scan(reader, keys)
                index, sealed, torn = scan.index(), 0, scan.fault is not None
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
            return None
        finally:
            reader.close()
    header = index.header
    named = (header.source, header.branch, header.segment, header.revision)
    if named != tuple(place) or (store is not None and header.store != store):
        return None
    return _Found(index, place.revision, sealed, torn)


def _scan(reader: Reader, keys: StoreKeys) -> SegmentScan:
    scan = SegmentScan(reader, keys)
    scan.extend(reader, reader.size())
    return scan


def _cut_torn(storage: Storage, found: dict[int, _Found], number: int, durable: int) -> None:
    """End an unsealed last segment before its first record whose payload is not whole."""
    item = found[number]
    if item.sealed_length:
        return
    index = item.index
    name = segment_name(index.header.source, index.header.branch, number, item.revision)
    with read_errors(name):
        reader = storage.open(name)
        try:
            for record in range(max(0, durable - index.header.first_sequence + 1), index.record_count):
                if not index.payload_is_whole(record, reader.read_at(*index.payload_range(record))):
                    _keep_until(found, number, item, index.header.first_sequence + record - 1)
                    return
        finally:
            reader.close()


def _cut_tails(found: dict[int, _Found]) -> None:
    """Drop from each segment what a later one begins again."""
    numbers = sorted(found)
    for position, number in enumerate(numbers[1:], start=1):
        first = found[number].index.header.first_sequence
        for earlier in numbers[:position]:
            if earlier in found:
                _keep_until(found, earlier, found[earlier], first - 1)


def _keep_until(found: dict[int, _Found], number: int, item: _Found, limit: int) -> None:
    """Keep only positions up to `limit` of a segment."""
    if item.index.last_sequence <= limit:
        return
    count = max(0, limit - item.index.header.first_sequence + 1)
    if count:
        found[number] = _Found(item.index.head(count), item.revision, 0, item.torn)
    else:
        del found[number]


def add_records(result: SalvagedBranch, index: SegmentIndex, revision: int, sealed_length: int = 0) -> None:
    """Add the row and points of a segment's records, and move the branch's state to their end.

    `sealed_length`: of its file, where that is whole; 0: it ends with these records.
    """
    header = index.header
    tables = [index.table(n) for n in range(index.record_count) if index.type(n) == RecordType.BATCH]
    result.segments.append(
        SegmentRow(
            source=header.source,
            branch=header.branch,
            segment=header.segment,
            revision=revision,
            state=SEALED if sealed_length else CUT_OFF,
            first_sequence=header.first_sequence,
            last_sequence=index.last_sequence,
            committed_length=index.length,
            length=sealed_length or index.length,
            plain_bytes=sum(live_plain_bytes(table) for table in tables),
            dead_bytes=0,
            seal=index.seal,
        )
    )
    geometry = header.geometry
    for number in range(index.record_count):
        kind = index.type(number)
        if kind == RecordType.GEOMETRY:
            geometry = parse_geometry(index.table(number))
        elif kind == RecordType.CUT:
            cut = parse_cut(index.table(number))
            result.cuts.append(
                PointRow(
                    source=header.source,
                    branch=header.branch,
                    sequence=header.first_sequence + number,
                    time_ns=cut.time_ns,
                    received_ns=int(index.records["time_ns"][number]),
                    kind=cut.kind.value,
                    label=cut.label,
                    geometry=pack_geometry(geometry),
                    verified_ns=0,
                    damaged=0,
                    pinned=0,
                    note="",
                )
            )
    result.sequence = index.last_sequence
    result.mark = index.mark(index.record_count - 1) if index.record_count else header.mark
    result.geometry = pack_geometry(geometry)
