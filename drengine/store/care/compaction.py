"""Compaction: giving back the space of what no point, branch or reader sees any more.

A segment is rewritten as a new revision of itself: dead DATA rows become DROPPED, their plain bytes are
zeroed before the payload is compressed anew, so that every plain offset stays as it was and no map changes. In an
encrypted store what is rewritten is encrypted under the newest data key, and segments in clear are rewritten. A segment
in which nothing is live is removed whole. Order of a rewrite: new file synced, its name synced, one
transaction that swaps the revision, old file deleted. Order of a removal: in one transaction its rows leave the
catalogue and the decision to remove its file is recorded; a manifest says so durably; the file is deleted; the decision
is forgotten. A manifest that knows every retired point of a source is durable before anything of it is taken away.

A pass reads the indexes of those segments alone of which something may have died since the last one: the catalogue
keeps by which roots each branch was judged. A process that maintains a store for long passes over sources of which
nothing has changed since nothing was to be done (looks.py).
"""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drengine.crypt.errors import KEY_MISSING, KEY_WRONG, SOURCE_ERASED
from drengine.crypt.segment import Chain, SegmentCipher
from drengine.model.errors import DrengineError
from drengine.model.extents import NO_DIGEST, Batch, ExtentKind
from drengine.store.blobs import Appender, Changes, ObjectStorage, Reader, past_copies
from drengine.store.care.liveness import (
    BranchRoots,
    SegmentLiveness,
    branch_liveness,
    branch_roots,
    first_changed,
    to_judge,
)
from drengine.store.care.looks import WHOLE_SECONDS, Looks
from drengine.store.care.objects import delete_decided
from drengine.store.catalogue.rows import (
    CUT_OFF,
    OPEN,
    SEALED,
    BranchRow,
    JudgementRow,
    RemovalRow,
    SegmentRow,
    pack_roots,
    unpack_roots,
)
from drengine.store.context import StoreContext
from drengine.store.copies import first_number
from drengine.store.errors import DAMAGED, NOT_UPLOADED, STORE_IO, os_errors
from drengine.store.locks import Position
from drengine.store.names import SegmentPlace, parse_segment_name, segment_directory, segment_name
from drengine.store.rebuild.manifest import write_manifest
from drengine.store.rebuild.strays import clear_strays
from drengine.store.segments import format as codec
from drengine.store.segments.format import FLAG_DROPPED, RecordType, SegmentHeader, SegmentIndex
from drengine.store.views.records import decode_record, opened_record, record_faults
from drengine.wire.payload import encode_frames, frame_lengths

_LEVEL = 3
_UNREADABLE = (DAMAGED, NOT_UPLOADED, KEY_MISSING, KEY_WRONG, SOURCE_ERASED)
"""What leaves a segment as it is: nothing is taken away that can't be read."""


@dataclass(slots=True)
class CompactionReport:
    """What a compaction did.

    Attributes:
        segments_rewritten, segments_removed: how many.
        bytes_freed: file bytes given back (negative if it grew, which only tiny segments do).
        bytes_written: file bytes written.
        segments_skipped: segments left alone because they are damaged, or their key is not there.
        set_aside: files that no row names and about which nothing is decided (strays.py).
        complete: False when `bytes_max` ended it early.
    """

    segments_rewritten: int = 0
    segments_removed: int = 0
    bytes_freed: int = 0
    bytes_written: int = 0
    segments_skipped: int = 0
    set_aside: list[SegmentPlace] = field(default_factory=list)
    complete: bool = True


@dataclass(slots=True)
class _Pass:
    """A compaction under way.

    Attributes:
        bytes_max, yield_to, looks: see `compact`.
        manifest_of: the source of which a manifest was written since it was begun.
    """

    context: StoreContext
    bytes_max: int | None
    yield_to: Callable[[], None]
    looks: Looks
    report: CompactionReport = field(default_factory=CompactionReport)
    manifest_of: str = ""

    def sweep(self) -> None:
        """Remove what interrupted writing left: a local store is walked through for that. An object store has but a
        spool, which may also hold what is to be uploaded.
        """
        now, storage = self.context.clock.monotonic(), self.context.storage
        if isinstance(storage, ObjectStorage) or now - self.looks.swept >= WHOLE_SECONDS:
            storage.sweep()
            self.looks.swept = now

    def before_taking(self, source: str) -> None:
        """A manifest that knows every retired point is durable before anything of a source is taken away."""
        if self.manifest_of != source:
            write_manifest(self.context, source)
            self.manifest_of = source


