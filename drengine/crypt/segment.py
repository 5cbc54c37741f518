"""The cipher of one segment's file: its frames, the digests in its tables, and the chain over its records.

*Keys.* Each file has keys of its own, derived (HKDF-SHA256) from a data key and 32 random bytes that its header holds,
for this store, source, branch, segment and revision. One key encrypts frames, one digests, one makes the chain.

*Nonces.* Because the keys are of this file alone, numbers serve as nonces: that of a frame's record, and its own.
A writer never encrypts two frames under one number, because it never goes back: after a failure it begins another
file, with other random bytes, and so does each writer that comes after it, and each revision.

*Chain.* Each record ends with a tag: HMAC-SHA256, cut to 16 bytes, of the tag before it (the first: of the file's
header), its own header and its tables, which hold the checksums of its frames. So no record can be altered, left out,
put in or moved, and the last tag stands for all of them.
"""

from __future__ import annotations

import hmac
import struct
from copy import copy

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from xxhash import xxh3_64_intdigest

from drengine.crypt.kek import KEY_BYTES, derive
from drengine.model.extents import AES_256_GCM, EXTENT, FRAME, FRAME_TAG_BYTES, ExtentKind

SALT_BYTES = 32
TAG_BYTES = 16
_NONCE = struct.Struct(">IIxxxx")
_COUNTER = struct.Struct(">I12x")
_ROW = struct.Struct("<IIBBHI")
"""A FRAME row without its checksum: what is authenticated with a frame."""
_DIGEST_AT = 3
"""Where a row of a table has its digest, in words of 8 bytes."""

Buffer = bytes | bytearray | memoryview


class SegmentCipher:
    """See the module. Threads may share it."""

    def __init__(self, secret: bytes, salt: bytes, about: bytes) -> None:
        """`secret` is the data key, `salt` the file's random bytes, `about` says which file of which store it is."""
        keys = derive(secret, b"drengine segment\n" + about, salt=salt, length=3 * KEY_BYTES)
        self._frames = AESGCM(keys[:KEY_BYTES])
        self._digests = algorithms.AES(keys[KEY_BYTES : 2 * KEY_BYTES])
        self._chain = keys[2 * KEY_BYTES :]
        self._first = 0

    def behind(self, records: int) -> SegmentCipher:
        """The same for whoever numbers the file's records from a later one on."""
        behind = copy(self)
        behind._first = self._first + records
        return behind

    def seal_frames(self, record: int, frames: bytes, payload: Buffer) -> tuple[bytes, bytearray]:
        """A record's frame table and payload, encrypted."""
        plain, at = memoryview(payload), 0
        sealed = bytearray(len(plain) + FRAME_TAG_BYTES * (len(frames) // FRAME.size))
        view, end = memoryview(sealed), 0
        rows = []
        for number, (plain_length, length, codec, *_) in enumerate(FRAME.iter_unpack(frames)):
            begin, end = end, end + length + FRAME_TAG_BYTES
            row = _ROW.pack(plain_length, length + FRAME_TAG_BYTES, codec, AES_256_GCM, 0, 0)
            nonce = _NONCE.pack(self._first + record, number)
            self._frames.encrypt_into(nonce, plain[at : at + length], row, view[begin:end])
            rows.append(row + xxh3_64_intdigest(view[begin:end]).to_bytes(8, "little"))
            at += length
        return b"".join(rows), sealed

    def open_frame(self, record: int, number: int, row: bytes, stored: Buffer) -> bytes | None:
        """What a frame's stored bytes encrypt; None when they are not those of this frame.

        Args:
            record: number of its record.
            number: its own in the record.
            row: its row of the frame table.
            stored: its bytes.
        """
        try:
            return self._frames.decrypt(_NONCE.pack(self._first + record, number), stored, row[: _ROW.size])
        except InvalidTag:
            return None

    def turn_digests(self, record: int, table: bytes) -> bytes:
        """A record's table with the digests of its DATA rows encrypted, or decrypted: it is the same thing (AES-CTR).

        A digest of plain bytes in clear would tell whoever has the disk which blocks he knows already.
        """
        rows = np.frombuffer(table, dtype="<u8").reshape(-1, EXTENT.size // 8).copy()
        counter = Cipher(self._digests, modes.CTR(_COUNTER.pack(self._first + record))).encryptor()
        stream = np.frombuffer(counter.update(bytes(TAG_BYTES * len(rows))), dtype="<u8").reshape(-1, TAG_BYTES // 8)
        data = rows[:, :1] >> 32 == ExtentKind.DATA  # the volume, then the kind and zeros
        rows[:, _DIGEST_AT:] ^= stream if data.all() else stream * data
        return rows.tobytes()

    def chain(self, header: bytes) -> Chain:
        """The chain of the file's records, before the first one."""
        return Chain(self._chain, header)


class Chain:
    """The chain as far as it was followed.

    Attributes:
        tag: of the newest record.
    """

    def __init__(self, key: bytes, header: bytes) -> None:
        self._key = key
        self.tag = b""
        self.add(header)

    def add(self, *parts: bytes) -> bytes:
        """Follow it by one record; returns its tag."""
        self.tag = hmac.digest(self._key, b"".join((self.tag, *parts)), "sha256")[:TAG_BYTES]
        return self.tag
