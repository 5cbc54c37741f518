"""An open store's keys: which cipher a segment has, and the keyrings that lie beside the segments.

A store is encrypted once it has a keyring of its own (`keys/STORE`). From then on whoever opens it needs the
key-encryption key, and every new segment is encrypted under its source's newest data key.

A keyring is read again when a segment names a key that it does not have, when a writer begins a segment, and when the
catalogue has changed: another process may have rotated or forgotten keys.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from drengine.crypt.errors import KEY_MISSING, KEY_NEEDED, SOURCE_ERASED
from drengine.crypt.kek import KeyEncryptionKeys, derive
from drengine.crypt.keyring import Keyring, kek_of, pack_keyring, parse_keyring
from drengine.crypt.segment import SALT_BYTES, SegmentCipher
from drengine.model.errors import DrengineError
from drengine.store.blobs import Storage
from drengine.store.catalogue.interface import Catalogue
from drengine.store.errors import os_errors
from drengine.store.locks import Locks
from drengine.store.names import KEYS, STORE_KEYS, keys_name
from drengine.store.segments.format import ENCRYPTED_VERSION, PLAIN_VERSION, SegmentHeader

KEYRING_BYTES_MAX = 16 << 20


class _Read(NamedTuple):
    data: bytes
    ring: Keyring


class StoreKeys:
    """The keys of an open store. Threads may share it."""

    def __init__(self, storage: Storage, store: bytes, keks: KeyEncryptionKeys | None, *, made_ns: int = 0) -> None:
        """Read the store's own keyring, if it has one; of a store that is made now (when: `made_ns`), make it.

        Raises:
            DrengineError: KEY_NEEDED, KEY_WRONG, KEY_MISSING; STORE_IO.
        """
        self._storage = storage
        self._store = store
        self._keks = keks
        self._lock = threading.Lock()
        self._rings: dict[str, _Read] = {}
        self._secret = b""
        if made_ns:
            self.encrypt(made_ns)
            return
        found = self._read(STORE_KEYS)
        if found is None and storage.list(f"{KEYS}/"):
            raise DrengineError(KEY_MISSING, f"{STORE_KEYS} is missing, and there are keyrings of sources")
        key = found.ring.newest if found else None
        self._secret = key.secret if key else b""

    @property
    def is_encrypted(self) -> bool:
        """Whether the store is encrypted."""
        return bool(self._secret)

    def store_key(self, purpose: str) -> bytes:
        """A key of the store for one purpose; empty where it is not encrypted."""
        return derive(self._secret, f"drengine store {purpose}".encode()) if self._secret else b""

    def cipher(self, header: SegmentHeader) -> SegmentCipher | None:
        """What decrypts a segment; None where it is not encrypted.

        Raises:
            DrengineError: SOURCE_ERASED, KEY_MISSING, KEY_WRONG, KEY_NEEDED.
        """
        if not header.key:
            return None
        key = self._ring(header.source).find(header.key)
        if key is None:
            key = self.reread(header.source).find(header.key)
        what = f"segment {header.segment} of branch {header.branch} of {header.source!r}"
        if key is None:
            raise DrengineError(KEY_MISSING, f"{what} is encrypted with data key {header.key.hex()}")
        if key.erased_ns:
            raise DrengineError(SOURCE_ERASED, f"{what} was encrypted with data key {header.key.hex()}, now forgotten")
        return SegmentCipher(key.secret, header.key_salt, header.about)

    def sealed(self, header: SegmentHeader) -> SegmentHeader:
        """A new file's header, with a key and random bytes of its own where the store is encrypted."""
        if not self.is_encrypted:
            return replace(header, version=PLAIN_VERSION, key=b"", key_salt=b"")
        key = self.reread(header.source).newest
        if key is None:
            raise DrengineError(KEY_MISSING, f"{keys_name(header.source)} is missing")
        return replace(header, version=ENCRYPTED_VERSION, key=key.id, key_salt=secrets.token_bytes(SALT_BYTES))

    def names(self) -> list[str]:
        """Sources that have a keyring."""
        with os_errors("listing keyrings"):
            return [name.removeprefix(f"{KEYS}/") for name in self._storage.list(f"{KEYS}/") if name != STORE_KEYS]

    def kek_ids(self) -> dict[str, str]:
        """Under which KEK each keyring is, by its file."""
        found = {}
        for name in self._storage.list(f"{KEYS}/"):
            data = self._data(name)
            if data is not None:
                found[name] = kek_of(data, name)
        return found

    def reread(self, source: str) -> Keyring:
        """A source's keyring as it is now; empty if it has none."""
        found = self._read(keys_name(source))
        with self._lock:
            if found is None:
                self._rings.pop(source, None)
                return Keyring([])
            self._rings[source] = found
        return found.ring

    def refresh(self) -> set[str]:
        """Read again what was read; the sources whose keyrings have changed."""
        with self._lock:
            known = dict(self._rings)
        changed = {source for source, read in known.items() if self._data(keys_name(source)) != read.data}
        for source in changed:
            self.reread(source)
        return changed

    def is_missing(self, catalogue: Catalogue, source: str) -> bool:
        """Whether a source has encrypted segments and no keyring."""
        if not self.is_encrypted or self.reread(source).keys:
            return False
        rows = (row for each in catalogue.branches(source) for row in catalogue.segments(source, each.branch))
        return any(row.seal for row in rows)

    def change(self, locks: Locks, source: str, change: Callable[[Keyring], Keyring]) -> Keyring:
        """Put another keyring of a source in place, durably; nobody else changes one meanwhile.

        Raises:
            DrengineError: STORE_FULL, STORE_IO, STORE_READ_ONLY.
        """
        with locks.keys():
            old = self.reread(source)
            new = change(old)
            if new is not old:
                self._write(keys_name(source), new)
                self.reread(source)
        return new

    def require(self, catalogue: Catalogue, source: str) -> None:
        """Return when the keys of what a source has written are there.

        Raises:
            DrengineError: KEY_MISSING, KEY_WRONG.
        """
        if self.is_missing(catalogue, source):
            raise DrengineError(KEY_MISSING, f"{keys_name(source)} is missing, and {source!r} has encrypted data")

    def ensure(self, locks: Locks, catalogue: Catalogue, source: str, now_ns: int) -> None:
        """See to it that a source has a key that encrypts, where the store is encrypted.

        Raises:
            DrengineError: KEY_MISSING: it has none, and must have had one.
        """
        if not self.is_encrypted or self.reread(source).newest:
            return
        self.require(catalogue, source)
        self.change(locks, source, lambda ring: ring if ring.newest else ring.with_new(now_ns))

    def encrypt(self, now_ns: int) -> None:
        """Make the store's own keyring: from now on the store is encrypted."""
        ring = Keyring([]).with_new(now_ns)
        self._write(STORE_KEYS, ring)
        self._secret = ring.keys[-1].secret

    def rewrap(self, locks: Locks) -> int:
        """Write each keyring that is not under the newest KEK anew under it; how many there were.

        Killed in between, the rest stays under the older key, which still opens it.
        """
        count = 0
        with locks.keys():
            for name, kek in sorted(self.kek_ids().items()):
                if kek != self._required().newest.id and (found := self._read(name)):
                    self._write(name, found.ring)
                    count += 1
        return count

    def _ring(self, source: str) -> Keyring:
        with self._lock:
            found = self._rings.get(source)
        return found.ring if found else self.reread(source)

    def _write(self, name: str, ring: Keyring) -> None:
        with os_errors(f"writing {name}"):
            self._storage.put(name, pack_keyring(ring, self._required().newest, self._about(name)))

    def _read(self, name: str) -> _Read | None:
        data = self._data(name)
        return None if data is None else _Read(data, parse_keyring(data, self._required(), self._about(name), name))

    def _data(self, name: str) -> bytes | None:
        with os_errors(f"reading {name}"):
            try:
                reader = self._storage.open(name)
            except FileNotFoundError:
                return None
            try:
                return reader.read_at(0, min(reader.size(), KEYRING_BYTES_MAX))
            finally:
                reader.close()

    def _about(self, name: str) -> bytes:
        return self._store + name.encode()

    def _required(self) -> KeyEncryptionKeys:
        if self._keks is None:
            raise DrengineError(KEY_NEEDED, f"store {self._store.hex()} is encrypted")
        return self._keks