def compact(
    context: StoreContext, *, bytes_max: int | None, yield_to: Callable[[], None], looks: Looks | None = None
) -> CompactionReport:
    """Give back space.

    Args:
        context: the open store.
        bytes_max: stop after writing about so many bytes; None for no bound.
        yield_to: called between records, so that ingest goes first; it may sleep or raise.
        looks: sources of which it knows that nothing is to be done are passed over.

    Raises:
        DrengineError: MAINTENANCE_BUSY; STORE_FULL, STORE_IO: what was being rewritten is still there as it was.
    """
    going = _Pass(context, bytes_max, yield_to, looks or Looks())
    report = going.report
    with context.locks.maintenance(), os_errors("compacting"):
        going.sweep()
        delete_decided(context)
        sources = [source.name for source in context.catalogue.sources()]
        going.looks.forget_others(frozenset(sources))
        states = {source: context.catalogue.state_of(source) for source in sources}  # before anything is decided by it
        branches = {source: context.catalogue.branches(source) for source in sources}
        leases = defaultdict(list)
        for lease in context.locks.leased_positions():
            leases[lease.source].append(lease)
        for source, mine in branches.items():
            if context.keys.is_missing(context.catalogue, source):
                report.segments_skipped += 1
                continue
            _compact_source(going, states[source], mine, leases[source])
            if not report.complete:
                return report
    return report


def _compact_source(going: _Pass, state: Hashable, branches: list[BranchRow], leases: list[Position]) -> None:
    """Look at a source, unless all is as it was when nothing was to be done."""
    context, looks, report = going.context, going.looks, going.report
    source = branches[0].source if branches else ""
    first = first_number(context.catalogue)  # at a copy, the mirror does it to all others
    given = (state, frozenset(leases), first, context.keys.is_encrypted)
    looked, known = looks.strays.get(source, (-math.inf, []))
    now = context.clock.monotonic()
    is_recent = now - looked < WHOLE_SECONDS
    if is_recent and looks.compaction.pop(source, None) == given:
        looks.compaction[source] = given
        report.set_aside += known
        return
    skipped, found, is_settled = report.segments_skipped, list[SegmentPlace](), True
    for roots in branch_roots(context.catalogue, branches, leases):
        number = roots.branch.branch
        if number < first:
            continue
        _compact_branch(going, roots)
        if is_recent and report.segments_skipped == skipped and not context.catalogue.removals(source, number):
            found += [place for place in known if place.branch == number]
        else:
            found += clear_strays(context, source, number)
            is_settled = is_settled and not context.catalogue.removals(source, number)
        if not report.complete:
            break
    report.set_aside += found
    if report.complete:
        looks.strays[source] = (looked if is_recent else now), found
        if is_settled and report.segments_skipped == skipped:
            looks.compaction[source] = given


