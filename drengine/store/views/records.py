"""Reading segments back: indexes and frames, checked before anything is handed out, cached by bytes.

Only the frames that are wanted are read: each one's checksum is verified, then it is decoded within bounds. A
segment that compaction has replaced meanwhile is looked up again in the catalogue.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from drengine.crypt.errors import SOURCE_ERASED
from drengine.crypt.segment import SegmentCipher
from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, FRAME, Batch, Codec, ExtentKind, Frame
from drengine.process.descriptors import descriptors_free
from drengine.store.blobs import ObjectStorage, Reader, Storage, has_copies, past_copies
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import SEALED, SegmentRow
from drengine.store.errors import DAMAGED, NOT_UPLOADED, read_errors
from drengine.store.keys import StoreKeys
from drengine.store.names import segment_name
from drengine.store.options import StoreOptions
from drengine.store.segments import format as codec
from drengine.store.segments.format import FLAG_DROPPED, FOOTER, RECORD, RecordType, SegmentHeader, SegmentIndex
from drengine.store.views.cache import ByteCache
from drengine.store.views.content import Content
from drengine.store.views.extentmap import Index
from drengine.store.views.gather import Places, frame_parts, reads
from drengine.wire.payload import Buffer, decode_frame, decode_many, digest

T = TypeVar("T")
_HEAD_BYTES = 4096
_READ_ATTEMPTS = 3
_FRAME_COST_BYTES = 256
_GATHERED_BYTES_MAX = 8 << 20
"""Frames that are decoded at once, in plain bytes."""

ERASED_REASON = "erased: the key of this data was forgotten"
"""Noted with damage that is none."""
_LOOK_SECONDS = 1.0
"""How long a file that compaction has replaced may stay open, and so keep its space."""


class Address(NamedTuple):
    """Where a record is."""

    source: str
    branch: int
    segment: int
    record: int

    def __str__(self) -> str:
        return f"record {self.record} of segment {self.segment} of branch {self.branch} of {self.source!r}"


class RecordFault(NamedTuple):
    """Plain bytes `begin` to `end` of a record that cannot be read, and why."""

    begin: int
    end: int
    reason: str

    def within(self, plain_offset: int, length: int) -> tuple[int, int]:
        """Which of these plain bytes are among them: (begin, end), empty when end <= begin."""
        return max(self.begin, plain_offset), min(self.end, plain_offset + length)


class SegmentScan:
    """Walks a segment's records from its start, as far as they are intact; can be taken up again later."""

    def __init__(self, reader: Reader, keys: StoreKeys) -> None:
        self.header, self._header_length = read_header(reader)
        self._cipher = _cipher(self.header, keys)
        self._chain = self._cipher.chain(self.header.pack()) if self._cipher else None
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
            if self._chain and not self.fault:
                self.fault = codec.chain_fault(self._chain, fields, table)
            if self.fault:
                return
            self._headers.append(fields)
            self._tables.append(table)
            self.length = end

    def index(self) -> SegmentIndex:
        """What was walked so far."""
        headers, tables = b"".join(self._headers), b"".join(self._tables)
        return SegmentIndex.make(self.header, self._header_length, headers, tables, cipher=self._cipher)


class _OpenSegment:
    """A segment's index and its open file, which is closed when nobody uses it any more."""

    def __init__(self, index: SegmentIndex, reader: Reader) -> None:
        self.index = index
        self.reader = reader
        header = index.header
        self.key = (header.source, header.branch, header.segment, header.revision)
        self.verified = bytearray(len(index.frames))
        """1 for each raw frame in clear that has matched its checksum since the file was opened."""
        self._dropped: dict[int, list[tuple[int, int]]] = {}

    def __del__(self) -> None:
        self.reader.close()

    @cached_property
    def plain_starts(self) -> Index:
        """Where each frame begins in the plain form of all records, and where the last one ends."""
        ends = np.cumsum(self.index.frames["plain_length"], dtype=np.int64)
        return np.concatenate((np.zeros(1, np.int64), ends))

    def dropped(self, record: int) -> list[tuple[int, int]]:
        """Plain ranges (begin, end) of a record that compaction has zeroed."""
        if not self.index.records["flags"][record] & FLAG_DROPPED:
            return []
        found = self._dropped.get(record)
        if found is None:
            rows = np.frombuffer(self.index.table(record), dtype=codec.EXTENT_DTYPE)
            found = self._dropped[record] = codec.plain_ranges(rows, ExtentKind.DROPPED)
        return found


