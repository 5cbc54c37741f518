"""A storage whose segments are made up when they are read, and that counts what it is asked.

Headers, tables, indexes and footers are those of the format, so that every reader of the store takes them; the payload
is zeros, whose checksums and digests are right. What passes write goes to a directory.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache, cached_property
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.growth.shape import COPY_RECORD_BYTES, GENERATION, NS, SEGMENT_BYTES, VOLUME, Shape, Span, mark
from drengine.model.extents import EXTENT, FRAME, ExtentKind
from drengine.model.points import Cut, PointKind
from drengine.store.blobs import Appender, Buffer, LocalStorage, Reader
from drengine.store.blobs.storage import Abilities
from drengine.store.names import SEGMENTS, SegmentPlace, parse_segment_name, segment_name
from drengine.store.segments import format as codec
from drengine.store.segments.format import RecordType, Role, SegmentHeader
from drengine.wire.payload import digest

_ROW = np.dtype(
    {"names": ["volume", "kind", "offset", "length", "digest"], "formats": ["<u4", "u1", "<u8", "<u8", "V16"],
     "offsets": [0, 4, 8, 16, 24], "itemsize": EXTENT.size}
)  # fmt: skip


class Requests(NamedTuple):
    """What was asked of a storage: how many calls of each kind, and bytes read and written."""

    calls: Counter[str]
    read_bytes: int
    written_bytes: int

    def since(self, before: Requests) -> dict[str, int]:
        """What came after an earlier state of it."""
        calls = {f"{name}s": count for name, count in sorted((self.calls - before.calls).items())}
        return {
            **calls,
            "read_bytes": self.read_bytes - before.read_bytes,
            "written_bytes": self.written_bytes - before.written_bytes,
        }


class SyntheticStorage:
    """See the module's docstring, and Storage."""

    abilities = Abilities(append=True)

    def __init__(self, directory: Path, identity: bytes, shape: Shape, sources: frozenset[str]) -> None:
        self._inner = LocalStorage(directory)
        self._identity = identity
        self._shape = shape
        self._sources = sources
        self._deleted: set[SegmentPlace] = set()
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._read = self._written = 0
        self.made_seconds = 0.0
        """What making segments up has taken: no cost of the store."""

    @property
    def requests(self) -> Requests:
        """What it was asked until now."""
        with self._lock:
            return Requests(self._calls.copy(), self._read, self._written)

    def count(self, call: str, *, read: int = 0, written: int = 0) -> None:
        """Note a call."""
        with self._lock:
            self._calls[call] += 1
            self._read += read
            self._written += written

    def create(self, name: str) -> Appender:
        """See Storage."""
        self.count("create")
        return self._inner.create(name)

    def open(self, name: str) -> Reader:
        """See Storage."""
        self.count("open")
        place = parse_segment_name(name)
        span = self._span(place)
        if place is None or span is None:
            return _Counted(self, self._inner.open(name))
        return SyntheticSegment(self, self._identity, self._shape, place, span)

    def resume(self, name: str, length: int) -> Appender:
        """See Storage."""
        self.count("create")
        return self._inner.resume(name, length)

    def available_length(self, name: str) -> int:
        """See Storage."""
        span = self._span(parse_segment_name(name))
        return SEGMENT_BYTES if span else self._inner.available_length(name)

    def put(self, name: str, data: Buffer) -> None:
        """See Storage."""
        self.count("put", written=len(data))
        self._inner.put(name, data)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        self.count("list")
        found = self._inner.list(prefix)
        for source in sorted(self._sources):
            if f"{SEGMENTS}/{source}/".startswith(prefix) or prefix.startswith(f"{SEGMENTS}/{source}/"):
                for span in self._shape.spans:
                    place = SegmentPlace(source, 1, span.segment, 1)
                    if (name := segment_name(*place)).startswith(prefix) and place not in self._deleted:
                        found.append(name)
        return sorted(found)

    def delete(self, name: str) -> None:
        """See Storage."""
        self.count("delete")
        place = parse_segment_name(name)
        if place and self._span(place):
            self._deleted.add(place)
        else:
            self._inner.delete(name)

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""
        self._inner.sync_dir(prefix)

    def sweep(self) -> int:
        """See Storage."""
        self.count("sweep")
        return self._inner.sweep()

    def close(self) -> None:
        """See Storage."""

    def free_bytes(self) -> int | None:
        """See Storage."""
        return self._inner.free_bytes()

    def _span(self, place: SegmentPlace | None) -> Span | None:
        if place is None or place.source not in self._sources or place.branch != 1 or place.revision != 1:
            return None
        known = place.segment <= len(self._shape.spans) and place not in self._deleted
        return self._shape.spans[place.segment - 1] if known else None