def _compact_branch(going: _Pass, roots: BranchRoots) -> None:
    context, report = going.context, going.report
    source, branch = roots.branch.source, roots.branch.branch
    known = context.catalogue.judgement(source, branch)
    known_roots = unpack_roots(known.roots) if known else []
    segments = _to_look_at(context, roots, known_roots)
    if roots.dead:
        _remove(going, [row for row in segments if row.state != OPEN], *([known] if known else []))
        return
    judged, is_whole = _judged(going, roots, segments, known_roots)
    # The newest segment stays: it holds the branch's durable position.
    newest = segments[-1].segment if segments else 0
    removable = [
        entry.row for entry in judged if not entry.needed and entry.row.state != OPEN and entry.row.segment != newest
    ]
    _remove(going, removable)
    removed = {row.segment for row in removable}
    told: list[SegmentLiveness] = []
    for liveness in reversed(judged):
        row = liveness.row
        if row.segment in removed or row.state == OPEN:
            continue
        if _is_due(context, row, liveness.dead_bytes):
            if going.bytes_max is not None and report.bytes_written >= going.bytes_max:
                report.complete = False
                break
            try:
                going.before_taking(source)
                rewrite(context, row, liveness, report, going.yield_to)
                continue
            except DrengineError as error:
                if error.kind not in _UNREADABLE:
                    raise
                report.segments_skipped += 1
        if liveness.dead_bytes != row.dead_bytes:
            told.append(liveness)
    judgement = JudgementRow(source, branch, pack_roots(roots.positions))
    is_new = is_whole and report.complete and segments and judgement != known
    _note(context, source, told, [judgement] if is_new else [])


def _to_look_at(context: StoreContext, roots: BranchRoots, known: list[int]) -> list[SegmentRow]:
    """Rows of a branch from where something may have changed, so always its newest; or all."""
    catalogue, source, branch = context.catalogue, roots.branch.source, roots.branch.branch
    begin = first_changed(roots, known)
    if begin and not catalogue.segments_due(
        source, branch, context.options.compact_dead_fraction, sealed=context.keys.is_encrypted
    ):
        return catalogue.segments(source, branch, since=begin)
    return catalogue.segments(source, branch)


def _judged(
    going: _Pass, roots: BranchRoots, segments: list[SegmentRow], known: list[int]
) -> tuple[list[SegmentLiveness], bool]:
    """What may have become dead since the branch was judged by other roots, newest first; and whether that is all."""
    due = np.array([_is_due(going.context, row, row.dead_bytes) for row in segments], bool)
    found: list[SegmentLiveness] = []
    try:
        for liveness in branch_liveness(going.context.records, roots, segments, to_judge(roots, known, segments, due)):
            going.yield_to()
            found.append(liveness)
    except DrengineError as error:
        if error.kind not in _UNREADABLE:
            raise
        going.report.segments_skipped += 1
        return found, False
    return found, True


def _is_due(context: StoreContext, row: SegmentRow, dead_bytes: int) -> bool:
    """Whether a segment of which so much is dead is to be written anew."""
    in_clear = context.keys.is_encrypted and not row.seal
    worthwhile = bool(dead_bytes) and dead_bytes >= context.options.compact_dead_fraction * row.plain_bytes
    return row.state == CUT_OFF or in_clear or worthwhile


def _note(context: StoreContext, source: str, told: list[SegmentLiveness], judgements: list[JudgementRow]) -> None:
    """Remember what is dead in segments that stay as they are, and by which roots it was judged."""
    catalogue = context.catalogue
    if not told and not judgements:
        return
    with catalogue.transaction(source):
        for liveness in told:
            row = liveness.row
            if catalogue.segment(row.source, row.branch, row.segment) == row:
                catalogue.put(row._replace(dead_bytes=liveness.dead_bytes))
        catalogue.put(*judgements)


def _remove(going: _Pass, rows: list[SegmentRow], *others: JudgementRow) -> None:
    if rows:
        going.before_taking(rows[0].source)
        remove_segments(going.context, rows, going.report, *others)


def remove_segments(
    context: StoreContext, rows: list[SegmentRow], report: CompactionReport, *others: JudgementRow
) -> None:
    """Remove segments of one source of which nothing can be seen: first a decision, then the files.

    A manifest that knows every retired point of the source must be durable. `others` go with their rows.
    """
    if not rows:
        return
    catalogue = context.catalogue
    removals = [RemovalRow(row.source, row.branch, row.segment, row.revision) for row in rows]
    with catalogue.transaction(rows[0].source):
        damage = catalogue.damage(rows[0].source)
        gone = {(row.branch, row.segment) for row in rows}
        catalogue.remove(*others, *rows, *(bad for bad in damage if (bad.branch, bad.segment) in gone))
        catalogue.put(*removals)
    # A rebuild from now on knows that they were not lost.
    write_manifest(context, rows[0].source)
    for row in rows:
        context.storage.delete(segment_name(row.source, row.branch, row.segment, row.revision))
        context.records.let_go(row.source, row.branch, row.segment)
        report.segments_removed += 1
        report.bytes_freed += row.length
    with catalogue.transaction(rows[0].source):
        catalogue.remove(*removals)


