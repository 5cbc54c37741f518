"""Reading segments back: indexes and records, checked before anything is handed out, cached by bytes.

A record is read whole: its payload's checksum is verified, then it is decompressed within bounds. A
segment that compaction has replaced meanwhile is looked up again in the catalogue.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from drengine.model.errors import DrengineError
from drengine.model.extents import Batch, Codec, ExtentKind
from drengine.store.blobs import Reader, Storage
from drengine.store.catalogue.database import Catalogue
from drengine.store.catalogue.rows import SEALED, SegmentRow
from drengine.store.errors import DAMAGED, read_errors
from drengine.store.names import segment_name
from drengine.store.options import StoreOptions
from drengine.store.segments import format as codec
from drengine.store.segments.format import FLAG_DROPPED, FOOTER, RECORD, SegmentHeader, SegmentIndex
from drengine.wire.payload import decode_payload, digest

_V = TypeVar("_V")
_HEAD_BYTES = 4096
_READ_ATTEMPTS = 3


class Address(NamedTuple):
    """Where a record is."""

    source: str
    branch: int
    segment: int
    record: int

    def __str__(self) -> str:
        return f"record {self.record} of segment {self.segment} of branch {self.branch} of {self.source!r}"


class Record(NamedTuple):
    """A decoded payload, and the plain ranges (begin, end) of it that compaction has zeroed."""

    plain: memoryview
    dropped: tuple[tuple[int, int], ...]


class ByteCache(Generic[_V]):
    """Least recently used values, bounded by the sum of their sizes. Safe between threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[_V, int]] = OrderedDict()

    def get(self, key: Hashable) -> _V | None:
        """The value, now the most recently used; or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: _V, size: int) -> None:
        """Keep a value of `size` bytes, dropping the oldest ones beyond the bound."""
        with self._lock:
            old = self._values.pop(key, None)
            self._bytes += size - (old[1] if old else 0)
            self._values[key] = (value, size)
            while self._bytes > self._bytes_max and len(self._values) > 1:
                _, (_, dropped) = self._values.popitem(last=False)
                self._bytes -= dropped

    def forget_all(self, matches: Callable[[Hashable], bool]) -> None:
        """Drop every value whose key matches."""
        with self._lock:
            keys = [key for key in self._values if matches(key)]
        for key in keys:
            self.forget(key)

    def forget(self, key: Hashable) -> None:
        """Drop one value."""
        with self._lock:
            old = self._values.pop(key, None)
            self._bytes -= old[1] if old else 0


class SegmentScan:
    """Walks a segment's records from its start, as far as they are intact; can be taken up again later."""

    def __init__(self, reader: Reader) -> None:
        self.header, self._header_length = read_header(reader)
        self._headers: list[bytes] = []
        self._tables: list[bytes] = []
        self.length = self._header_length
        self.fault: str | None = None

    def extend(self, reader: Reader, until: int) -> None:
        """Take up whole records that end at or before file offset `until`; stop at the first that is not intact.

        Payloads are not looked at.
        """
        while self.fault is None and self.length + RECORD.size <= until:
            data = reader.read_at(self.length, min(_HEAD_BYTES, until - self.length))
            number = len(self._headers)
            fields = data[: RECORD.size]
            self.fault = codec.record_fault(self.header, number, fields, None)
            if self.fault:
                return
            parts = RECORD.unpack(fields)
            table_length, payload_length = parts[5], parts[7]
            body = self.length + RECORD.size
            end = body + table_length + payload_length
            if end > until:
                self.fault = "record is cut short"
                return
            table = data[RECORD.size : RECORD.size + table_length]
            if len(table) < table_length:
                table = reader.read_at(body, table_length)
            self.fault = codec.record_fault(self.header, number, fields, table)
            if self.fault:
                return
            self._headers.append(fields)
            self._tables.append(table)
            self.length = end

    def index(self) -> SegmentIndex:
        """What was walked so far."""
        return SegmentIndex.make(self.header, self._header_length, b"".join(self._headers), b"".join(self._tables))


