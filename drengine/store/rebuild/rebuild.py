"""Making a lost or damaged catalogue anew from the segments and the newest manifests.

The new catalogue is written beside the old one and takes its place in one step (sqlite.py); the old one is kept.
Layers are derived data: all of them are made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory
from drengine.store.blobs import ObjectStorage, Storage
from drengine.store.blobs.s3.errors import OBJECT_STORE_TAKEN
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.opening import ensure_catalogue, replacing
from drengine.store.catalogue.rows import (
    COPY,
    CUT_OFF,
    OPEN,
    SIDE_ROLES,
    BranchRow,
    ClockRow,
    MirrorRow,
    PointRow,
    SourceRow,
)
from drengine.store.catalogue.seal import CATALOGUE_KEY
from drengine.store.context import StoreContext
from drengine.store.copies import LOCAL_BRANCHES, WHOLE, copy_row
from drengine.store.damage import judge_points
from drengine.store.errors import DAMAGED, NOT_A_STORE, STORE_EXISTS, os_errors
from drengine.store.identity import IDENTITY_NAME, StoreFile, read_store_file, write_store_file
from drengine.store.keys import StoreKeys
from drengine.store.locks import Holder
from drengine.store.locks.flock import LOCKS_DIRECTORY
from drengine.store.locks.opening import open_locks
from drengine.store.names import SEGMENTS, SegmentPlace, layer_last, parse_segment_name, segment_name
from drengine.store.rebuild.manifest import (
    BranchState,
    Known,
    branch_row,
    newest_manifests,
    point_rows,
    write_manifests,
)
from drengine.store.rebuild.salvage import SalvagedBranch, salvage_branch
from drengine.store.segments.format import Role
from drengine.store.views.records import read_header

_BEFORE = "before a rebuild"
"""In place of a boot's name: what the compliance clock said at least."""


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild found.

    Attributes:
        sources, branches, segments, points: how many are in the new catalogue.
        lost: what is missing or unreadable, as text for people.
        manifests: of how many sources a readable manifest was there.
        kept_aside: where the old catalogue is now; empty when there was none.
    """

    sources: int = 0
    branches: int = 0
    segments: int = 0
    points: int = 0
    lost: list[str] = field(default_factory=list)
    manifests: int = 0
    kept_aside: str = ""


def rebuild_catalogue(
    directory: Path,
    file: StoreFile | None,
    storage: Storage,
    keks: KeyEncryptionKeys | None,
    clock: Clock,
    progress: Callable[[int, int], None],
) -> RebuildReport:
    """Write a new catalogue and put it in the old one's place; see `Store.rebuild`.

    `file`: what the STORE file says, if it can be read.
    """
    with os_errors(f"rebuilding {directory}"):
        names = storage.list(SEGMENTS)
        places = [place for place in map(parse_segment_name, names) if place]
        if not places and not os.path.exists(directory / IDENTITY_NAME):  # noqa: PTH110 (nor a path too long)
            raise DrengineError(NOT_A_STORE, f"{directory} has neither a {IDENTITY_NAME} file nor segments")
        make_directory(directory / LOCKS_DIRECTORY)
        file = file or _file_of_segments(directory, storage, places)
        ensure_catalogue(file)
        branches = sorted({(place.source, place.branch) for place in places})
        with ExitStack() as stack:
            locks = open_locks(directory, file, Holder())
            stack.callback(locks.close)
            stack.enter_context(locks.maintenance())
            for source, branch in branches:
                stack.enter_context(locks.branch(source, branch))
            identity = file.identity
            keys = StoreKeys(storage, identity, keks)
            known, unreadable = newest_manifests(storage, identity, keys)
            report = RebuildReport(manifests=len(known))
            report.lost += [f"{name} is not readable: retired points may come back as damaged" for name in unreadable]
            for name in names:
                if layer_last(name):
                    storage.delete(name)
            with replacing(directory, file, keys.store_key(CATALOGUE_KEY)) as new:
                if file.is_copy:
                    new.catalogue.put(MirrorRow(WHOLE, COPY, "", 0, 0))
                _fill(
                    new.catalogue,
                    report,
                    storage,
                    keys,
                    identity=identity,
                    places=places,
                    manifests=known,
                    now_ns=clock.now_ns(),
                    progress=progress,
                )
                if isinstance(storage, ObjectStorage):
                    new.catalogue.put(*storage.found_parts())
            report.kept_aside = new.kept_aside
    return report


def join_place(directory: Path, file: StoreFile, storage: Storage) -> StoreFile:
    """Make a directory one of the store that has claimed a place, or correct the place where it is one; as it is then.

    `file` says the place, and which store is expected there; any, where its identity is empty.

    Raises:
        DrengineError: OBJECT_STORE_TAKEN, NOT_A_STORE; STORE_EXISTS where the directory is another store's.
    """
    place = file.storage.place
    found = storage.identities() if isinstance(storage, ObjectStorage) else []
    if not found:
        raise DrengineError(NOT_A_STORE, f"no store has claimed {place}")
    if len(found) > 1 or file.identity not in (b"", found[0]):
        raise DrengineError(OBJECT_STORE_TAKEN, f"{place} is of store {found[0].hex()}; claims there: {len(found)}")
    with os_errors(f"making {directory}"):
        for folder in (directory, directory / LOCKS_DIRECTORY, directory / SEGMENTS):
            make_directory(folder)
    try:
        known = read_store_file(directory)
    except DrengineError as error:
        if error.kind is not NOT_A_STORE:
            raise
    else:
        if known.identity != found[0]:
            raise DrengineError(STORE_EXISTS, f"{directory} is store {known.identity.hex()}")
        file = file._replace(catalogue=known.catalogue)
    file = file._replace(identity=found[0])
    write_store_file(directory, file)
    return file


def finish_rebuild(context: StoreContext) -> None:
    """Make the layers and judge the points of a store whose catalogue has just been rebuilt."""
    for source in context.catalogue.sources():
        for branch in context.catalogue.branches(source.name):
            closed = [row for row in context.catalogue.segments(source.name, branch.branch) if row.state != OPEN]
            if closed:
                context.layers.segment_closed(source.name, branch.branch, closed[-1].segment)
        judge_points(context, source.name)
    write_manifests(context)


def _file_of_segments(directory: Path, storage: Storage, places: list[SegmentPlace]) -> StoreFile:
    """The STORE file, written anew with the identity that a segment tells."""
    for place in places:
        reader = storage.open(segment_name(*place))
        try:
            header, _ = read_header(reader)
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
        else:
            file = StoreFile(header.store)
            write_store_file(directory, file)
            return file
        finally:
            reader.close()
    raise DrengineError(NOT_A_STORE, f"no segment in {directory} tells which store it is of")


def _fill(
    catalogue: Catalogue,
    report: RebuildReport,
    storage: Storage,
    keys: StoreKeys,
    *,
    identity: bytes,
    places: list[SegmentPlace],
    manifests: Mapping[str, Known],
    now_ns: int,
    progress: Callable[[int, int], None],
) -> None:
    known: dict[str, dict[int, BranchState]] = {}
    source_rows: dict[str, SourceRow] = {}
    for name, (state, _) in manifests.items():
        source_rows[name] = state.source()
        known[name] = {branch_row(branch).branch: branch for branch in state.branches}
        catalogue.put(*state.damage_rows(), *state.lock_rows(), *state.inventory_rows())
    if any(state.locks for state, _ in manifests.values()):
        catalogue.put(ClockRow(_BEFORE, 0, max(state.reading_ns for state, _ in manifests.values())))
    names = sorted({place.source for place in places} | set(source_rows))
    for done, name in enumerate(names):
        mine = [place for place in places if place.source == name]
        numbers = {place.branch for place in mine} | set(known.get(name, {}))
        rows: list[BranchRow] = []
        for number in sorted(numbers):
            seen = known.get(name, {}).get(number)
            old = branch_row(seen) if seen else None
            found = salvage_branch(
                storage,
                keys,
                identity,
                [place for place in mine if place.branch == number],
                seen,
                final=bool(old and (old.closed or old.superseded_ns)),
                now_ns=now_ns,
            )
            row = _branch_row(name, number, old, found, now_ns)
            rows.append(row)
            points = _points(found, seen)
            segments = found.segments
            if copy_row(catalogue) and number < LOCAL_BRANCHES and segments and segments[-1].state == CUT_OFF:
                # The mirror goes on with it: nothing may be derived from it as if it were all.
                segments = [*segments[:-1], segments[-1]._replace(state=OPEN)]
            catalogue.put(row, *segments, *found.damage, *points)
            if keys.is_encrypted and (clear := sum(not segment.seal for segment in found.segments)):
                report.lost.append(
                    f"{clear} segments of branch {number} of {name!r} are in clear: anybody may have written them"
                )
            report.segments += len(found.segments)
            report.points += len(points)
            report.lost += [
                f"branch {bad.branch} of {name!r} from position {bad.sequence}: {bad.reason}" for bad in found.damage
            ]
        catalogue.put(*_source_rows(name, source_rows.get(name), rows, now_ns))
        report.branches += len(rows)
        report.sources += 1
        progress(done + 1, len(names))


def _branch_row(name: str, number: int, old: BranchRow | None, found: SalvagedBranch, now_ns: int) -> BranchRow:
    header = found.header
    if old is None:
        base = header.base_sequence if header else 0
        old = BranchRow(
            source=name,
            branch=number,
            parent=header.parent if header else 0,
            base_sequence=base,
            generation=header.generation if header else 1,
            role=(header.role if header else Role.TRUNK).name.lower(),
            label="",
            closed=0,
            created_ns=header.created_ns if header else now_ns,
            superseded_ns=0,
            durable_sequence=base,
            durable_epoch=bytes(16),
            durable_position=0,
            geometry=b"",
        )
    if header is None or found.sequence < old.durable_sequence:
        # What the manifest saw is more than what is left: positions already given out are not given out again.
        return old
    return old._replace(
        durable_sequence=found.sequence,
        durable_epoch=found.mark.epoch,
        durable_position=found.mark.position,
        geometry=found.geometry,
    )


def _points(found: SalvagedBranch, state: BranchState | None) -> list[PointRow]:
    """Points the manifest kept, and every cut made after it."""
    if state is None:
        return found.cuts
    seen = branch_row(state).durable_sequence
    return point_rows(state) + [cut for cut in found.cuts if cut.sequence > seen]


def _source_rows(
    name: str, old: SourceRow | None, branches: list[BranchRow], now_ns: int
) -> list[SourceRow | BranchRow]:
    """The source, at the newest generation that any branch of its history tells of."""
    main = [row for row in branches if row.role not in SIDE_ROLES]
    newest = max(main, key=lambda row: (row.generation, row.branch), default=None)
    if newest is None or (old and old.generation >= newest.generation):
        return [old or SourceRow(name, 1, 1)]
    left = [row._replace(superseded_ns=row.superseded_ns or now_ns) for row in main if row.branch != newest.branch]
    return [SourceRow(name, newest.generation, newest.branch), *left]
