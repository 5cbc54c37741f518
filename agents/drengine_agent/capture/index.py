"""The local hash index: what the target durably has, as hashes, so that a scan finds differences without asking.

One file per volume: a header of 4096 bytes, then one page of 2312 bytes for each MiB of the volume (0.22 %)::

    page  = u64 xxh3-64 of the rest, seeded with the page's number
          | 16 x 16 bytes   xxh3-128 of each 64 KiB block
          | 256 x 8 bytes   xxh3-64 of each 4 KiB grain

A digest of 16 zero bytes means *unknown*: the block must be compared with the target. A page that was never written
(all zero bytes) is unknown as a whole, or, in an index begun together with an empty target, stands for zeros.

Invariants
- An entry that is known is exactly what the target durably has at that block; everything else is unknown. So an
  entry is forgotten before different bytes are sent, and remembered only when the target has acknowledged them.
- The header says *clean* only between a `close` and the next `open`. Opening an index that isn't clean, or is
  torn, or is of another volume, begins anew with everything unknown: entries written before a crash prove nothing about
  those that were lost with it.
- A page that fails its checksum is unknown, never believed.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from drengine.model.extents import BLOCK_BYTES, GRAIN_BYTES
from drengine.model.points import VolumeGeometry

SLAB_BYTES = 1 << 20
"""What one page describes, and the unit in which volumes are read."""
SLAB_BLOCKS = SLAB_BYTES // BLOCK_BYTES
BLOCK_GRAINS = BLOCK_BYTES // GRAIN_BYTES
DIGEST_BYTES = 16
GRAIN_DIGEST_BYTES = 8
UNKNOWN = bytes(DIGEST_BYTES)

_MAGIC = b"DRENGIDX"
_VERSION = 1
_HEADER_BYTES = 4096
_HEADER = struct.Struct("<8sHBB4xQQ16sQH255s")
_DIGESTS_BYTES = SLAB_BLOCKS * DIGEST_BYTES
_BLOCK_GRAIN_BYTES = BLOCK_GRAINS * GRAIN_DIGEST_BYTES
_BODY_BYTES = _DIGESTS_BYTES + SLAB_BLOCKS * _BLOCK_GRAIN_BYTES
PAGE_BYTES = 8 + _BODY_BYTES
_UNKNOWN_BODY = bytes(_BODY_BYTES)

block_digest = xxhash.xxh3_128_digest
grain_digest = xxhash.xxh3_64_digest


class BlockHashes(NamedTuple):
    """One block's entry: its digest, and those of its grains, concatenated."""

    digest: bytes
    grains: bytes


def hash_block(plain: memoryview, known: bytes | None = None) -> BlockHashes:
    """The entry for a block with these bytes (the last block of a volume may be short); `known` is its digest."""
    grains = b"".join([grain_digest(plain[at : at + GRAIN_BYTES]) for at in range(0, len(plain), GRAIN_BYTES)])
    return BlockHashes(known or block_digest(plain), grains)


def _zero_body(length: int) -> bytes:
    """The body of a page whose first `length` bytes of volume are zeros."""
    zeros = memoryview(bytes(BLOCK_BYTES))
    hashes = [
        hash_block(zeros[: min(BLOCK_BYTES, length - at)]) for at in range(0, min(length, SLAB_BYTES), BLOCK_BYTES)
    ]
    digests = b"".join(entry.digest for entry in hashes).ljust(_DIGESTS_BYTES, b"\0")
    return digests + b"".join(entry.grains.ljust(_BLOCK_GRAIN_BYTES, b"\0") for entry in hashes).ljust(
        _BODY_BYTES - _DIGESTS_BYTES, b"\0"
    )


@dataclass(frozen=True, slots=True)
class IndexState:
    """What a clean index was exact for.

    Attributes:
        epoch: names this tracking state; part of every mark sent with it.
        round: scanning rounds begun in this epoch.
        durable_sequence: the newest position that the target had acknowledged.
    """

    epoch: bytes
    round: int
    durable_sequence: int