def rewrite(
    context: StoreContext,
    row: SegmentRow,
    liveness: SegmentLiveness | None,
    report: CompactionReport,
    yield_to: Callable[[], None],
) -> None:
    """Write a segment anew as its next revision, sealed, without what is dead (None: nothing is).

    Raises:
        DrengineError: DAMAGED when something live cannot be read: the segment is left as it was.
    """
    name = segment_name(row.source, row.branch, row.segment, row.revision)
    past_copies(context.storage, name, lambda: _rewrite(context, row, name, liveness, report, yield_to))


def _rewrite(
    context: StoreContext,
    row: SegmentRow,
    old_name: str,
    liveness: SegmentLiveness | None,
    report: CompactionReport,
    yield_to: Callable[[], None],
) -> None:
    index = context.records.index(row)
    revision = _next_revision(context, row)
    new_name = segment_name(row.source, row.branch, row.segment, revision)
    header = context.keys.sealed(replace(index.header, revision=revision, salt=secrets.randbits(64)))
    appender = context.storage.create(new_name)
    reader = context.storage.open(old_name)
    try:
        written = _copy(context, header, index, reader, appender, liveness, yield_to)
        context.storage.sync_dir(segment_directory(row.source, row.branch))
        swapped = row._replace(
            revision=revision,
            state=SEALED,
            committed_length=written.length,
            length=written.sealed_length,
            plain_bytes=written.plain_bytes,
            dead_bytes=0 if liveness else row.dead_bytes,
            seal=written.seal,
        )
        _replace(context, row, swapped, written.changes)
    except BaseException as error:
        appender.close()
        # A transaction that failed with STORE_IO may still come to light: then the new file is the one that counts.
        if not isinstance(error, DrengineError) or error.kind is not STORE_IO:
            with suppress(OSError, DrengineError):
                context.storage.delete(new_name)
        raise
    finally:
        reader.close()
    appender.close()
    context.storage.delete(old_name)
    context.records.let_go(row.source, row.branch, row.segment)
    report.segments_rewritten += 1
    report.bytes_written += written.length
    report.bytes_freed += row.length - swapped.length


class _Written(NamedTuple):
    """A new revision: the file's length without and with its seal, its live plain bytes, and the chain's last tag.

    `changes` are what the transaction that swaps it in has to change with it.
    """

    length: int
    sealed_length: int
    plain_bytes: int
    seal: bytes
    changes: list[Changes]


def _copy(
    context: StoreContext,
    header: SegmentHeader,
    index: SegmentIndex,
    reader: Reader,
    appender: Appender,
    liveness: SegmentLiveness | None,
    yield_to: Callable[[], None],
) -> _Written:
    """Write and sync all records and the seal."""
    headers, tables, plain_bytes = [], [], 0
    packed = header.pack()
    cipher = context.keys.cipher(header)
    chain = cipher.chain(packed) if cipher else None
    appender.append(packed)
    length = len(packed)
    for number in range(index.record_count):
        yield_to()
        start, size = index.payload_range(number)
        live = liveness.of_record(number) if liveness else None
        batch, flags = _rewritten(index, number, reader.read_at(start, size), live)
        if index.type(number) == RecordType.BATCH:
            plain_bytes += codec.live_plain_bytes(batch.table)
            batch = _sealed(cipher, number, batch)
        record, following = _packed(header.salt, index, number, batch, flags, chain)
        appender.append(record, following, batch.payload)
        headers.append(record)
        tables.append(following)
        length += len(record) + len(following) + len(batch.payload)
    seal = codec.pack_seal(header.salt, headers, tables, length, index.last_sequence)
    changes = []
    if context.storage.abilities.append:
        # Where a seal is found after a crash, the records before it are whole.
        changes.append(appender.sync())
    appender.append(seal)
    changes.append(appender.sync())
    return _Written(length, length + len(seal), plain_bytes, chain.tag if chain else b"", changes)