class Records:
    """Reads what the catalogue says is committed."""

    def __init__(self, storage: Storage, catalogue: Catalogue, options: StoreOptions) -> None:
        self._storage = storage
        self._catalogue = catalogue
        self._indexes: ByteCache[SegmentIndex] = ByteCache(options.index_cache_bytes_max)
        self._plains: ByteCache[Record] = ByteCache(options.record_cache_bytes_max)
        self._scans: ByteCache[SegmentScan] = ByteCache(options.index_cache_bytes_max)
        self._scan_lock = threading.Lock()

    def index(self, row: SegmentRow, count: int | None = None) -> SegmentIndex:
        """Headers and tables of a segment's committed records.

        With `count` only the first so many must be readable, should the rest be damaged.

        Raises:
            DrengineError: DAMAGED, STORE_IO.
        """
        row = self._catalogue.segment(row.source, row.branch, row.segment) or row
        for _ in range(_READ_ATTEMPTS):
            key = (row.source, row.branch, row.segment, row.revision, row.committed_length)
            found = self._indexes.get(key)
            if found is not None:
                return found
            try:
                index = self._read_index(row, count)
            except FileNotFoundError:
                row = self._again(row)
                continue
            if index.length == row.committed_length:
                self._indexes.put(key, index, index.nbytes)
            return index
        raise _missing(row)

    def read(self, address: Address, start: int, length: int) -> memoryview:
        """Plain bytes `start` to `start + length` of a record.

        Raises:
            DrengineError: DAMAGED, STORE_IO.
        """
        found = self._plains.get(address)
        if found is None:
            found = self.load(address)
            self._plains.put(address, found, len(found.plain) + 256)
        if any(begin < start + length and start < end for begin, end in found.dropped):
            raise DrengineError(DAMAGED, f"{address}: bytes that compaction has dropped are wanted")
        if start + length > len(found.plain):
            raise DrengineError(DAMAGED, f"{address}: bytes behind its end are wanted")
        return found.plain[start : start + length]

    def load(self, address: Address) -> Record:
        """A whole record, always from storage.

        Raises:
            DrengineError: DAMAGED, STORE_IO.
        """
        row = self._catalogue.segment(address.source, address.branch, address.segment)
        if row is None:
            raise DrengineError(DAMAGED, f"{address}: the segment is not there")
        payload, index = self.payload(row, address.record)
        return decode_record(index, address.record, payload)

    def payload(self, row: SegmentRow, record: int) -> tuple[bytes, SegmentIndex]:
        """A record's encoded payload as it is in storage, unchecked, and the index that tells its checksum.

        Raises:
            DrengineError: DAMAGED, STORE_IO.
        """
        for _ in range(_READ_ATTEMPTS):
            index = self.index(row)
            if not 0 <= record < index.record_count:
                raise DrengineError(DAMAGED, f"{Address(row.source, row.branch, row.segment, record)} is not there")
            name = segment_name(row.source, row.branch, row.segment, index.header.revision)
            start, length = index.payload_range(record)
            try:
                with read_errors(name):
                    reader = self._storage.open(name)
                    try:
                        return reader.read_at(start, length), index
                    finally:
                        reader.close()
            except FileNotFoundError:
                row = self._again(row._replace(revision=index.header.revision))
        raise _missing(row)

    def forget(self, address: Address) -> None:
        """Drop a record from the cache."""
        self._plains.forget(address)

    def _again(self, row: SegmentRow) -> SegmentRow:
        """The row after a compaction may have swapped the file."""
        fresh = self._catalogue.segment(row.source, row.branch, row.segment)
        if fresh is None or fresh.revision == row.revision:
            raise _missing(row)
        return fresh

    def _read_index(self, row: SegmentRow, count: int | None) -> SegmentIndex:
        name = segment_name(row.source, row.branch, row.segment, row.revision)
        with read_errors(name):
            reader = self._storage.open(name)
            try:
                index = None
                if row.state == SEALED:
                    try:
                        index = read_sealed(reader, row.length)
                    except DrengineError as error:
                        if error.kind is not DAMAGED:
                            raise
                # The index repeats what the records say: when it is damaged, walk the records instead.
                index = index or self._scan(row, reader, count)
            finally:
                reader.close()
        found, header = index.header, row
        if (found.source, found.branch, found.segment) != (header.source, header.branch, header.segment):
            raise DrengineError(DAMAGED, f"{name} holds another segment")
        if index.length != row.committed_length and (count is None or index.record_count < count):
            raise DrengineError(DAMAGED, f"{name} ends at {index.length}, not at {row.committed_length}")
        return index

    def _scan(self, row: SegmentRow, reader: Reader, count: int | None) -> SegmentIndex:
        key = (row.source, row.branch, row.segment, row.revision)
        with self._scan_lock:
            scan = self._scans.get(key)
            if scan is None or scan.fault or scan.length > row.committed_length:
                scan = SegmentScan(reader)
            scan.extend(reader, row.committed_length)
            index = scan.index()
            self._scans.put(key, scan, index.nbytes)
        if scan.fault:
            self._scans.forget(key)
        if scan.fault and (count is None or index.record_count < count):
            raise DrengineError(
                DAMAGED, f"segment {row.segment} of branch {row.branch} of {row.source!r}: {scan.fault}"
            )
        return index


