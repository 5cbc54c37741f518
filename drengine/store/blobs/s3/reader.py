"""Reading a file from its objects, through blocks that are kept on the local disk."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import xxhash

from drengine.store.blobs.index import PartRow, contiguous, end_of
from drengine.store.blobs.local import LocalReader
from drengine.store.blobs.s3.cache import BLOCK_BYTES, Cache
from drengine.store.blobs.s3.client import ObjectClient
from drengine.store.blobs.storage import Buffer

AHEAD_BLOCKS = 8
"""A reader that goes forward has so many blocks fetched before it asks."""
_STRIPES = 64


class Fetcher:
    """Fetches bytes of files, each block once however many ask for it. Threads may share it."""

    def __init__(self, client: ObjectClient, cache: Cache, pool: ThreadPoolExecutor) -> None:
        self._client, self._cache, self._pool = client, cache, pool
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]

    def cached(self, rows: list[PartRow], number: int, begin: int, end: int) -> bytes | None:
        """Bytes `begin` to `end` of a block, if a copy has them."""
        reader = self._cache.open_block(rows[0].name, rows[0].file, number)
        if reader is None:
            return None
        try:
            data = reader.read_at(begin, end - begin)
        except OSError:
            return None
        finally:
            reader.close()
        return data if len(data) == end - begin else None

    def block(self, rows: list[PartRow], number: int, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of a block.

        Raises:
            FileNotFoundError: an object is missing.
        """
        name, file = rows[0].name, rows[0].file
        if (data := self.cached(rows, number, begin, end)) is not None:
            return data
        with self._stripes[hash((file, number)) % _STRIPES]:
            if (data := self.cached(rows, number, begin, end)) is not None:
                return data
            offset = number * BLOCK_BYTES
            block = self.get(rows, offset, min(BLOCK_BYTES, end_of(rows) - offset))
            self._cache.keep_block(name, file, number, block)
            return block[begin:end]

    def ahead(self, rows: list[PartRow], number: int) -> None:
        """Begin to fetch a block that is likely to be asked for."""
        size = min(BLOCK_BYTES, end_of(rows) - number * BLOCK_BYTES)
        if size > 0:
            self._pool.submit(self._ahead, rows, number, size)

    def get(self, rows: list[PartRow], offset: int, length: int) -> bytes:
        """Bytes of a file, past all copies."""
        pieces = []
        for row in rows:
            begin, end = max(offset, row.begin), min(offset + length, row.end)
            if begin < end:
                pieces.append(self._client.get(row.key, begin - row.begin, end - begin))
                offset, length = end, offset + length - end
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def whole(self, rows: list[PartRow]) -> bytes:
        """All bytes of a file, several requests at a time."""
        end = end_of(rows)
        steps = range(0, end, AHEAD_BLOCKS * BLOCK_BYTES)
        if len(steps) < 2:
            return self.get(rows, 0, end)
        sizes = [min(AHEAD_BLOCKS * BLOCK_BYTES, end - begin) for begin in steps]
        return b"".join(self._pool.map(lambda step: self.get(rows, *step), zip(steps, sizes, strict=True)))

    def _ahead(self, rows: list[PartRow], number: int, size: int) -> None:
        try:
            self.block(rows, number, 0, size)
        except Exception:  # noqa: BLE001 - whoever needs the block asks again, and is told
            return


def holds(reader: LocalReader, rows: list[PartRow]) -> bool:
    """Whether a local file has what was uploaded of it."""
    try:
        return all(_digest(reader, row) == row.digest for row in contiguous(rows) if row.digest)
    except OSError:
        return False


def _digest(reader: LocalReader, row: PartRow) -> bytes:
    hasher = xxhash.xxh3_128()
    for begin in range(row.begin, row.end, BLOCK_BYTES):
        hasher.update(reader.read_at(begin, min(BLOCK_BYTES, row.end - begin)))
    return hasher.digest()


class ObjectReader:
    """A file in the object store being read. See Reader."""

    def __init__(self, fetcher: Fetcher, look: Callable[[], list[PartRow]], rows: list[PartRow]) -> None:
        """`look` asks the catalogue for the file's rows as they are now."""
        self._fetcher, self._look = fetcher, look
        self._file = rows[0].file
        self._rows, self._end = contiguous(rows), end_of(rows)
        self._last_block = self._ahead = -1

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        if offset + length > self._end:
            self._refresh()
        end = min(offset + length, self._end)
        if offset >= end:
            return b""
        try:
            return self._read(offset, end)
        except FileNotFoundError as error:
            old = self._rows
            if not self._refresh():
                raise
            if self._rows == old:
                raise OSError(errno.EIO, f"object {error.filename} is missing") from error
            return self._read(offset, end)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader: what copies have."""
        if offset + length > self._end or not length:
            return None
        number, begin = divmod(offset, BLOCK_BYTES)
        if begin + length > BLOCK_BYTES:
            return None
        return self._fetcher.cached(self._rows, number, begin, begin + length)

    def size(self) -> int:
        """See Reader."""
        self._refresh()
        return self._end

    def map(self) -> bytes:
        """See Reader."""
        return self._fetcher.whole(self._rows)

    def close(self) -> None:
        """See Reader."""

    def _read(self, offset: int, end: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        if first == self._last_block + 1 or last > first:
            for number in range(max(first, self._ahead) + 1, last + 1 + AHEAD_BLOCKS):
                self._fetcher.ahead(self._rows, number)
            self._ahead = last + AHEAD_BLOCKS
        self._last_block = last
        pieces = []
        for number in range(first, last + 1):
            at = number * BLOCK_BYTES
            pieces.append(self._fetcher.block(self._rows, number, max(0, offset - at), min(BLOCK_BYTES, end - at)))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _refresh(self) -> bool:
        """Take up what the catalogue says now; False where it no longer names this file, which stays as it was."""
        rows = self._look()
        if not rows or rows[0].file != self._file:
            return False
        self._rows, self._end = contiguous(rows), end_of(rows)
        return True


class DistrustedReader:
    """A local file that has rotted: only what the object store does not have (yet) comes from it. See Reader."""

    def __init__(self, objects: ObjectReader, local: LocalReader) -> None:
        self._objects, self._local = objects, local

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        data = self._objects.read_at(offset, length)
        missing = length - len(data)
        return data + self._local.read_at(offset + len(data), missing) if missing else data

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader."""
        return self._objects.read_now(offset, length)

    def size(self) -> int:
        """See Reader."""
        return max(self._objects.size(), self._local.size())

    def map(self) -> bytes:
        """See Reader."""
        return self.read_at(0, self.size())

    def close(self) -> None:
        """See Reader."""
        self._local.close()
