"""Encrypting a store that was not, new data keys, erasing a source by forgetting its keys, and how far all that is."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from drengine.crypt.errors import KEY_MISSING, STORE_IN_CLEAR
from drengine.crypt.keyring import DataKey, Keyring
from drengine.model.errors import DrengineError
from drengine.store.care.locking import require_unlocked
from drengine.store.catalogue.rows import DamageRow, SegmentRow
from drengine.store.catalogue.seal import CATALOGUE_KEY
from drengine.store.context import StoreContext
from drengine.store.damage import WHOLE_SEGMENT, record_damage
from drengine.store.inventories import encrypt_inventories, forget_inventory
from drengine.store.names import STORE_KEYS, keys_name
from drengine.store.rebuild.manifest import write_manifest, write_manifests
from drengine.store.views.records import ERASED_REASON


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A data key: its id, when it was made, and when it was forgotten (0: it is there)."""

    id: str
    created_ns: int
    erased_ns: int


@dataclass(frozen=True, slots=True)
class SourceEncryption:
    """A source.

    Attributes:
        kek: id of the key-encryption key that its keyring is under; empty when it has none.
        keys: its data keys, oldest first; the last one encrypts.
        missing: it has encrypted segments and no keyring.
        encrypted_bytes, clear_bytes: file bytes of its segments.
    """

    name: str
    kek: str
    keys: tuple[KeyStatus, ...]
    missing: bool
    encrypted_bytes: int
    clear_bytes: int


@dataclass(frozen=True, slots=True)
class EncryptionStatus:
    """How far a store is encrypted. `kek` is the key-encryption key of its own keyring; empty: it is in clear."""

    kek: str
    sources: tuple[SourceEncryption, ...]

    @property
    def clear_bytes(self) -> int:
        """File bytes of all segments in clear."""
        return sum(source.clear_bytes for source in self.sources)


def encrypt_store(context: StoreContext) -> None:
    """See Store.encrypt. First the key, then the seal: an interrupted one is gone on with."""
    catalogue, keys = context.catalogue, context.keys
    with ExitStack() as locks:
        locks.enter_context(context.locks.maintenance())
        for source in catalogue.sources():
            for branch in catalogue.branches(source.name):
                locks.enter_context(context.locks.branch(source.name, branch.branch))
        if not keys.is_encrypted:
            keys.encrypt(context.clock.now_ns())
        if catalogue.head() is None:
            catalogue.seal(keys.store_key(CATALOGUE_KEY))
            encrypt_inventories(context)
            write_manifests(context)


def rotate_key(context: StoreContext, source: str) -> str:
    """See Store.rotate_key."""
    context.catalogue.source(source)
    _require_encrypted(context, source)
    made = context.keys.change(context.locks, source, lambda ring: ring.with_new(context.clock.now_ns()))
    return made.keys[-1].id.hex()


def erase(context: StoreContext, source: str) -> int:
    """See Store.erase. First the keys go; then the points that need what they encrypted are told so."""
    catalogue = context.catalogue
    catalogue.source(source)
    _require_encrypted(context, source)
    with ExitStack() as locks:
        locks.enter_context(context.locks.maintenance())
        for branch in catalogue.branches(source):
            locks.enter_context(context.locks.branch(source, branch.branch))
        require_unlocked(context, source, "its keys are not forgotten")
        rows = _segments(context, source)
        if clear := sum(not row.seal for row in rows):
            raise DrengineError(
                STORE_IN_CLEAR,
                f"{clear} segments of {source!r} are in clear, and forgetting keys leaves them readable",
                hint="Wait until compaction has encrypted them; `drengine keys status` shows how far it is.",
            )
        old = context.keys.reread(source)
        now_ns = context.clock.now_ns()
        context.keys.change(context.locks, source, lambda ring: ring.erased(now_ns))
        gone = [DamageRow(*row[:3], WHOLE_SEGMENT, row.first_sequence, now_ns, ERASED_REASON) for row in rows]
        context.records.forget_source(source)
        record_damage(context, gone)
        with catalogue.transaction(source):
            forget_inventory(catalogue, source)
        write_manifest(context, source)
    return sum(not key.erased_ns for key in old.keys)


def encryption_status(context: StoreContext) -> EncryptionStatus:
    """See Store.encryption."""
    catalogue, keys = context.catalogue, context.keys
    keks = keys.kek_ids()
    found = []
    for source in catalogue.sources():
        ring = keys.reread(source.name) if keys.is_encrypted else Keyring([])
        rows = _segments(context, source.name)
        encrypted = sum(_file_bytes(row) for row in rows if row.seal)
        found.append(
            SourceEncryption(
                name=source.name,
                kek=keks.get(keys_name(source.name), ""),
                keys=tuple(map(_status, ring.keys)),
                missing=keys.is_missing(catalogue, source.name),
                encrypted_bytes=encrypted,
                clear_bytes=sum(map(_file_bytes, rows)) - encrypted,
            )
        )
    return EncryptionStatus(keks.get(STORE_KEYS, ""), tuple(found))


def _status(key: DataKey) -> KeyStatus:
    return KeyStatus(key.id.hex(), key.created_ns, key.erased_ns)


def _require_encrypted(context: StoreContext, source: str) -> None:
    if not context.keys.is_encrypted:
        raise DrengineError(STORE_IN_CLEAR, f"{context.directory} is not encrypted")
    if context.keys.is_missing(context.catalogue, source):
        raise DrengineError(KEY_MISSING, f"{keys_name(source)} is missing")


def _segments(context: StoreContext, source: str) -> list[SegmentRow]:
    catalogue = context.catalogue
    return [row for each in catalogue.branches(source) for row in catalogue.segments(source, each.branch)]


def _file_bytes(row: SegmentRow) -> int:
    return max(row.length, row.committed_length)