def decode_record(index: SegmentIndex, record: int, payload: bytes) -> Record:
    """Check and decode one record's payload.

    Raises:
        DrengineError: DAMAGED.
    """
    header, fields, table = index.header, index.records[record], index.table(record)
    address = Address(header.source, header.branch, header.segment, record)
    if codec.checksum(header.salt, payload) != int(fields["payload_checksum"]):
        raise DrengineError(DAMAGED, f"{address}: payload fails its checksum")
    dropped: tuple[tuple[int, int], ...] = ()
    if int(fields["flags"]) & FLAG_DROPPED:
        dropped = tuple(codec.plain_ranges(np.frombuffer(table, dtype=codec.EXTENT_DTYPE), ExtentKind.DROPPED))
    if not payload and int(fields["plain_length"]) == 0:
        return Record(memoryview(b""), dropped)
    batch = Batch(table, Codec(int(fields["codec"])), int(fields["plain_length"]), payload)
    try:
        return Record(memoryview(decode_payload(batch)), dropped)
    except DrengineError as error:
        raise DrengineError(DAMAGED, f"{address}: {error.message}") from error


def check_record(index: SegmentIndex, record: int, payload: bytes, rows: NDArray[np.bool_] | None = None) -> memoryview:
    """Decode a BATCH record and hash its DATA rows again (or only those that `rows` selects).

    Raises:
        DrengineError: DAMAGED.
    """
    plain = decode_record(index, record, payload).plain
    table = np.frombuffer(index.table(record), dtype=codec.EXTENT_DTYPE)
    wanted = table["kind"] == ExtentKind.DATA
    if rows is not None:
        wanted &= rows
    if not wanted.any():
        return plain
    ends = np.cumsum(codec.carried_lengths(table))
    header = index.header
    address = Address(header.source, header.branch, header.segment, record)
    if int(ends[-1]) != len(plain):
        raise DrengineError(DAMAGED, f"{address}: its rows do not add up to its plain bytes")
    for number in np.flatnonzero(wanted).tolist():
        end = int(ends[number])
        begin = end - int(table["length"][number])
        if digest(plain[begin:end]) != bytes(table["digest"][number]):
            raise DrengineError(DAMAGED, f"{address}: row {number} does not match its hash")
    return plain


def _missing(row: SegmentRow) -> DrengineError:
    return DrengineError(
        DAMAGED, f"the file of segment {row.segment} of branch {row.branch} of {row.source!r} is missing"
    )


def read_header(reader: Reader) -> tuple[SegmentHeader, int]:
    """A segment's header and its length in bytes.

    Raises:
        DrengineError: DAMAGED, STORE_VERSION.
    """
    data = reader.read_at(0, min(_HEAD_BYTES, reader.size()))
    if len(data) >= codec.HEADER.size:
        tail = codec.HEADER.unpack_from(data)[3]
        wanted = codec.HEADER.size + tail + codec.CHECKSUM.size
        if tail <= codec.TAIL_BYTES_MAX and wanted > len(data):
            data = reader.read_at(0, min(wanted, reader.size()))
    return codec.parse_header(bytes(data))


def read_sealed(reader: Reader, length: int) -> SegmentIndex:
    """The index of a sealed segment whose file has `length` bytes.

    Raises:
        DrengineError: DAMAGED, STORE_VERSION.
    """
    header, header_length = read_header(reader)
    if length < header_length + FOOTER.size or reader.size() < length:
        raise DrengineError(DAMAGED, "the segment's file is too short")
    footer = reader.read_at(length - FOOTER.size, FOOTER.size)
    count, offset, size, expected = codec.parse_footer(header.salt, footer, length)
    index = codec.parse_index(header, header_length, count, reader.read_at(offset, size), expected)
    if index.length != offset:
        raise DrengineError(DAMAGED, "the segment's index does not fit its records")
    return index