class BlockIndex:
    """The index of one volume. Its methods may be called from several threads."""

    def __init__(self, path: Path, volume: VolumeGeometry) -> None:
        self._path = path
        self._size = volume.size_bytes
        self._identity = volume.identity.encode()[:255]
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._blank_body = _UNKNOWN_BODY
        self._last_page = max(0, -(-self._size // SLAB_BYTES) - 1)
        self._blank_last = _UNKNOWN_BODY
        self.resized = False

    def load(self) -> IndexState | None:
        """Take up the file if it proves clean and is this volume's; None when it doesn't: then call `reset`."""
        header = os.pread(self._fd, _HEADER_BYTES, 0)
        if len(header) < _HEADER_BYTES:
            return None
        magic, version, clean, zeros, size, round_, epoch, durable, length, identity = _HEADER.unpack_from(header)
        if magic != _MAGIC or version != _VERSION or not clean:
            return None
        if block_digest(header[: _HEADER.size]) != header[_HEADER.size : _HEADER.size + DIGEST_BYTES]:
            return None
        if size != self._size or identity[:length] != self._identity:
            self.resized = size != self._size
            return None
        if os.fstat(self._fd).st_size != self._file_bytes():
            return None
        self._set_blank(zeros=bool(zeros))
        return IndexState(epoch, round_, durable)

    def reset(self, *, zeros: bool) -> None:
        """Begin anew: everything unknown, or (`zeros`) everything zeros because the target is empty."""
        with self._lock:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._file_bytes())
            self._set_blank(zeros=zeros)

    def mark_open(self, state: IndexState) -> None:
        """Write down, durably, that the index is being changed from now on."""
        self._write_header(state, clean=False)

    def close(self, state: IndexState | None) -> None:
        """Close; with a `state`, everything is made durable first and only then called clean."""
        if state is not None:
            os.fdatasync(self._fd)
            self._write_header(state, clean=True)
        os.close(self._fd)

    def digests(self, page: int) -> bytes:
        """16 bytes for each of the page's 16 blocks; past the volume's end they are UNKNOWN."""
        return self._body(page)[:_DIGESTS_BYTES]

    def grains(self, page: int, block: int) -> bytes:
        """8 bytes for each grain of the page's block `block`; meaningless when its digest is UNKNOWN."""
        at = _DIGESTS_BYTES + block * _BLOCK_GRAIN_BYTES
        return self._body(page)[at : at + _BLOCK_GRAIN_BYTES]

    def remember(self, page: int, blocks: Mapping[int, BlockHashes]) -> None:
        """The target durably has these blocks (numbers inside the page)."""
        with self._lock:
            body = bytearray(self._body(page))
            for block, (digest, grains) in blocks.items():
                body[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = digest
                at = _DIGESTS_BYTES + block * _BLOCK_GRAIN_BYTES
                body[at : at + len(grains)] = grains
            self._write_page(page, body)

    def forget(self, page: int, blocks: list[int]) -> None:
        """What the target has at these blocks is about to change, or is in doubt."""
        with self._lock:
            body = bytearray(self._body(page))
            for block in blocks:
                body[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = UNKNOWN
            self._write_page(page, body)

    def _body(self, page: int) -> bytes:
        raw = os.pread(self._fd, PAGE_BYTES, _HEADER_BYTES + page * PAGE_BYTES)
        body = raw[8:]
        if xxhash.xxh3_64_intdigest(body, page) == int.from_bytes(raw[:8], "little") and len(raw) == PAGE_BYTES:
            return body
        if not any(raw) and len(raw) == PAGE_BYTES:
            return self._blank_last if page == self._last_page else self._blank_body
        return _UNKNOWN_BODY

    def _write_page(self, page: int, body: bytearray) -> None:
        check = xxhash.xxh3_64_intdigest(body, page).to_bytes(8, "little")
        os.pwrite(self._fd, check + body, _HEADER_BYTES + page * PAGE_BYTES)

    def _file_bytes(self) -> int:
        return _HEADER_BYTES + -(-self._size // SLAB_BYTES) * PAGE_BYTES

    def _set_blank(self, *, zeros: bool) -> None:
        tail = self._size - self._last_page * SLAB_BYTES
        self._blank_body = _zero_body(SLAB_BYTES) if zeros else _UNKNOWN_BODY
        self._blank_last = _zero_body(tail) if zeros else _UNKNOWN_BODY

    def _write_header(self, state: IndexState, *, clean: bool) -> None:
        zeros = self._blank_last is not _UNKNOWN_BODY
        header = _HEADER.pack(
            _MAGIC, _VERSION, clean, zeros, self._size, state.round, state.epoch, state.durable_sequence,
            len(self._identity), self._identity,
        )  # fmt: skip
        header += block_digest(header)
        os.pwrite(self._fd, header.ljust(_HEADER_BYTES, b"\0"), 0)
        os.fdatasync(self._fd)
