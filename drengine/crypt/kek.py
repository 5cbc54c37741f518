"""The key-encryption key (KEK): it wraps data keys, and is never in the store."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from drengine.crypt.errors import KEY_WRONG
from drengine.model.errors import DrengineError

KEY_BYTES = 32
ID_BYTES = 8
NONCE_BYTES = 12


def derive(secret: bytes, purpose: bytes, *, salt: bytes = b"", length: int = KEY_BYTES) -> bytes:
    """A key for one purpose from a secret (HKDF-SHA256, RFC 5869): keys of two purposes tell nothing of each other."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=purpose).derive(secret)


class KeyEncryptionKey:
    """One key-encryption key.

    Attributes:
        id: derived from it, and safe to show: 16 hexadecimal digits.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self.id = derive(secret, b"drengine kek id", length=ID_BYTES).hex()
        self._cipher = AESGCM(derive(secret, b"drengine kek wrap"))

    def wrap(self, plain: bytes, about: bytes) -> bytes:
        """Nonce, ciphertext and tag. `about` says what it is and must be told again to unwrap it.

        The nonce is random: a KEK wraps a few keys a day, far below the 2**32 that random nonces of 96 bits allow.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, about)

    def unwrap(self, wrapped: bytes, about: bytes) -> bytes:
        """What was wrapped.

        Raises:
            DrengineError: KEY_WRONG.
        """
        try:
            return self._cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], about)
        except (InvalidTag, ValueError) as error:
            raise DrengineError(KEY_WRONG, f"key {self.id} does not open it: it was altered") from error


class KeyEncryptionKeys:
    """The KEK that wraps from now on, and older ones that still unwrap while it is being changed."""

    def __init__(self, newest: KeyEncryptionKey, older: Iterable[KeyEncryptionKey] = ()) -> None:
        self.newest = newest
        self._by_id = {key.id: key for key in (*older, newest)}

    def with_older(self, older: Iterable[KeyEncryptionKey]) -> KeyEncryptionKeys:
        """With more that still unwrap."""
        return KeyEncryptionKeys(self.newest, [*self._by_id.values(), *older])

    def find(self, id: str, what: str) -> KeyEncryptionKey:
        """The key of an id; `what` is wrapped with it.

        Raises:
            DrengineError: KEY_WRONG.
        """
        found = self._by_id.get(id)
        if found is None:
            raise DrengineError(KEY_WRONG, f"{what} is wrapped with key {id}, and {', '.join(self._by_id)} was given")
        return found
