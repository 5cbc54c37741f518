"""Segments, byte by byte: header, records, index, footer. Pure: bytes in, values out (docs/format.md, "Segment").

Invariants, true of every segment that a catalogue names:

- record `n` holds stream position `first_sequence + n`;
- every header and table is covered by a checksum seeded with the segment's own random salt, so that bytes of
  another file, or of an earlier life of the same disk blocks, never pass for its own; the tables cover the frames;
- a sealed segment ends with an index (all record headers, then all tables) and a footer.

What makes an encrypted segment (version 3) its own is in drengine/crypt/segment.py.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from drengine.crypt.segment import SALT_BYTES, TAG_BYTES, Chain, SegmentCipher
from drengine.model import extents
from drengine.model.errors import DrengineError
from drengine.model.extents import (
    AES_256_GCM,
    BATCH_EXTENTS_MAX,
    BATCH_FRAMES_MAX,
    BATCH_PLAIN_BYTES_MAX,
    BLOCK_BYTES,
    EXTENT,
    FRAME,
    FRAME_PLAIN_BYTES_MAX,
    OFFSET_MAX,
    ExtentKind,
    Frame,
    frames_fault,
)
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.store.errors import DAMAGED, STORE_VERSION

PLAIN_VERSION = 2
"""Version 1 had one frame a record, whose checksum stood in the record's header; its segments are read on."""
ENCRYPTED_VERSION = 3
FORMAT_VERSION = ENCRYPTED_VERSION
"""The newest that is known."""

HEADER = struct.Struct("<8sHHI16sQIIIIQQQ16sQQ4xI")
"""Fixed part; then the tail (source name and geometry), then CHECKSUM over both."""
HEADER_MAGIC = b"DRSEG\r\n\x1a"
RECORD = struct.Struct("<4sBBBxIIIIQQQ16sQQQ")
RECORD_MAGIC = b"DRec"
FOOTER = struct.Struct("<8sIIQQQQQ")
FOOTER_MAGIC = b"DRSEAL\x1a\n"
CHECKSUM = struct.Struct("<Q")
ENCRYPTION = struct.Struct(f"<16s{SALT_BYTES}s")
"""Where an encrypted segment's tail begins: the data key's id, and the random bytes of this file."""
CUT_FIXED = struct.Struct("<QBxH")
GEOMETRY_ROW = struct.Struct("<IHHQ")

TAIL_BYTES_MAX = 1 << 20
GEOMETRY_BYTES_MAX = TAIL_BYTES_MAX - 256
LABEL_BYTES_MAX = 1024
TABLE_BYTES_MAX = max(BATCH_EXTENTS_MAX * EXTENT.size + BATCH_FRAMES_MAX * FRAME.size + TAG_BYTES, TAIL_BYTES_MAX)
PAYLOAD_BYTES_MAX = BATCH_PLAIN_BYTES_MAX + (1 << 16)

_FEW_ROWS = 64
"""Up to so many are checked one by one: a call of numpy takes longer than a row."""

FLAG_DROPPED = 1
"""Set by compaction on a record in which at least one row is DROPPED."""

