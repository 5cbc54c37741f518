"""Manifests: what a rebuild of the catalogue could not know from the segments alone.

A manifest is a checksummed snapshot of the catalogue. One is made durable before any data is removed, and before a
promotion, a branch or a pin is reported as done; so a rebuild neither brings back what was retired nor
takes a deliberate removal for a loss. The newest readable one counts; a few are kept. In an encrypted store it bears
a tag under a key of the store instead of the checksum alone.
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from typing import Any

import msgspec
import xxhash

from drengine.model.errors import DrengineError
from drengine.store.blobs import Storage
from drengine.store.catalogue.epoch import Epoch
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import BranchRow, DamageRow, PointRow, SegmentRow, SourceRow
from drengine.store.context import StoreContext
from drengine.store.errors import DAMAGED, os_errors, read_errors
from drengine.store.keys import StoreKeys
from drengine.store.names import MANIFESTS, manifest_name, parse_manifest_name

MANIFEST_MAGIC = b"DRMAN\x01\r\n"
MANIFEST_MAGIC_WITH_TAG = b"DRMAN\x02\r\n"
MANIFEST_TAG_BYTES = 32
MANIFEST_BYTES_MAX = 256 << 20
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
    """A source and its branches."""

    row: list[Any]
    branches: list[BranchState]
    damage: list[list[Any]]

    def source(self) -> SourceRow:
        """The source's row."""
        return SourceRow(*self.row)

    def damage_rows(self) -> list[DamageRow]:
        """Known damage."""
        return [DamageRow(*row) for row in self.damage]


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """The snapshot. `lineage` and `epoch` say which transaction it shows; both are 0 in those from before epochs."""

    store: bytes
    number: int
    created_ns: int
    sources: list[SourceState]
    lineage: int = 0
    epoch: int = 0

    def is_newer_than(self, epoch: Epoch) -> bool:
        """Whether it shows a later transaction of this catalogue, or one of another catalogue."""
        return bool(self.epoch) and (self.lineage != epoch.lineage or self.epoch > epoch.number)


def branch_row(state: BranchState) -> BranchRow:
    """The branch's row as it was."""
    return BranchRow(*state.row)


def point_rows(state: BranchState) -> list[PointRow]:
    """The kept points as they were."""
    return [PointRow(*row) for row in state.points]


def take_snapshot(catalogue: Catalogue, store: bytes, number: int, now_ns: int) -> Manifest:
    """The catalogue as it is now."""
    with catalogue.snapshot():
        sources = []
        for source in catalogue.sources():
            branches = []
            for branch in catalogue.branches(source.name):
                rows = catalogue.segments(source.name, branch.branch)
                points = [list(point) for point in catalogue.points(source.name, branch.branch)]
                following = rows[-1].segment + 1 if rows else 1
                branches.append(BranchState(list(branch), points, _ranges(rows), following))
            damage = [list(row) for row in catalogue.damage(source.name)]
            sources.append(SourceState(list(source), branches, damage))
        epoch = catalogue.epoch()
    return Manifest(store, number, now_ns, sources, epoch.lineage, epoch.number)


def write_manifest(context: StoreContext) -> Manifest:
    """Make a snapshot durable under the next number and drop the oldest ones.

    Raises:
        DrengineError: STORE_FULL, STORE_IO, STORE_READ_ONLY.
    """
    with context.locks.manifests(), os_errors("writing a manifest"):
        numbers = manifest_numbers(context.storage)
        number = max(numbers, default=0) + 1
        manifest = take_snapshot(context.catalogue, context.identity, number, context.clock.now_ns())
        context.storage.put(manifest_name(number), pack_manifest(manifest, context.keys.store_key(_PURPOSE)))
        for old in sorted(numbers)[: -(context.options.manifests_kept - 1) or None]:
            context.storage.delete(manifest_name(old))
    return manifest


def newest_manifest(storage: Storage, keys: StoreKeys) -> tuple[Manifest | None, bool]:
    """The newest readable manifest, and whether it is the newest there is."""
    numbers = sorted(manifest_numbers(storage), reverse=True)
    for number in numbers:
        with suppress(DrengineError, FileNotFoundError):
            return read_manifest(storage, number, keys), number == numbers[0]
    return None, not numbers


def read_manifest(storage: Storage, number: int, keys: StoreKeys) -> Manifest:
    """One manifest.

    Raises:
        DrengineError: DAMAGED.
    """
    with read_errors(manifest_name(number)):
        reader = storage.open(manifest_name(number))
        try:
            data = reader.read_at(0, min(reader.size(), MANIFEST_BYTES_MAX))
        finally:
            reader.close()
    return parse_manifest(data, keys.store_key(_PURPOSE))


def manifest_numbers(storage: Storage) -> list[int]:
    """Numbers of the manifests that are there."""
    found = (parse_manifest_name(name) for name in storage.list(MANIFESTS))
    return [number for number in found if number is not None]


def pack_manifest(manifest: Manifest, key: bytes = b"") -> bytes:
    """Magic, MessagePack, with a key HMAC-SHA256 of both, and xxh3-64 of all that."""
    body = (MANIFEST_MAGIC_WITH_TAG if key else MANIFEST_MAGIC) + msgspec.msgpack.encode(manifest)
    if key:
        body += hmac.digest(key, body, "sha256")
    return body + xxhash.xxh3_64_intdigest(body, _SEED).to_bytes(8, "little")


def parse_manifest(data: bytes, key: bytes = b"") -> Manifest:
    """Check and decode a manifest; where there is a key, one without its tag is none.

    Raises:
        DrengineError: DAMAGED.
    """
    body, found = data[:-8], data[-8:]
    expected = xxhash.xxh3_64_intdigest(body, _SEED).to_bytes(8, "little")
    magic = MANIFEST_MAGIC_WITH_TAG if key else MANIFEST_MAGIC
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
