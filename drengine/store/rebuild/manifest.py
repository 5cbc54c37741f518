"""Manifests: what a rebuild of the catalogue could not know from the segments alone.

A manifest is a checksummed snapshot of what the catalogue says of one source. One is made durable before any data of
the source is removed, and before a promotion, a branch or a pin is reported as done; so a rebuild neither brings back
what was retired nor takes a deliberate removal for a loss. Of each source the newest readable one counts; a few are
kept. In an encrypted store it bears a tag under a key of the store instead of the checksum alone.

Early versions wrote manifests of the whole store. Such a one speaks for the sources that have none of their own. The
first manifest that is written beside it gives every source one, and then it goes.
"""

from __future__ import annotations

import hmac
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
import xxhash

from drengine.model.errors import DrengineError
from drengine.store.blobs import Storage
from drengine.store.catalogue.epoch import Epoch
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import (
    BranchRow,
    DamageRow,
    InventoryRow,
    LockPolicyRow,
    PointLockRow,
    PointRow,
    SegmentRow,
    SourceRow,
)
from drengine.store.context import StoreContext
from drengine.store.errors import DAMAGED, os_errors, read_errors
from drengine.store.keys import StoreKeys
from drengine.store.names import MANIFESTS, ManifestPlace, manifest_name, manifests_of, parse_manifest_name

MANIFEST_MAGIC = b"DRMAN\x03\r\n"
MANIFEST_MAGIC_WITH_TAG = b"DRMAN\x04\r\n"
OLD_MAGIC = b"DRMAN\x01\r\n"
OLD_MAGIC_WITH_TAG = b"DRMAN\x02\r\n"
"""Of manifests of a whole store."""
MANIFEST_TAG_BYTES = 32
MANIFEST_BYTES_MAX = 256 << 20
_MAGICS = {
    (False, False): MANIFEST_MAGIC,
    (False, True): MANIFEST_MAGIC_WITH_TAG,
    (True, False): OLD_MAGIC,
    (True, True): OLD_MAGIC_WITH_TAG,
}
"""By whether it is of a whole store, and whether there is a key."""
_PURPOSE = "manifest"
_SEED = 0x6D616E69666573