def _sealed(cipher: SegmentCipher | None, number: int, batch: Batch) -> Batch:
    if cipher is None:
        return batch
    frames, payload = cipher.seal_frames(number, batch.frames, batch.payload)
    return Batch(cipher.turn_digests(number, batch.table), frames, payload)


def _next_revision(context: StoreContext, row: SegmentRow) -> int:
    """One that no file has: what an interrupted rewrite left is not written over."""
    names = context.storage.list(f"{segment_directory(row.source, row.branch)}/{row.segment:08d}.")
    return max(place.revision for place in (SegmentPlace(*row[:4]), *filter(None, map(parse_segment_name, names)))) + 1


def _rewritten(index: SegmentIndex, number: int, payload: bytes, live: NDArray[np.bool_] | None) -> tuple[Batch, int]:
    """One record of the new revision, and its flags. Whatever stays has been hashed again."""
    fields = index.records[number]
    batch = Batch(index.plain_table(number) if index.type(number) == RecordType.BATCH else index.table(number))
    flags = int(fields["flags"])
    if index.type(number) == RecordType.BATCH:
        rows = np.frombuffer(batch.table, dtype=codec.EXTENT_DTYPE).copy()
        dying = (rows["kind"] == ExtentKind.DATA) & (False if live is None else ~live)
        rows["kind"][dying] = ExtentKind.DROPPED
        rows["digest"][dying] = np.void(NO_DIGEST)
        if dying.any() or not (rows["kind"] == ExtentKind.DATA).any():
            flags |= FLAG_DROPPED if int(fields["plain_length"]) else 0
        batch = _reencoded(index, number, payload, rows, changed=bool(dying.any()))
    return batch, flags


def _packed(
    salt: int, index: SegmentIndex, number: int, batch: Batch, flags: int, chain: Chain | None
) -> tuple[bytes, bytes]:
    """A record's header and what follows it, but for the payload."""
    fields = index.records[number]
    return codec.pack_record(
        salt,
        type=RecordType(index.type(number)),
        number=number,
        sequence=int(fields["sequence"]),
        generation=int(fields["generation"]),
        mark=index.mark(number),
        time_ns=int(fields["time_ns"]),
        table=batch.table,
        frames=batch.frames,
        plain_length=batch.plain_length,
        payload_length=len(batch.payload),
        flags=flags,
        chain=chain,
    )


def _reencoded(index: SegmentIndex, number: int, payload: bytes, rows: NDArray[Any], *, changed: bool) -> Batch:
    """A BATCH record with these rows: without payload where no DATA is left, as it was where nothing changed."""
    table = rows.tobytes()
    alive = rows["kind"] == ExtentKind.DATA
    if not alive.any():
        return Batch(table)
    if faults := record_faults(index, number, payload, alive):
        raise DrengineError(DAMAGED, faults[0].reason)
    if index.header.version > 1 and not changed:
        return opened_record(index, number, table, payload)
    plain = bytearray(decode_record(index, number, payload))
    for begin, end in codec.plain_ranges(rows, ExtentKind.DROPPED):
        plain[begin:end] = bytes(end - begin)
    return Batch(table, *encode_frames(frame_lengths(codec.carried_lengths(rows).tolist()), plain, _LEVEL))


def _replace(context: StoreContext, old: SegmentRow, new: SegmentRow, changes: Sequence[Changes] = ()) -> None:
    """Swap a segment's row if it still is what it was."""
    with context.catalogue.transaction(old.source):
        found = context.catalogue.segment(old.source, old.branch, old.segment)
        if found != old:
            raise DrengineError(DAMAGED, f"segment {old.segment} of {old.source!r} changed while it was compacted")
        for each in changes:
            context.catalogue.remove(*each.remove)
            context.catalogue.put(*each.put)
        context.catalogue.put(new)