class _Wanted(NamedTuple):
    """The part of a frame that is wanted: the frame's row, where it begins, and the part, all in the plain form."""

    row: int
    frame_begin: int
    begin: int
    end: int


class Records:
    """Reads what the catalogue says is committed. Threads may share it."""

    def __init__(self, storage: Storage, catalogue: Catalogue, options: StoreOptions, keys: StoreKeys) -> None:
        self._storage = storage
        self._keys = keys
        self._catalogue = catalogue
        self._indexes: ByteCache[SegmentIndex] = ByteCache(options.index_cache_bytes_max)
        self._frames: ByteCache[Any] = ByteCache(options.frame_cache_bytes_max)
        """Plain bytes of frames, by segment and row; and the contents of windows."""
        self._scans: ByteCache[SegmentScan] = ByteCache(options.index_cache_bytes_max)
        self._scan_lock = threading.Lock()
        self._open: ByteCache[_OpenSegment] = ByteCache(min(options.open_segments_max, descriptors_free() // 4))
        self._version = -1
        self._looked_at = -1e9

    @property
    def cached_bytes(self) -> int:
        """Decoded frames and contents of windows in memory now."""
        return self._frames.size_bytes

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

    def content(self, window: Hashable) -> Content | None:
        """What a window holds, if it was kept."""
        found: Content | None = self._frames.get(window)
        return found

    def keep_content(self, window: Hashable, content: Content) -> None:
        """Keep what a window holds, for as long as there is room beside the frames."""
        self._frames.put(window, content, content.nbytes)

    def forget_content(self, window: Hashable) -> None:
        """Do not keep it any more."""
        self._frames.forget(window)

    def read(self, address: Address, start: int, length: int) -> memoryview:
        """Plain bytes `start` to `start + length` of a record.

        Raises:
            DrengineError: DAMAGED, STORE_IO.
        """
        parts = self.parts(address, start, length)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def parts(self, address: Address, start: int, length: int) -> list[memoryview]:
        """As `read`, by frame and without a copy: what lies in the cache, which nobody may change."""
        return self._past_copies(address, lambda: self._parts(address, start, length))

    def _parts(self, address: Address, start: int, length: int) -> list[memoryview]:
        segment = self._segment(address)
        wanted = list(self._wanted(segment, address, start, length))
        found = {each.row: self._frames.get((segment.key, each.row)) for each in wanted}
        for run in _runs([each for each in wanted if found[each.row] is None]):
            offsets, lengths = segment.index.frame_offsets, segment.index.frames["length"]
            first, last = run[0].row, run[-1].row
            begin, end = int(offsets[first]), int(offsets[last]) + int(lengths[last])
            with read_errors(str(address)):
                stored = memoryview(segment.reader.read_at(begin, end - begin))
            for each in run:
                at = int(offsets[each.row]) - begin
                found[each.row] = self._decoded(segment, address, each.row, stored[at:])
        return [_cut(plain, each) for each in wanted if (plain := found[each.row]) is not None]

    def read_now(self, address: Address, start: int, length: int) -> memoryview | None:
        """As `read`, or None when that would wait for a device, a network or another thread's look at the catalogue.

        Of a raw frame that was verified only what is wanted is read: the page cache keeps it, not we.

        Raises:
            DrengineError: DAMAGED.
        """
        part = self._open.get(address[:3])
        if part is None or address.record >= part.index.record_count or self._is_stale():
            return None
        parts: list[memoryview] = []
        try:
            for wanted in self._wanted(part, address, start, length):
                found = self._part_now(part, address, wanted)
                if found is None:
                    return None
                parts.append(found)
        except DrengineError as error:
            if error.kind is DAMAGED and has_copies(self._storage):
                return None  # `read` may have it from elsewhere
            raise
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def gather(self, source: str, places: Places, targets: Sequence[memoryview], target_bytes: int) -> None:
        """Copy pieces, each into one of the targets, of which every one but the last has `target_bytes`.

        Frames of which little is wanted are kept, as `parts` keeps them.

        Raises:
            DrengineError: DAMAGED, STORE_IO; of which piece is not said, and parts of others may have been copied.
        """
        for branch, segment, mine in places.by_segment():
            address = Address(source, branch, segment, int(mine.records.max()))
            gather = partial(self._gather_from, address, mine, targets, target_bytes)
            self._past_copies(address, gather)

    def _gather_from(self, address: Address, mine: Places, targets: Sequence[memoryview], target_bytes: int) -> None:
        self._gather(self._segment(address), address, mine, targets, target_bytes)

    def _gather(
        self, part: _OpenSegment, address: Address, mine: Places, targets: Sequence[memoryview], target_bytes: int
    ) -> None:
        first_frames, plain_starts = part.index.frame_starts, part.plain_starts
        starts = plain_starts[first_frames[mine.records]] + mine.plain_offsets
        if bool((starts + mine.lengths > plain_starts[first_frames[mine.records + 1]]).any()):
            raise DrengineError(DAMAGED, f"{address}, or one before it: bytes behind its end are wanted")
        self._require_kept(part, address, mine)
        found = frame_parts(mine, starts, plain_starts)
        lengths = np.diff(plain_starts)[found.frames]
        if int(lengths.sum()) > _GATHERED_BYTES_MAX and len(mine.begins) > 1:
            half = len(mine.begins) // 2
            self._gather(part, address, mine.take(slice(half)), targets, target_bytes)
            self._gather(part, address, mine.take(slice(half, None)), targets, target_bytes)
            return
        plains = self._plains(part, address, found.frames, found.wanted * 2 < lengths)
        numbers = found.begins // target_bytes
        begins, ends = found.begins - numbers * target_bytes, found.ends - numbers * target_bytes
        columns = (numbers, begins, ends, found.which, found.starts, found.stops)
        for number, begin, end, which, start, stop in zip(*(column.tolist() for column in columns), strict=True):
            targets[number][begin:end] = plains[which][start:stop]

    def _require_kept(self, part: _OpenSegment, address: Address, mine: Places) -> None:
        """Raise if bytes that compaction has dropped are among what is wanted."""
        flagged = np.flatnonzero(part.index.records["flags"][mine.records] & FLAG_DROPPED)
        columns = (mine.records[flagged], mine.plain_offsets[flagged], mine.lengths[flagged])
        for record, start, length in zip(*(column.tolist() for column in columns), strict=True):
            if any(begin < start + length and start < stop for begin, stop in part.dropped(record)):
                where = address._replace(record=record)
                raise DrengineError(DAMAGED, f"{where}: bytes that compaction has dropped are wanted")

    def _plains(self, part: _OpenSegment, address: Address, rows: Index, keeps: NDArray[np.bool_]) -> list[memoryview]:
        """The plain bytes of frames, whose rows are sorted; `keeps` says which of them stay in the cache."""
        keys = [(part.key, row) for row in rows.tolist()]
        plains: list[Any] = self._frames.get_all(keys)
        missing = [number for number, plain in enumerate(plains) if plain is None]
        if missing:
            kept = keeps.tolist()
            for number, found in zip(missing, self._read_frames(part, address, rows[missing]), strict=True):
                plain = memoryview(found)
                if kept[number]:
                    plain = memoryview(bytes(plain))  # on its own: it must not keep alive what was read with it
                    self._frames.put(keys[number], plain, len(plain) + _FRAME_COST_BYTES)
                plains[number] = plain
        return plains

    def _read_frames(self, part: _OpenSegment, address: Address, rows: Index) -> Sequence[Buffer]:
        """Frames, whose rows are sorted, from storage: checked and decoded."""
        index = part.index
        offsets, frames = index.frame_offsets[rows], index.frames[rows]
        stored: list[memoryview] = []
        ends = (offsets + frames["length"]).tolist()
        starts = offsets.tolist()
        with read_errors(str(address)):
            for first, last, begin, length in reads(offsets, frames["length"]):
                data = memoryview(part.reader.read_at(begin, length))
                stored += [data[starts[n] - begin : ends[n] - begin] for n in range(first, last)]
        table = list(map(Frame._make, frames.tolist()))
        if index.header.version == 1:
            return [_decode(index, address, row, data) for row, data in zip(rows.tolist(), stored, strict=True)]
        try:
            if index.header.key:
                opened = [opened_frame(index, row, data) for row, data in zip(rows.tolist(), stored, strict=True)]
                return decode_many([frame for frame, _ in opened], [data for _, data in opened])
            return decode_many(table, stored, seed=index.header.frame_seed)
        except DrengineError as error:
            if error.kind is SOURCE_ERASED:
                raise
            raise DrengineError(DAMAGED, f"{address}, or one before it: {error.message}") from error

    def _part_now(self, part: _OpenSegment, address: Address, wanted: _Wanted) -> memoryview | None:
        row = wanted.row
        plain = self._frames.get((part.key, row))
        if plain is not None:
            return _cut(plain, wanted)
        at = int(part.index.frame_offsets[row])
        if part.verified[row]:
            stored = part.reader.read_now(at + wanted.begin - wanted.frame_begin, wanted.end - wanted.begin)
            return None if stored is None else memoryview(stored)
        frame = part.index.frame(row)
        stored = part.reader.read_now(at, frame.length)
        if stored is None:
            return None
        if frame.codec == Codec.RAW and not frame.cipher:
            plain = _decode(part.index, address, row, memoryview(stored))
            part.verified[row] = 1
        else:
            plain = self._decoded(part, address, row, memoryview(stored))
        return _cut(plain, wanted)

    def _wanted(self, part: _OpenSegment, address: Address, start: int, length: int) -> Iterator[_Wanted]:
        """The frames that hold a range of a record's plain form, in order."""
        index, end = part.index, start + length
        if any(begin < end and start < stop for begin, stop in part.dropped(address.record)):
            raise DrengineError(DAMAGED, f"{address}: bytes that compaction has dropped are wanted")
        rows, ends = index.frame_rows(address.record), index.frame_plain_ends
        if end > (int(ends[rows.stop - 1]) if rows.stop > rows.start else 0):
            raise DrengineError(DAMAGED, f"{address}: bytes behind its end are wanted")
        # Not numpy's search: it lets go of the interpreter's lock, and an event loop then waits to have it back.
        first = bisect_right(ends, start, rows.start, rows.stop)
        begin = int(ends[first - 1]) if first > rows.start else 0
        for row in range(first, rows.stop):
            if begin >= end:
                return
            frame_end = int(index.frame_plain_ends[row])
            yield _Wanted(row, begin, max(start, begin), min(end, frame_end))
            begin = frame_end

    def _decoded(self, part: _OpenSegment, address: Address, row: int, stored: memoryview) -> memoryview:
        """Check and decode the frame at the beginning of `stored`, and keep it."""
        plain = _decode(part.index, address, row, stored)
        if len(plain) < BLOCK_BYTES and plain.obj is stored.obj:
            plain = memoryview(bytes(plain))  # a small raw frame must not keep alive all that was read with it
        self._frames.put((part.key, row), plain, len(plain) + _FRAME_COST_BYTES)
        return plain

    def _is_stale(self) -> bool:
        """Whether the catalogue may have changed since open segments were last compared with it."""
        return time.monotonic() > self._looked_at + _LOOK_SECONDS

    def _segment(self, address: Address) -> _OpenSegment:
        """The open segment that holds a record.

        Plain offsets mean the same in each revision, so a file that was replaced serves as well as the new one; it is
        let go for the sake of its space.
        """
        if self._is_stale():
            self._looked_at = time.monotonic()
            version, self._version = self._version, self._catalogue.data_version()
            if version != self._version:
                self._open.forget_all(lambda _: True)
                for source in self._keys.refresh():
                    self.forget_source(source)  # its keys may have been forgotten
        part = self._open.get(address[:3])
        if part is not None and address.record < part.index.record_count:
            return part
        row = self._catalogue.segment(*address[:3])
        if row is None:
            raise DrengineError(DAMAGED, f"{address}: the segment is not there")
        for _ in range(_READ_ATTEMPTS):
            index = self.index(row, address.record + 1)
            if not 0 <= address.record < index.record_count:
                raise DrengineError(DAMAGED, f"{address} is not there")
            name = segment_name(*address[:3], index.header.revision)
            try:
                with read_errors(name):
                    part = _OpenSegment(index, self._storage.open(name))
            except FileNotFoundError:
                row = self._again(row._replace(revision=index.header.revision))
                continue
            self._open.put(address[:3], part, 1)
            return part
        raise _missing(row)

    def faults(self, address: Address) -> list[RecordFault]:
        """Read a record from storage and hash it again; what of it cannot be read, in order.

        Raises:
            DrengineError: DAMAGED when not even its table can be read; STORE_IO.
        """
        found = self._past_copies(address, lambda: self._faults(address))
        if any(fault.reason != ERASED_REASON for fault in found) and self._forget_copies(address):
            return self._faults(address)
        return found

    def _faults(self, address: Address) -> list[RecordFault]:
        row = self._catalogue.segment(*address[:3])
        if row is None:
            raise DrengineError(DAMAGED, f"{address}: the segment is not there")
        payload, index = self.payload(row, address.record)
        return record_faults(index, address.record, payload)

    def payload(self, row: SegmentRow, record: int) -> tuple[bytes, SegmentIndex]:
        """A record's encoded payload as it is in storage, unchecked, and the index that tells its checksum.

        Raises:
            DrengineError: DAMAGED, STORE_IO.
        """
        for _ in range(_READ_ATTEMPTS):
            index = self.index(row, record + 1)
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
        """Drop the frames of a record's segment from the cache, and let go of its file."""
        self._frames.forget_all(lambda key: isinstance(key, tuple) and key[0][:3] == address[:3])
        self.let_go(*address[:3])

    def let_go(self, source: str, branch: int, segment: int) -> None:
        """Close a segment's file as soon as nobody reads it: it was replaced or removed."""
        self._open.forget((source, branch, segment))

    def close(self) -> None:
        """Close the files that nobody reads, so that their file system can be unmounted at once."""
        self._open.forget_all(lambda _: True)

    def forget_source(self, source: str) -> None:
        """Let go of all that was read of a source."""
        for cache in (self._indexes, self._scans, self._open):
            cache.forget_all(lambda key: isinstance(key, tuple) and key[0] == source)
        self._frames.forget_all(lambda _: True)  # which also keeps windows, whose keys tell no source

    def _past_copies(self, address: Address, read: Callable[[], T]) -> T:
        """What `read` finds in a record's segment; see blobs.past_copies."""
        try:
            return read()
        except DrengineError as error:
            if error.kind is not DAMAGED or not self._forget_copies(address):
                raise
        return read()

    def _forget_copies(self, address: Address) -> bool:
        """Have a record's segment opened anew, past local copies; whether there may be any."""
        row = self._catalogue.segment(*address[:3])
        if row is None or not has_copies(self._storage):
            return False
        self._storage.forget_copies(segment_name(*address[:3], row.revision))
        self.let_go(*address[:3])
        return True

    def _again(self, row: SegmentRow) -> SegmentRow:
        """The row after a compaction may have swapped the file."""
        fresh = self._catalogue.segment(row.source, row.branch, row.segment)
        if fresh is None or fresh.revision == row.revision:
            raise _missing(row)
        return fresh

    def _read_index(self, row: SegmentRow, count: int | None) -> SegmentIndex:
        name = segment_name(row.source, row.branch, row.segment, row.revision)
        try:
            return past_copies(self._storage, name, lambda: self._read_index_here(row, count))
        except DrengineError as error:
            if error.kind is DAMAGED and not self._is_reachable(name, row.committed_length):
                raise DrengineError(NOT_UPLOADED, f"the host that wrote {name} did not upload all of it") from error
            raise

    def _is_reachable(self, name: str, length: int) -> bool:
        """Whether so much of a file should be here or in an object store, so that what lacks is damage."""
        return not isinstance(self._storage, ObjectStorage) or self._storage.reachable_length(name) >= length

    def _read_index_here(self, row: SegmentRow, count: int | None) -> SegmentIndex:
        name = segment_name(row.source, row.branch, row.segment, row.revision)
        with read_errors(name):
            reader = self._storage.open(name)
            try:
                index = None
                if row.state == SEALED:
                    try:
                        index = read_sealed(reader, row.length, self._keys)
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
        if bool(row.seal) != bool(found.key):
            raise DrengineError(DAMAGED, f"{name} is {'not ' if row.seal else ''}encrypted, and was not so committed")
        if index.length == row.committed_length and index.seal != row.seal:
            raise DrengineError(DAMAGED, f"{name} is not what was committed: its seal is another")
        return index

    def _scan(self, row: SegmentRow, reader: Reader, count: int | None) -> SegmentIndex:
        key = (row.source, row.branch, row.segment, row.revision)
        with self._scan_lock:
            scan = self._scans.get(key)
            if scan is None or scan.fault or scan.length > row.committed_length:
                scan = SegmentScan(reader, self._keys)
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


def _cut(plain: memoryview, wanted: _Wanted) -> memoryview:
    """The part of a frame that is wanted."""
    return plain[wanted.begin - wanted.frame_begin : wanted.end - wanted.frame_begin]


def _runs(wanted: list[_Wanted]) -> Iterator[list[_Wanted]]:
    """Neighbours in the file together."""
    run: list[_Wanted] = []
    for each in wanted:
        if run and each.row != run[-1].row + 1:
            yield run
            run = []
        run.append(each)
    if run:
        yield run


def _decode(index: SegmentIndex, address: Address, row: int, stored: memoryview) -> memoryview:
    frame, header = index.frame(row), index.header
    mine, plain_bytes_max = stored[: frame.length], header.frame_plain_bytes_max
    try:
        if header.key:
            return memoryview(decode_frame(*opened_frame(index, row, mine)))
        return memoryview(decode_frame(frame, mine, seed=header.frame_seed, plain_bytes_max=plain_bytes_max))
    except DrengineError as error:
        if error.kind is SOURCE_ERASED:
            raise
        raise DrengineError(DAMAGED, f"{address}: {error.message}") from error


def opened_frame(index: SegmentIndex, row: int, stored: Buffer) -> tuple[Frame, bytes]:
    """An encrypted frame, `row` of the segment's frames, as it was before it was encrypted: its row and bytes.

    Raises:
        DrengineError: DAMAGED, SOURCE_ERASED.
    """
    if index.cipher is None:
        header = index.header
        what = f"segment {header.segment} of branch {header.branch} of {header.source!r}"
        raise DrengineError(SOURCE_ERASED, f"the key of {what} was forgotten")
    record = bisect_right(index.frame_starts, row) - 1
    number = row - int(index.frame_starts[record])
    found = index.cipher.open_frame(record, number, index.frames[row].tobytes(), stored)
    if found is None:
        raise DrengineError(DAMAGED, f"frame {number} is not what was written")
    frame = index.frame(row)._replace(length=len(found), cipher=0, checksum=codec.checksum(0, found))
    return frame, found


def opened_record(index: SegmentIndex, record: int, table: bytes, payload: bytes) -> Batch:
    """A record whose frames were checked, as it was before it was encrypted, with this table.

    Raises:
        DrengineError: DAMAGED, SOURCE_ERASED.
    """
    rows = index.frame_rows(record)
    if not index.header.key:
        return Batch(table, index.frames[rows].tobytes(), payload)
    view, at = memoryview(payload), 0
    frames, parts = [], []
    for row in range(rows.start, rows.stop):
        length = int(index.frames["length"][row])
        frame, part = opened_frame(index, row, view[at : at + length])
        frames.append(FRAME.pack(*frame))
        parts.append(part)
        at += length
    return Batch(table, b"".join(frames), b"".join(parts))


def decode_record(index: SegmentIndex, record: int, payload: bytes) -> memoryview:
    """Check and decode a record's whole payload.

    Raises:
        DrengineError: DAMAGED.
    """
    header, view, at = index.header, memoryview(payload), 0
    address = Address(header.source, header.branch, header.segment, record)
    rows = index.frame_rows(record)
    plains = []
    for row in range(rows.start, rows.stop):
        plains.append(_decode(index, address, row, view[at:]))
        at += int(index.frames["length"][row])
    return plains[0] if len(plains) == 1 else memoryview(b"".join(plains))


def record_faults(
    index: SegmentIndex, record: int, payload: bytes, rows: NDArray[np.bool_] | None = None
) -> list[RecordFault]:
    """Decode a BATCH record's frames and hash its DATA rows (or those that `rows` selects); what fails, in order.

    Records of other types have nothing that their table's checksum does not cover.
    """
    if index.type(record) != RecordType.BATCH:
        return []
    header, view, at = index.header, memoryview(payload), 0
    address = Address(header.source, header.branch, header.segment, record)
    table = np.frombuffer(index.plain_table(record), dtype=codec.EXTENT_DTYPE)
    wanted = table["kind"] == ExtentKind.DATA
    if rows is not None:
        wanted &= rows
    row_ends = np.cumsum(codec.carried_lengths(table))
    numbers = np.flatnonzero(wanted)
    faults: list[RecordFault] = []
    begin, frames = 0, index.frame_rows(record)
    if len(row_ends) and int(row_ends[-1]) != int(index.records["plain_length"][record]) and len(numbers):
        return [RecordFault(0, int(row_ends[-1]), f"{address}: its rows do not add up to its plain bytes")]
    for frame in range(frames.start, frames.stop):
        end = int(index.frame_plain_ends[frame])
        mine = numbers[(row_ends[numbers] > begin) & (row_ends[numbers] <= end)].tolist()
        try:
            plain = _decode(index, address, frame, view[at:]) if mine else memoryview(b"")
        except DrengineError as error:
            faults.append(RecordFault(begin, end, ERASED_REASON if error.kind is SOURCE_ERASED else error.message))
            mine = []
        for number in mine:
            row_end = int(row_ends[number]) - begin
            row_begin = row_end - int(table["length"][number])
            if digest(plain[row_begin:row_end]) != bytes(table["digest"][number]):
                reason = f"{address}: row {number} does not match its hash"
                faults.append(RecordFault(begin + row_begin, begin + row_end, reason))
        at += int(index.frames["length"][frame])
        begin = end
    return faults


def _missing(row: SegmentRow) -> DrengineError:
    return DrengineError(
        DAMAGED, f"the file of segment {row.segment} of branch {row.branch} of {row.source!r} is missing"
    )


def _cipher(header: SegmentHeader, keys: StoreKeys) -> SegmentCipher | None:
    """What decrypts a segment; None for one in clear, and where its key was forgotten: its extents are known still."""
    try:
        return keys.cipher(header)
    except DrengineError as error:
        if error.kind is not SOURCE_ERASED:
            raise
        return None


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


def read_sealed(reader: Reader, length: int, keys: StoreKeys) -> SegmentIndex:
    """The index of a sealed segment whose file has `length` bytes.

    Raises:
        DrengineError: DAMAGED, STORE_VERSION, KEY_MISSING.
    """
    header, header_length = read_header(reader)
    if length < header_length + FOOTER.size or reader.size() < length:
        raise DrengineError(DAMAGED, "the segment's file is too short")
    footer = reader.read_at(length - FOOTER.size, FOOTER.size)
    count, offset, size, expected = codec.parse_footer(header.salt, footer, length)
    data = reader.read_at(offset, size)
    index = codec.parse_index(header, header_length, count, data, expected, cipher=_cipher(header, keys))
    if index.length != offset:
        raise DrengineError(DAMAGED, "the segment's index does not fit its records")
    return index