class SegmentRange(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive live segment numbers, both ends included."""

    first: int
    last: int


class BranchState(msgspec.Struct, frozen=True, array_like=True):
    """A branch, its kept points up to `row.durable_sequence`, and which of its segments are there."""

    row: list[Any]
    points: list[list[Any]]
    segments: list[SegmentRange]
    next_segment: int


class SourceState(msgspec.Struct, frozen=True, array_like=True):
    """A source and its branches; `reading_ns` is what the compliance clock said (care/locking.py)."""

    row: list[Any]
    branches: list[BranchState]
    damage: list[list[Any]]
    locks: list[list[Any]] = []
    lock_policy: list[Any] = []
    reading_ns: int = 0
    inventory: list[Any] = []

    def lock_rows(self) -> list[PointLockRow | LockPolicyRow]:
        """Points that are locked, and which will be."""
        policy = [LockPolicyRow(*self.lock_policy)] if self.lock_policy else []
        return [*policy, *(PointLockRow(*row) for row in self.locks)]

    def inventory_rows(self) -> list[InventoryRow]:
        """What it is made of, if it has told."""
        return [InventoryRow(*self.inventory)] if self.inventory else []

    def source(self) -> SourceRow:
        """The source's row."""
        return SourceRow(*self.row)

    def damage_rows(self) -> list[DamageRow]:
        """Known damage."""
        return [DamageRow(*row) for row in self.damage]


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """The snapshot: `sources` has one, or in an old one all that the store had.

    `lineage` and `epoch` say which transaction it shows; both are 0 in those from before epochs.
    """

    store: bytes
    number: int
    created_ns: int
    sources: list[SourceState]
    lineage: int = 0
    epoch: int = 0

    @property
    def names(self) -> list[str]:
        """Of its sources."""
        return [state.source().name for state in self.sources]

    def is_newer_than(self, epoch: Epoch) -> bool:
        """Whether it shows a later transaction of this catalogue, or one of another catalogue."""
        return bool(self.epoch) and (self.lineage != epoch.lineage or self.epoch > epoch.number)


def branch_row(state: BranchState) -> BranchRow:
    """The branch's row as it was."""
    return BranchRow(*state.row)


def point_rows(state: BranchState) -> list[PointRow]:
    """The kept points as they were."""
    return [PointRow(*row) for row in state.points]


class Known(NamedTuple):
    """What the newest readable manifest says of a source, and which transaction it shows."""

    state: SourceState
    manifest: Manifest


def take_snapshot(catalogue: Catalogue, store: bytes, source: str, number: int, now_ns: int) -> Manifest:
    """What the catalogue says of a source now.

    Raises:
        DrengineError: UNKNOWN_SOURCE.
    """
    with catalogue.snapshot():
        row, branches = catalogue.source(source), []
        for branch in catalogue.branches(source):
            rows = catalogue.segments(source, branch.branch)
            points = [list(point) for point in catalogue.points(source, branch.branch)]
            following = rows[-1].segment + 1 if rows else 1
            branches.append(BranchState(list(branch), points, _ranges(rows), following))
        damage = [list(row) for row in catalogue.damage(source)]
        epoch = catalogue.epoch(source)
        locks = [list(each) for each in catalogue.point_locks(source)]
        policy = list(catalogue.lock_policy(source))
        inventory = list(catalogue.inventory(source) or ())
        reading_ns = max((each.reading_ns for each in catalogue.clocks().values()), default=0)
    state = SourceState(list(row), branches, damage, locks, policy, reading_ns, inventory)
    return Manifest(store, number, now_ns, [state], epoch.lineage, epoch.number)


def write_manifest(context: StoreContext, source: str) -> None:
    """Make a snapshot of a source durable under its next number and drop its oldest ones.

    Raises:
        DrengineError: STORE_FULL, STORE_IO, STORE_READ_ONLY; UNKNOWN_SOURCE.
    """
    with context.locks.manifests(), os_errors("writing a manifest"):
        if _numbers(context.storage, ""):
            _replace_old(context)
        else:
            _write(context, source)


def is_manifest_old(context: StoreContext, source: str) -> bool:
    """Whether this process has written none of a source for as long as the options allow."""
    age_ns = context.clock.now_ns() - context.manifests_ns.get(source, 0)
    return not 0 <= age_ns < context.options.manifest_seconds * 1_000_000_000


def write_manifests(context: StoreContext) -> None:
    """Write one of every source, see `write_manifest`."""
    for source in context.catalogue.sources():
        write_manifest(context, source.name)


def forget_manifests(context: StoreContext, source: str) -> None:
    """Remove those of a source that is no more."""
    with context.locks.manifests(), os_errors("removing manifests"):
        for number in _numbers(context.storage, source):
            context.storage.delete(manifest_name(source, number))


def _write(context: StoreContext, source: str) -> None:
    numbers = _numbers(context.storage, source)
    number = max(numbers, default=0) + 1
    now_ns = context.clock.now_ns()
    manifest = take_snapshot(context.catalogue, context.identity, source, number, now_ns)
    context.storage.put(manifest_name(source, number), pack_manifest(manifest, context.keys.store_key(_PURPOSE)))
    context.manifests_ns[source] = now_ns
    for old in numbers[: -(context.options.manifests_kept - 1) or None]:
        context.storage.delete(manifest_name(source, old))


def _replace_old(context: StoreContext) -> None:
    """Give every source a manifest of its own in place of those of the whole store."""
    for each in context.catalogue.sources():
        _write(context, each.name)
    for number in _numbers(context.storage, ""):
        context.storage.delete(manifest_name("", number))


def newest_manifests(storage: Storage, store: bytes, keys: StoreKeys) -> tuple[dict[str, Known], list[str]]:
    """What is known of each source; and the names of manifests that are the newest of their kind and not readable."""
    places = sorted(filter(None, map(parse_manifest_name, storage.list(f"{MANIFESTS}/"))), reverse=True)
    known: dict[str, Known] = {}
    unreadable = []
    # Those of a whole store come last: they speak for the sources that have none of their own.
    for _, group in groupby(places, key=lambda place: place.source):
        for number, place in enumerate(group):
            if manifest := _readable(storage, place, store, keys):
                for state in manifest.sources:
                    known.setdefault(state.source().name, Known(state, manifest))
                break
            if not number:
                unreadable.append(manifest_name(*place))
    return known, unreadable


def _readable(storage: Storage, place: ManifestPlace, store: bytes, keys: StoreKeys) -> Manifest | None:
    try:
        manifest = read_manifest(storage, place, keys)
    except (DrengineError, FileNotFoundError):
        return None
    is_ours = manifest.store == store and (not place.source or manifest.names == [place.source])
    return manifest if is_ours else None


def read_manifest(storage: Storage, place: ManifestPlace, keys: StoreKeys) -> Manifest:
    """One manifest.

    Raises:
        DrengineError: DAMAGED.
    """
    with read_errors(manifest_name(*place)):
        reader = storage.open(manifest_name(*place))
        try:
            data = reader.read_at(0, min(reader.size(), MANIFEST_BYTES_MAX))
        finally:
            reader.close()
    return parse_manifest(data, keys.store_key(_PURPOSE), is_old=not place.source)


def _numbers(storage: Storage, source: str) -> list[int]:
    """Numbers of the manifests of a source, or of the whole store ("") ascending."""
    found = filter(None, map(parse_manifest_name, storage.list(manifests_of(source))))
    return sorted(place.number for place in found if place.source == source)


def pack_manifest(manifest: Manifest, key: bytes = b"") -> bytes:
    """Magic, MessagePack, with a key HMAC-SHA256 of both, and xxh3-64 of all that."""
    body = (MANIFEST_MAGIC_WITH_TAG if key else MANIFEST_MAGIC) + msgspec.msgpack.encode(manifest)
    if key:
        body += hmac.digest(key, body, "sha256")
    return body + xxhash.xxh3_64_intdigest(body, _SEED).to_bytes(8, "little")


def parse_manifest(data: bytes, key: bytes = b"", *, is_old: bool = False) -> Manifest:
    """Check and decode a manifest, of a whole store if it is old; where there is a key, one without its tag is none.

    Raises:
        DrengineError: DAMAGED.
    """
    body, found = data[:-8], data[-8:]
    expected = xxhash.xxh3_64_intdigest(body, _SEED).to_bytes(8, "little")
    magic = _MAGICS[is_old, bool(key)]
    if not body.startswith(magic) or found != expected:
        raise DrengineError(DAMAGED, "a manifest fails its checksum")
    if key:
        body, tag = body[:-MANIFEST_TAG_BYTES], body[-MANIFEST_TAG_BYTES:]
        if not hmac.compare_digest(tag, hmac.digest(key, body, "sha256")):
            raise DrengineError(DAMAGED, "a manifest was not written by somebody with the key")
    try:
        return msgspec.msgpack.decode(body[len(magic) :], type=Manifest)
    except msgspec.DecodeError as error:
        raise DrengineError(DAMAGED, f"a manifest does not decode: {error}") from error


def _ranges(rows: list[SegmentRow]) -> list[SegmentRange]:
    ranges: list[SegmentRange] = []
    for row in rows:
        if ranges and ranges[-1].last + 1 == row.segment:
            ranges[-1] = SegmentRange(ranges[-1].first, row.segment)
        else:
            ranges.append(SegmentRange(row.segment, row.segment))
    return ranges
