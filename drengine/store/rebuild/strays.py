"""Segment files that no row of the catalogue names: which of them may go, and which are set aside.

Nothing is removed because it is not named. A file goes only when one of these is known:

- a transaction has decided to remove it (a removal row, or a swap to another revision that is there and whole);
- its writer ended before it committed anything of it. The catalogue is known to be current (epoch.py), so a file behind
  its newest segment was never committed; the next writer records that it is abandoned, and then removes it.

Everything else stays where it is: *set aside*. It is not read, its number is not given out again, it is
counted and shown, and a rebuild looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from drengine.model.errors import DrengineError
from drengine.store.blobs import Reader
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import SEALED, RemovalRow, SegmentRow
from drengine.store.context import StoreContext
from drengine.store.errors import BRANCH_BUSY, CATALOGUE_DAMAGED, DAMAGED, NOT_UPLOADED, read_errors
from drengine.store.names import (
    SEGMENTS,
    SegmentPlace,
    layer_last,
    parse_segment_name,
    segment_directory,
    segment_name,
)
from drengine.store.rebuild.manifest import newest_manifests, write_manifest
from drengine.store.segments.format import HEADER, HEADER_MAGIC
from drengine.store.views.records import SegmentScan


def set_aside(context: StoreContext) -> list[SegmentPlace]:
    """Files that no row names and that have no writer, in all branches; those that may go are among them."""
    found = []
    for (source, branch), listed in groupby(sorted(_segments_on_disk(context)), key=lambda place: place[:2]):
        rows = context.catalogue.segments(source, branch)
        if {place[2:] for place in listed} <= {(row.segment, row.revision) for row in rows}:
            continue
        unnamed = unnamed_segments(context, context.catalogue, source, branch)  # what was only just listed may be gone
        newest = max((row.segment for row in rows), default=0)
        if any(place.segment > newest for place in unnamed) and context.locks.branch_holder(source, branch):
            unnamed = [place for place in unnamed if place.segment <= newest]
        found += unnamed
    return found


def unnamed_segments(context: StoreContext, catalogue: Catalogue, source: str, branch: int) -> list[SegmentPlace]:
    """The branch's segment files that no row names, by number."""
    names = context.storage.list(f"{segment_directory(source, branch)}/")
    places = sorted(place for place in map(parse_segment_name, names) if place)
    named = {(row.segment, row.revision) for row in catalogue.segments(source, branch)}
    return [place for place in places if (place.segment, place.revision) not in named]


def abandon(context: StoreContext, catalogue: Catalogue, source: str, branch: int) -> int:
    """Record what an earlier writer left behind its last commit, then remove it; the caller holds the branch's lock.

    Returns:
        The first segment number that no file and no row has ever had.

    Raises:
        DrengineError: CATALOGUE_DAMAGED when the catalogue is older than the segments; STORE_IO.
    """
    newest = max((row.segment for row in catalogue.segments(source, branch)), default=0)
    unnamed = unnamed_segments(context, catalogue, source, branch)
    decided = catalogue.removals(source, branch)
    behind = [place for place in unnamed if place.segment > newest]
    going = [place for place in behind if RemovalRow(*place) in decided or _was_never_committed(context, place)]
    if going:
        with catalogue.transaction(source):  # which the older catalogue refuses
            catalogue.put(*(RemovalRow(*place) for place in going))
    # Newest first, so that a crash in between leaves no gap.
    for place in reversed(going):
        context.storage.delete(segment_name(*place))
    for name in context.storage.list(f"{segment_directory(source, branch)}/"):
        if layer_last(name) > newest:
            context.storage.delete(name)
    _forget_removals(catalogue, [RemovalRow(*place) for place in going] + [r for r in decided if r.segment > newest])
    return max(newest, *(place.segment for place in unnamed), *(row.segment for row in decided), 0) + 1


def clear_strays(context: StoreContext, source: str, branch: int) -> list[SegmentPlace]:
    """Remove the files of a branch that a transaction has decided on; returns what is set aside.

    Files behind the newest segment may belong to a writer; they are touched only when there is none.
    """
    catalogue = context.catalogue
    rows = {row.segment: row for row in catalogue.segments(source, branch)}
    newest = max(rows, default=0)
    removals = catalogue.removals(source, branch)
    decided = [row for row in removals if row.segment <= newest]
    unnamed = unnamed_segments(context, catalogue, source, branch)
    going: list[SegmentPlace] = []
    kept: list[SegmentPlace] = []
    for place in unnamed:
        if place.segment <= newest:
            may_go = RemovalRow(*place) in decided or _has_another_revision(context, rows.get(place.segment))
            (going if may_go else kept).append(place)
    if going:
        write_manifest(context, source)
    for place in going:
        context.storage.delete(segment_name(*place))
    _forget_removals(catalogue, decided)
    layers = map(layer_last, context.storage.list(f"{segment_directory(source, branch)}/"))
    if max((*(place.segment for place in unnamed), *(row.segment for row in removals), *layers), default=0) <= newest:
        return kept  # without the lock, which would be in the way of a writer that is about to begin
    try:
        with context.locks.branch(source, branch):
            abandon(context, catalogue, source, branch)
            kept += [p for p in unnamed_segments(context, catalogue, source, branch) if p.segment > newest]
    except DrengineError as error:
        if error.kind is not BRANCH_BUSY:
            raise
    return kept