class SyntheticSegment:
    """A segment's file. See Reader."""

    def __init__(
        self, storage: SyntheticStorage, identity: bytes, shape: Shape, place: SegmentPlace, span: Span
    ) -> None:
        self._storage = storage
        self._shape = shape
        self._span = span
        self._end, self._length = shape.lengths(span, place.source)
        self._header = SegmentHeader(
            store=identity,
            salt=xxhash.xxh3_64_intdigest(segment_name(*place).encode()),
            source=place.source,
            branch=place.branch,
            segment=place.segment,
            revision=place.revision,
            parent=0,
            base_sequence=0,
            generation=GENERATION,
            first_sequence=span.first_sequence,
            mark=mark(span.first_sequence - 1),
            created_ns=0,
            role=Role.TRUNK,
            geometry=shape.volumes,
        )
        self._head = self._header.pack()

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader. Between the header and the index there are zeros."""
        length = max(0, min(length, self._length - offset))
        self._storage.count("read", read=length)
        data = bytearray(length)
        parts = [(0, self._head)]
        if offset + length > self._end:
            begun = time.perf_counter()
            parts.append((self._end, self._seal))
            self._storage.made_seconds += time.perf_counter() - begun
        for begin, part in parts:
            first, last = max(begin, offset), min(begin + len(part), offset + length)
            if first < last:
                data[first - offset : last - offset] = part[first - begin : last - begin]
        return bytes(data)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader."""
        return self.read_at(offset, length)

    def size(self) -> int:
        """See Reader."""
        return self._length

    def map(self) -> mmap | bytes:
        """See Reader."""
        return self.read_at(0, self._length)

    def close(self) -> None:
        """See Reader."""

    @cached_property
    def _seal(self) -> bytes:
        """The index and the footer."""
        headers, tables = [], []
        cut = codec.pack_cut(Cut(NS, PointKind.WRITE_ORDER, ""))
        places = self._offsets()
        for number, plain in enumerate(self._span.plain_lengths(self._shape.batch_bytes)):
            sequence = self._span.first_sequence + number
            rows = _rows(next(places), self._span.extent_bytes) if plain else None
            packed = codec.pack_record(
                self._header.salt,
                type=RecordType.CUT if rows is None else RecordType.BATCH,
                number=number,
                sequence=sequence,
                generation=GENERATION,
                mark=mark(sequence),
                time_ns=NS,
                table=cut if rows is None else rows.tobytes(),
                frames=b"" if rows is None else _frame(self._span.extent_bytes) * len(rows),
                plain_length=plain,
                payload_length=plain,
            )
            headers.append(packed[0])
            tables.append(packed[1])
        return codec.pack_seal(self._header.salt, headers, tables, self._end, self._span.last_sequence)

    def _offsets(self) -> Iterator[NDArray[np.uint64]]:
        """Where the extents of each batch lie: in order in the initial copy, at random places afterwards."""
        size, extent = self._shape.copied_bytes, self._span.extent_bytes
        if self._span.copy:
            begin = (self._span.segment - 1) * SEGMENT_BYTES
            for at in range(begin, begin + SEGMENT_BYTES, COPY_RECORD_BYTES):
                yield np.arange(at, at + COPY_RECORD_BYTES, extent, dtype=np.uint64)
            return
        random = np.random.default_rng(self._header.salt)
        each = self._shape.batch_bytes // extent
        while True:
            yield random.choice(size // extent, each, replace=False).astype(np.uint64) * np.uint64(extent)


class _Counted:
    """A file that a pass wrote. See Reader."""

    def __init__(self, storage: SyntheticStorage, inner: Reader) -> None:
        self._storage = storage
        self._inner = inner
        self.size, self.close = inner.size, inner.close

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        data = self._inner.read_at(offset, length)
        self._storage.count("read", read=len(data))
        return data

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader."""
        return self.read_at(offset, length)

    def map(self) -> mmap | bytes:
        """See Reader."""
        return self._inner.map()


def _rows(offsets: NDArray[np.uint64], extent_bytes: int) -> NDArray[Any]:
    rows = np.zeros(len(offsets), _ROW)
    rows["volume"], rows["kind"], rows["offset"], rows["length"] = VOLUME, ExtentKind.DATA, offsets, extent_bytes
    rows["digest"] = np.void(_digest(extent_bytes))
    return rows


@cache
def _digest(size: int) -> bytes:
    return digest(bytes(size))


@cache
def _frame(size: int) -> bytes:
    return FRAME.pack(size, size, 0, 0, 0, 0, xxhash.xxh3_64_intdigest(bytes(size)))