RECORD_DTYPE = np.dtype(
    [
        ("magic", "S4"),
        ("type", "u1"),
        ("codec", "u1"),
        ("flags", "u1"),
        ("pad", "u1"),
        ("number", "<u4"),
        ("table_length", "<u4"),
        ("plain_length", "<u4"),
        ("payload_length", "<u4"),
        ("sequence", "<u8"),
        ("generation", "<u8"),
        ("time_ns", "<u8"),
        ("epoch", "V16"),
        ("position", "<u8"),
        ("frames", "<u8"),
        ("checksum", "<u8"),
    ]
)
FRAME_DTYPE = np.dtype(
    [
        ("plain_length", "<u4"),
        ("length", "<u4"),
        ("codec", "u1"),
        ("cipher", "u1"),
        ("reserved", "<u2"),
        ("key", "<u4"),
        ("checksum", "<u8"),
    ]
)
EXTENT_DTYPE = np.dtype(
    [
        ("volume", "<u4"),
        ("kind", "u1"),
        ("pad", "V3"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("digest", "V16"),
    ]
)

_POINT_KINDS = tuple(PointKind)
_TABLE_LENGTH, _TABLE_LENGTH_AT = struct.Struct("<I"), 12
"""Where a RECORD has the length of its table."""


class RecordType(enum.IntEnum):
    """What a record holds."""

    BATCH = 1
    CUT = 2
    GEOMETRY = 3


class Role(enum.IntEnum):
    """Why a branch exists, as stored in a segment's header."""

    TRUNK = 1
    PROMOTED = 2
    DRILL = 3
    DIVERGENT = 4


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The start of a segment: its writer, and the stream's state just before its first record.

    Attributes:
        store: identity of the store.
        salt: seed of every checksum in this file.
        first_sequence: stream position of record 0.
        mark: mark of position first_sequence - 1.
        geometry: volumes in force before record 0.
        generation: of the writer.
        version: of the segment's format.
        key: id of the data key that it is encrypted with; empty: it is not encrypted.
        key_salt: random bytes of this file, from which its own keys are derived.
    """

    store: bytes
    salt: int
    source: str
    branch: int
    segment: int
    revision: int
    parent: int
    base_sequence: int
    generation: int
    first_sequence: int
    mark: Mark
    created_ns: int
    role: Role
    geometry: tuple[VolumeGeometry, ...]
    version: int = PLAIN_VERSION
    key: bytes = b""
    key_salt: bytes = b""

    @property
    def about(self) -> bytes:
        """Which file of which store it is: what its keys are bound to."""
        numbers = struct.pack("<III", self.branch, self.segment, self.revision)
        return self.store + numbers + self.source.encode()

    @property
    def frame_seed(self) -> int:
        """Seed of the frames' checksums: in version 1 they were covered by nothing else."""
        return self.salt if self.version == 1 else 0

    @property
    def frame_plain_bytes_max(self) -> int:
        """What one frame may decode to."""
        return BATCH_PLAIN_BYTES_MAX if self.version == 1 else FRAME_PLAIN_BYTES_MAX

    def pack(self) -> bytes:
        """Encode, with checksum."""
        encryption = ENCRYPTION.pack(self.key, self.key_salt) if self.key else b""
        tail = encryption + _pack_text(self.source) + pack_geometry(self.geometry)
        fixed = HEADER.pack(
            HEADER_MAGIC,
            self.version,
            HEADER.size,
            len(tail),
            self.store,
            self.salt,
            self.branch,
            self.segment,
            self.revision,
            self.parent,
            self.base_sequence,
            self.generation,
            self.first_sequence,
            self.mark.epoch,
            self.mark.position,
            self.created_ns,
            self.role,
        )
        return fixed + tail + CHECKSUM.pack(checksum(self.salt, fixed, tail))


def parse_header(data: bytes) -> tuple[SegmentHeader, int]:
    """Decode a segment's start; returns it and its length in bytes.

    Raises:
        DrengineError: DAMAGED, or STORE_VERSION for a newer format.
    """
    if len(data) < HEADER.size:
        raise DrengineError(DAMAGED, f"segment header is cut short at {len(data)} bytes")
    fields = HEADER.unpack_from(data)
    magic, version, size, tail_length, store, salt = fields[:6]
    if magic != HEADER_MAGIC:
        raise DrengineError(DAMAGED, "segment header has no magic")
    if tail_length > TAIL_BYTES_MAX or len(data) < HEADER.size + tail_length + CHECKSUM.size:
        raise DrengineError(DAMAGED, "segment header's tail is cut short or too long")
    end = HEADER.size + tail_length
    (found,) = CHECKSUM.unpack_from(data, end)
    intact = found == checksum(salt, data[: HEADER.size], data[HEADER.size : end])
    if version > FORMAT_VERSION and (intact or size != HEADER.size):
        raise DrengineError(STORE_VERSION, f"segment has format {version}, this is {FORMAT_VERSION}")
    if not intact or not version or size != HEADER.size:
        raise DrengineError(DAMAGED, "segment header fails its checksum")
    key, key_salt, at = b"", b"", HEADER.size
    if version >= ENCRYPTED_VERSION:
        if tail_length <= ENCRYPTION.size:
            raise DrengineError(DAMAGED, "segment header does not say how it is encrypted")
        key, key_salt = ENCRYPTION.unpack_from(data, at)
        at += ENCRYPTION.size
    source, used = _parse_text(data, at)
    branch, segment, revision, parent, base, generation, first, epoch, position, created, role = fields[6:]
    return (
        SegmentHeader(
            store=store,
            salt=salt,
            source=source,
            branch=branch,
            segment=segment,
            revision=revision,
            parent=parent,
            base_sequence=base,
            generation=generation,
            first_sequence=first,
            mark=Mark(epoch, position),
            created_ns=created,
            role=Role(role),
            geometry=parse_geometry(data[used:end]),
            version=version,
            key=key,
            key_salt=key_salt,
        ),
        end + CHECKSUM.size,
    )


def pack_record(
    salt: int,
    *,
    type: RecordType,
    number: int,
    sequence: int,
    generation: int,
    mark: Mark,
    time_ns: int,
    table: bytes,
    frames: bytes = b"",
    plain_length: int = 0,
    payload_length: int = 0,
    flags: int = 0,
    chain: Chain | None = None,
) -> tuple[bytes, bytes]:
    """A record's header and what follows it: the table, the frame table, and the tag where there is a chain.

    The payload comes behind them, unchanged.
    """
    tables = table + frames
    fields = RECORD.pack(
        RECORD_MAGIC,
        type,
        0,
        flags,
        number,
        len(tables) + (TAG_BYTES if chain else 0),
        plain_length,
        payload_length,
        sequence,
        generation,
        time_ns,
        mark.epoch,
        mark.position,
        len(frames) // FRAME.size,
        0,
    )[: -CHECKSUM.size]
    if chain:
        tables += chain.add(fields, tables)
    return fields + CHECKSUM.pack(checksum(salt, fields, tables)), tables


def chain_fault(chain: Chain, fields: bytes, tables: bytes) -> str | None:
    """Follow a chain by one record; why this is not the next one, or None."""
    if chain.add(fields[: -CHECKSUM.size], tables[:-TAG_BYTES]) == tables[-TAG_BYTES:]:
        return None
    return "record was not written by somebody with the key"


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """All record headers and tables of a segment (or of its first records), decoded once.

    Attributes:
        header: the segment's start.
        records: RECORD_DTYPE rows.
        tables: the records' tables without the frame tables, one after another.
        frames: FRAME_DTYPE rows of all records; of a segment of version 1 one for each payload.
        offsets: file offset of each record's header.
        table_starts: where each record's table begins in `tables`; one more entry than records.
        frame_starts: where each record's rows begin in `frames`; one more entry than records.
        frame_offsets: file offset of each frame.
        frame_plain_ends: where each frame ends in the plain form of its record.
        length: file length that these records end at.
        tags: of all records, one after another; empty in a segment that is not encrypted.
        cipher: of an encrypted segment whose chain was followed; None also where its key was forgotten.
    """

    header: SegmentHeader
    records: NDArray[Any]
    tables: bytes
    frames: NDArray[Any]
    offsets: NDArray[np.int64] = field(repr=False)
    table_starts: NDArray[np.int64] = field(repr=False)
    frame_starts: NDArray[np.int64] = field(repr=False)
    frame_offsets: NDArray[np.int64] = field(repr=False)
    frame_plain_ends: NDArray[np.int64] = field(repr=False)
    length: int = 0
    tags: bytes = b""
    cipher: SegmentCipher | None = None

    @staticmethod
    def make(
        header: SegmentHeader,
        header_length: int,
        headers: bytes,
        tables: bytes,
        *,
        cipher: SegmentCipher | None = None,
    ) -> SegmentIndex:
        """Put it together from concatenated headers and tables (with frame tables) that have been checked.

        Raises:
            DrengineError: DAMAGED when tables and headers do not fit each other.
        """
        records = np.frombuffer(headers, dtype=RECORD_DTYPE)
        stored = records["table_length"].astype(np.int64)
        payloads = records["payload_length"].astype(np.int64)
        offsets = _starts(stored + payloads + RECORD.size) + header_length
        tags = b""
        if header.key:
            tables, tags = _parted(tables, stored, np.full(len(records), TAG_BYTES))
            stored = stored - TAG_BYTES
        if header.version == 1:
            counts = (payloads > 0).astype(np.int64)
            rows, frames = tables, _frames_of_version_1(records[payloads > 0])
        else:
            counts = records["frames"].astype(np.int64)
            rows, packed = _parted(tables, stored, counts * FRAME.size)
            frames = np.frombuffer(packed, dtype=FRAME_DTYPE)
            stored = stored - counts * FRAME.size
        frame_starts = _starts(counts)
        lengths = _starts(frames["length"].astype(np.int64))
        plains = _starts(frames["plain_length"].astype(np.int64))
        fits = np.array_equal(np.diff(lengths[frame_starts]), payloads)
        if not fits or not np.array_equal(np.diff(plains[frame_starts]), records["plain_length"]):
            raise DrengineError(DAMAGED, "a record's frames do not add up to its payload")
        payload_starts = offsets[1:] - payloads
        return SegmentIndex(
            header,
            records,
            rows,
            frames,
            offsets[:-1],
            _starts(stored),
            frame_starts,
            np.repeat(payload_starts - lengths[frame_starts[:-1]], counts) + lengths[:-1],
            plains[1:] - np.repeat(plains[frame_starts[:-1]], counts),
            int(offsets[-1]),
            tags,
            cipher,
        )

    @property
    def seal(self) -> bytes:
        """The chain's newest tag, which stands for all of its records; empty where there is no chain."""
        return self.tags[-TAG_BYTES:]

    @property
    def record_count(self) -> int:
        """Records in it."""
        return len(self.records)

    @property
    def last_sequence(self) -> int:
        """Stream position of the last record; first_sequence - 1 when there is none."""
        return self.header.first_sequence + len(self.records) - 1

    @property
    def nbytes(self) -> int:
        """Memory it takes, roughly."""
        return int(self.records.nbytes + len(self.tables) + 24 * len(self.records) + 40 * len(self.frames) + 512)

    def head(self, count: int) -> SegmentIndex:
        """Only the first `count` records."""
        if count >= len(self.records):
            return self
        frames = int(self.frame_starts[count])
        return SegmentIndex(
            self.header,
            self.records[:count],
            self.tables[: int(self.table_starts[count])],
            self.frames[:frames],
            self.offsets[:count],
            self.table_starts[: count + 1],
            self.frame_starts[: count + 1],
            self.frame_offsets[:frames],
            self.frame_plain_ends[:frames],
            int(self.offsets[count]),
            self.tags[: count * TAG_BYTES],
            self.cipher,
        )

    def table(self, number: int) -> bytes:
        """The table of one record, without its frame table."""
        return self.tables[int(self.table_starts[number]) : int(self.table_starts[number + 1])]

    def frame_rows(self, number: int) -> slice:
        """Which rows of `frames` belong to one record."""
        return slice(int(self.frame_starts[number]), int(self.frame_starts[number + 1]))

    def frame(self, row: int) -> Frame:
        """One row of `frames`."""
        return Frame._make(self.frames[row].item())

    def stored_table(self, number: int) -> bytes:
        """The table of one record as it is in the file."""
        frames = b"" if self.header.version == 1 else self.frames[self.frame_rows(number)].tobytes()
        return self.table(number) + frames + self.tags[number * TAG_BYTES : (number + 1) * TAG_BYTES]

    def plain_table(self, number: int) -> bytes:
        """The table of one record, its digests decrypted; without a cipher as it is stored."""
        return self.cipher.turn_digests(number, self.table(number)) if self.cipher else self.table(number)

    def payload_range(self, number: int) -> tuple[int, int]:
        """File offset and length of one record's payload."""
        fields = self.records[number]
        start = int(self.offsets[number]) + RECORD.size + int(fields["table_length"])
        return start, int(fields["payload_length"])

    def payload_is_whole(self, number: int, payload: bytes | memoryview) -> bool:
        """Whether these are the bytes of one record's payload, as it was written."""
        view, at = memoryview(payload), 0
        for length, expected in self.frames[["length", "checksum"]][self.frame_rows(number)].tolist():
            if checksum(self.header.frame_seed, view[at : at + length]) != expected:
                return False
            at += length
        return at == len(view)

    def type(self, number: int) -> int:
        """RecordType of one record."""
        return int(self.records["type"][number])

    def mark(self, number: int) -> Mark:
        """Mark of one record."""
        row = self.records[number]
        return Mark(bytes(row["epoch"]), int(row["position"]))

    def geometry_at(self, count: int) -> tuple[VolumeGeometry, ...]:
        """Volumes in force after the first `count` records."""
        numbers = np.flatnonzero(self.records["type"][:count] == RecordType.GEOMETRY)
        return parse_geometry(self.table(int(numbers[-1]))) if len(numbers) else self.header.geometry


def pack_seal(salt: int, headers: Iterable[bytes], tables: Iterable[bytes], offset: int, last: int) -> bytes:
    """Index and footer that close a segment whose records end at file offset `offset`."""
    head, body = b"".join(headers), b"".join(tables)
    fields = FOOTER.pack(
        FOOTER_MAGIC,
        len(head) // RECORD.size,
        len(body) & 0xFFFFFFFF,
        offset,
        len(head) + len(body),
        last,
        checksum(salt, head, body),
        0,
    )[: -CHECKSUM.size]
    return head + body + fields + CHECKSUM.pack(checksum(salt, fields))


def parse_footer(salt: int, data: bytes, file_length: int) -> tuple[int, int, int, int]:
    """Check a footer; returns (record count, index offset, index length, index checksum).

    Raises:
        DrengineError: DAMAGED.
    """
    if len(data) != FOOTER.size:
        raise DrengineError(DAMAGED, "segment footer is cut short")
    magic, count, _, offset, length, _, index_checksum, found = FOOTER.unpack(data)
    if magic != FOOTER_MAGIC or found != checksum(salt, data[: -CHECKSUM.size]):
        raise DrengineError(DAMAGED, "segment footer fails its checksum")
    if offset + length + FOOTER.size != file_length or count * RECORD.size > length:
        raise DrengineError(DAMAGED, "segment footer does not fit the file")
    return count, offset, length, index_checksum


def parse_index(
    header: SegmentHeader,
    header_length: int,
    count: int,
    data: bytes,
    expected: int,
    *,
    cipher: SegmentCipher | None = None,
) -> SegmentIndex:
    """Decode a sealed segment's index; with a cipher its chain is followed.

    Raises:
        DrengineError: DAMAGED.
    """
    if checksum(header.salt, data) != expected:
        raise DrengineError(DAMAGED, "segment index fails its checksum")
    split = count * RECORD.size
    if cipher:
        chain, at = cipher.chain(header.pack()), split
        for number in range(count):
            fields = data[number * RECORD.size : (number + 1) * RECORD.size]
            (length,) = _TABLE_LENGTH.unpack_from(fields, _TABLE_LENGTH_AT)
            if fault := chain_fault(chain, fields, data[at : at + length]):
                raise DrengineError(DAMAGED, f"segment index: {fault}")
            at += length
    return SegmentIndex.make(header, header_length, data[:split], data[split:], cipher=cipher)


def record_fault(header: SegmentHeader, number: int, fields: bytes, table: bytes | None) -> str | None:
    """Why these RECORD bytes are not record `number` of the segment; None when they are.

    `table` may be None while only the lengths are wanted: then the checksum is not looked at.
    """
    if len(fields) != RECORD.size:
        return "record header is cut short"
    magic, type_, _, _, found_number, table_length, plain, payload, sequence, *_, frames, found = RECORD.unpack(fields)
    if magic != RECORD_MAGIC or found_number != number or sequence != header.first_sequence + number:
        return "record header is not the one expected"
    if table_length > TABLE_BYTES_MAX or payload > PAYLOAD_BYTES_MAX or plain > BATCH_PLAIN_BYTES_MAX:
        return "record lengths are out of range"
    if table is None:
        return None
    if found != checksum(header.salt, fields[: -CHECKSUM.size], table):
        return "record header or table fails its checksum"
    if type_ not in tuple(RecordType):
        return "record type is not known"
    if header.version == 1:
        return None
    end = table_length - (TAG_BYTES if header.key else 0)
    if frames * FRAME.size > end:
        return "record claims more frames than its table holds"
    return frames_fault(table[end - frames * FRAME.size : end], payload, cipher=AES_256_GCM if header.key else 0)


def check_table(table: bytes | memoryview, frames: bytes | memoryview, volume_sizes: Mapping[int, int]) -> None:
    """`model.extents.check_table`, which states the rules, and for many rows at once where that is quicker.

    Raises:
        DrengineError: BAD_EXTENTS, naming the row and the rule.
    """
    if len(table) <= _FEW_ROWS * EXTENT.size or not _all_rules_hold(table, frames, volume_sizes):
        extents.check_table(table, frames, volume_sizes)


def _all_rules_hold(table: bytes | memoryview, frames: bytes | memoryview, volume_sizes: Mapping[int, int]) -> bool:
    """False also where it was not looked at."""
    if len(table) % EXTENT.size or not 0 < len(table) <= BATCH_EXTENTS_MAX * EXTENT.size:
        return False
    head, offset, length, *digest = np.frombuffer(table, dtype="<u8").reshape(-1, EXTENT.size // 8).T
    volume, kind = head & 0xFFFFFFFF, head >> 32  # a pad byte that is not zero makes another kind
    data = kind == ExtentKind.DATA
    if not (data | (((kind == ExtentKind.ZERO) | (kind == ExtentKind.DISCARD)) & (digest[0] | digest[1] == 0))).all():
        return False
    for number in {int(volume[0])} if (volume == volume[0]).all() else np.unique(volume).tolist():
        size, mine = min(volume_sizes.get(number, 0), OFFSET_MAX), volume == number
        if ((length[mine] - 1 >= size) | (offset[mine] >= size)).any() or (offset[mine] + length[mine] > size).any():
            return False
    within = offset[data] % BLOCK_BYTES
    if (within + length[data] > BLOCK_BYTES).any():
        return False
    ends = np.cumsum(length[data])
    frame_ends = np.cumsum(np.frombuffer(frames, dtype=FRAME_DTYPE)["plain_length"], dtype=np.uint64)
    # An extent that crosses the end of a frame skips that end. The ends of extents grow, so they can be searched.
    return np.array_equal(ends[-1:], frame_ends[-1:]) and bool(
        (ends[ends.searchsorted(frame_ends)] == frame_ends).all()
    )


def carried_lengths(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Plain bytes of each row: DATA, and what was DATA before compaction dropped it; 0 for the others."""
    carries = (rows["kind"] == ExtentKind.DATA) | (rows["kind"] == ExtentKind.DROPPED)
    return np.where(carries, rows["length"], 0).astype(np.int64)


def plain_ranges(rows: NDArray[Any], kind: ExtentKind) -> list[tuple[int, int]]:
    """(begin, end) in the plain form of the rows of one kind."""
    lengths = carried_lengths(rows)
    ends = np.cumsum(lengths)
    chosen = rows["kind"] == kind
    return list(zip((ends - lengths)[chosen].tolist(), ends[chosen].tolist(), strict=True))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of consecutive parts begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _parted(tables: bytes, lengths: NDArray[np.int64], tails: NDArray[np.int64]) -> tuple[bytes, bytes]:
    """Concatenated tables without their tails, and the tails."""
    if len(tables) != int(lengths.sum()) or (tails > lengths).any():
        raise DrengineError(DAMAGED, "segment index does not fit its tables")
    in_table = np.repeat(np.tile([True, False], len(lengths)), np.stack((lengths - tails, tails), axis=1).reshape(-1))
    data = np.frombuffer(tables, dtype=np.uint8)
    return data[in_table].tobytes(), data[~in_table].tobytes()


def _frames_of_version_1(records: NDArray[Any]) -> NDArray[Any]:
    """A payload of version 1 is one frame."""
    frames = np.zeros(len(records), dtype=FRAME_DTYPE)
    frames["plain_length"], frames["length"] = records["plain_length"], records["payload_length"]
    frames["codec"], frames["checksum"] = records["codec"], records["frames"]
    return frames


def live_plain_bytes(table: bytes) -> int:
    """Plain bytes of a table's DATA rows."""
    rows = np.frombuffer(table, dtype=EXTENT_DTYPE)
    return int(rows["length"][rows["kind"] == ExtentKind.DATA].sum())


def checksum(salt: int, *parts: bytes | memoryview) -> int:
    """xxh3-64 of the parts, one after another, seeded with the segment's salt."""
    if len(parts) == 1:
        return xxhash.xxh3_64_intdigest(parts[0], salt)
    state = xxhash.xxh3_64(seed=salt)
    for part in parts:
        state.update(part)
    return state.intdigest()


def pack_cut(cut: Cut) -> bytes:
    """A CUT record's table."""
    label = cut.label.encode()
    return CUT_FIXED.pack(cut.time_ns, _POINT_KINDS.index(cut.kind) + 1, len(label)) + label


def parse_cut(table: bytes) -> Cut:
    """Decode a CUT record's table, whose checksum has been checked."""
    time_ns, kind, length = CUT_FIXED.unpack_from(table)
    label = table[CUT_FIXED.size : CUT_FIXED.size + length].decode(errors="replace")
    return Cut(time_ns, _POINT_KINDS[kind - 1], label)


def pack_geometry(volumes: Iterable[VolumeGeometry]) -> bytes:
    """A GEOMETRY record's table: one row a volume, then its name and identity."""
    parts = []
    for volume in volumes:
        name, identity = volume.name.encode(), volume.identity.encode()
        parts.append(GEOMETRY_ROW.pack(volume.volume, len(name), len(identity), volume.size_bytes))
        parts += (name, identity)
    return b"".join(parts)


def parse_geometry(table: bytes) -> tuple[VolumeGeometry, ...]:
    """Decode a GEOMETRY table, whose checksum has been checked."""
    volumes, at = [], 0
    while at < len(table):
        number, name_length, identity_length, size = GEOMETRY_ROW.unpack_from(table, at)
        at += GEOMETRY_ROW.size
        name = table[at : at + name_length].decode()
        identity = table[at + name_length : at + name_length + identity_length].decode()
        at += name_length + identity_length
        volumes.append(VolumeGeometry(number, name, identity, size))
    return tuple(volumes)


def _pack_text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(1, "little") + data


def _parse_text(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end].decode(), end