def require_current(context: StoreContext, *, strict: bool) -> None:
    """Hold the catalogue against the files when no epoch is noted beside them.

    Args:
        context: the open store.
        strict: doubt is enough: whole records behind the durable position are taken for committed ones, and a file
            that is named and missing for one that a newer catalogue replaced. Without an epoch neither can be told.

    Raises:
        DrengineError: CATALOGUE_DAMAGED.
    """
    for name, (_, manifest) in newest_manifests(context.storage, context.identity, context.keys)[0].items():
        if manifest.is_newer_than(context.catalogue.epoch(name)):
            raise DrengineError(
                CATALOGUE_DAMAGED, f"the catalogue is older than manifest {manifest.number} of {name!r}"
            )
    known = {
        (source.name, branch.branch)
        for source in context.catalogue.sources()
        for branch in context.catalogue.branches(source.name)
    }
    for source, branch in sorted(_branches_on_disk(context) - known):
        raise DrengineError(
            CATALOGUE_DAMAGED, f"there are segments of branch {branch} of {source!r}, which the catalogue does not know"
        )
    files = set(context.storage.list(f"{SEGMENTS}/")) if strict else set()
    for source, branch in sorted(known if strict else ()):
        for row in context.catalogue.segments(source, branch):
            if (name := segment_name(*row[:4])) not in files:
                raise DrengineError(CATALOGUE_DAMAGED, f"the catalogue names {name}, which is not there")
        if _has_records_behind(context, source, branch):
            raise DrengineError(
                CATALOGUE_DAMAGED,
                f"branch {branch} of {source!r} has whole records behind its durable position, and {SEGMENTS}/ "
                "does not say whether they were committed",
            )


def _segments_on_disk(context: StoreContext) -> Iterable[SegmentPlace]:
    return filter(None, map(parse_segment_name, context.storage.list(f"{SEGMENTS}/")))


def _branches_on_disk(context: StoreContext) -> set[tuple[str, int]]:
    return {(place.source, place.branch) for place in _segments_on_disk(context)}


def _was_never_committed(context: StoreContext, place: SegmentPlace) -> bool:
    """Whether a file behind the newest segment is one that a writer of this store began.

    Its first bytes say so, also where a power cut left the rest torn; or they never reached the disk. What
    cannot be told stays.
    """

    def judge(reader: Reader) -> bool:
        data = reader.read_at(0, HEADER.size)
        if len(data) < HEADER.size or not any(data):
            return True
        magic, _, _, _, store, _, branch, segment, revision = HEADER.unpack(data)[:9]
        is_ours = magic == HEADER_MAGIC and store == context.identity
        return is_ours and (branch, segment, revision) == (place.branch, place.segment, place.revision)

    return _judged(context, segment_name(*place), judge, missing=True)


def _has_another_revision(context: StoreContext, row: SegmentRow | None) -> bool:
    """Whether the revision that the catalogue names is there and has its length: then any other is superfluous."""
    if row is None:
        return False
    length = row.length if row.state == SEALED else row.committed_length
    return _judged(context, segment_name(*row[:4]), lambda reader: reader.size() >= length)


def _has_records_behind(context: StoreContext, source: str, branch: int) -> bool:
    """Whether a whole record follows what is committed, in the newest segment or in files behind it."""
    rows = context.catalogue.segments(source, branch)
    newest = rows[-1] if rows else None
    if newest and newest.state != SEALED:
        count = newest.last_sequence - newest.first_sequence + 1
        if _has_record(context, segment_name(*newest[:4]), count):
            return True
    last = newest.segment if newest else 0
    unnamed = unnamed_segments(context, context.catalogue, source, branch)
    return any(_has_record(context, segment_name(*place), 0) for place in unnamed if place.segment > last)


def _has_record(context: StoreContext, name: str, number: int) -> bool:
    """Whether record `number` of a segment is there and whole, its payload included."""

    def judge(reader: Reader) -> bool:
        scan = SegmentScan(reader, context.keys)
        scan.extend(reader, reader.size())
        index = scan.index()
        if index.record_count <= number:
            return False
        return index.payload_is_whole(number, reader.read_at(*index.payload_range(number)))

    return _judged(context, name, judge)


def _judged(context: StoreContext, name: str, judge: Callable[[Reader], bool], *, missing: bool = False) -> bool:
    """What `judge` says of a file; `missing` where it is not there, False where it is damaged."""
    try:
        with read_errors(name):
            reader = context.storage.open(name)
            try:
                return judge(reader)
            finally:
                reader.close()
    except FileNotFoundError:
        return missing
    except DrengineError as error:
        if error.kind not in (DAMAGED, NOT_UPLOADED):
            raise
        return False


def _forget_removals(catalogue: Catalogue, rows: list[RemovalRow]) -> None:
    """Of one source: their files are gone."""
    if rows:
        with catalogue.transaction(rows[0].source):
            catalogue.remove(*rows)
