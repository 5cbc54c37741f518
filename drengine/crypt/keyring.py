"""A keyring: the data keys of one source, in a file of the store, encrypted as a whole under the KEK.

File::

    magic `DRKEYS\\x01\\n` | 8 bytes id of the KEK | 12 bytes nonce | ciphertext, 16 bytes tag | xxh3-64 of all before

The plain text is MessagePack. Authenticated with it: magic, the KEK's id, the store's id and whose keys these are. So a
keyring can't be taken for another source's or store's, and no key of it can be left out, put in or called erased by
somebody without the KEK. The checksum only tells damage from a wrong key.
"""

from __future__ import annotations

import secrets

import msgspec
from xxhash import xxh3_64_intdigest

from drengine.crypt.errors import KEY_MISSING, KEY_WRONG
from drengine.crypt.kek import ID_BYTES, KEY_BYTES, KeyEncryptionKey, KeyEncryptionKeys
from drengine.model.errors import DrengineError

KEYRING_MAGIC = b"DRKEYS\x01\n"
DATA_KEY_ID_BYTES = 16
_CHECKSUM_BYTES = 8


class DataKey(msgspec.Struct, frozen=True, array_like=True):
    """A data key. `erased_ns`: when it was forgotten, and `secret` is empty since; 0: it is there."""

    id: bytes
    created_ns: int
    secret: bytes
    erased_ns: int = 0

    def __repr__(self) -> str:
        return f"DataKey({self.id.hex()})"  # never the secret


class Keyring(msgspec.Struct, frozen=True, array_like=True):
    """All data keys that a source ever had, oldest first. The newest one encrypts, if it is there."""

    keys: list[DataKey]

    @property
    def newest(self) -> DataKey | None:
        """The key that encrypts; None when the next writer has to make one."""
        return self.keys[-1] if self.keys and not self.keys[-1].erased_ns else None

    def find(self, id: bytes) -> DataKey | None:
        """The key of an id, erased or not."""
        return next((key for key in self.keys if key.id == id), None)

    def with_new(self, now_ns: int) -> Keyring:
        """With one more, which encrypts from now on."""
        made = DataKey(secrets.token_bytes(DATA_KEY_ID_BYTES), now_ns, secrets.token_bytes(KEY_BYTES))
        return Keyring([*self.keys, made])

    def erased(self, now_ns: int) -> Keyring:
        """With every secret gone and only the ids left."""
        return Keyring([key if key.erased_ns else DataKey(key.id, key.created_ns, b"", now_ns) for key in self.keys])


def pack_keyring(ring: Keyring, kek: KeyEncryptionKey, about: bytes) -> bytes:
    """The file."""
    head = KEYRING_MAGIC + bytes.fromhex(kek.id)
    body = head + kek.wrap(msgspec.msgpack.encode(ring), head + about)
    return body + xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little")


def kek_of(data: bytes, what: str) -> str:
    """Id of the KEK that a keyring is encrypted under; `what` names the file.

    Raises:
        DrengineError: KEY_MISSING: it is damaged.
    """
    body, found = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not body.startswith(KEYRING_MAGIC) or found != xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little"):
        raise DrengineError(KEY_MISSING, f"{what} is damaged")
    return body[len(KEYRING_MAGIC) :][:ID_BYTES].hex()


def parse_keyring(data: bytes, keks: KeyEncryptionKeys, about: bytes, what: str) -> Keyring:
    """Decrypt a keyring.

    Raises:
        DrengineError: KEY_MISSING, KEY_WRONG.
    """
    kek = keks.find(kek_of(data, what), what)
    split = len(KEYRING_MAGIC) + ID_BYTES
    try:
        plain = kek.unwrap(data[split:-_CHECKSUM_BYTES], data[:split] + about)
        return msgspec.msgpack.decode(plain, type=Keyring)
    except (DrengineError, msgspec.DecodeError) as error:
        raise DrengineError(KEY_WRONG, f"{what} was altered, or is not of this store: {error}") from error
