"""Checks a segment's records while their bytes pass: what is copied is what was written, and was sent.

A record's checksum covers its header and tables, and these hold the checksum of each frame. All of them are seeded with
the file's own salt, so bytes of another file never pass. None of this needs a key. The hashes of a BATCH record's plain
bytes, which its agent made, need the segment's where it is encrypted.
"""

from __future__ import annotations

from typing import NamedTuple

from drengine.crypt.segment import SegmentCipher
from drengine.model.errors import DrengineError
from drengine.store.blobs.storage import Buffer, Reader
from drengine.store.segments.format import (
    FOOTER,
    RECORD,
    SegmentHeader,
    SegmentIndex,
    checksum,
    parse_footer,
    record_fault,
)
from drengine.store.views.records import record_faults

CHUNK_BYTES = 1 << 20


class Hashed(NamedTuple):
    """That hashes are compared, and what decrypts the segment for it, if it is encrypted."""

    cipher: SegmentCipher | None


class PassingRecords:
    """Takes a segment's bytes behind its header, in order. With `hashed` it compares every hash, beside the checksums.

    Attributes:
        number: of the next record.
        whole_until: file offset up to which all records were whole.
        fault: why a record is not what was written; nothing is looked at behind it.
    """

    def __init__(self, header: SegmentHeader, whole_until: int, number: int, hashed: Hashed | None = None) -> None:
        self._header = header
        self._hashed = hashed
        self._rest = bytearray()
        self.whole_until = whole_until
        self.number = number
        self.fault = ""

    def feed(self, data: Buffer) -> None:
        """Take bytes up."""
        if self.fault:
            return
        self._rest += data
        headers, tables, end = self._whole_records()
        try:
            index = SegmentIndex.make(
                self._header, self.whole_until, b"".join(headers), b"".join(tables), cipher=self._cipher()
            )
        except DrengineError as error:
            self.fault = error.message
            return
        for record in range(index.record_count):
            start, length = index.payload_range(record)
            at = start - self.whole_until
            if fault := self._payload_fault(index, record, bytes(self._rest[at : at + length])):
                end = int(index.offsets[record]) - self.whole_until
                self.fault = f"record {self.number + record}: {fault}"
                headers = headers[:record]
                break
        self.number += len(headers)
        self.whole_until += end
        del self._rest[:end]

    def _cipher(self) -> SegmentCipher | None:
        """For an index that begins with the next record."""
        return self._hashed.cipher.behind(self.number) if self._hashed and self._hashed.cipher else None

    def _payload_fault(self, index: SegmentIndex, record: int, payload: bytes) -> str:
        if not index.payload_is_whole(record, payload):
            return "a frame fails its checksum"
        if self._hashed and record_faults(index, record, payload):
            return "its bytes do not match their hashes"
        return ""

    def _whole_records(self) -> tuple[list[bytes], list[bytes], int]:
        """Headers and tables of the records that have arrived whole, and where they end in what has arrived."""
        headers: list[bytes] = []
        tables: list[bytes] = []
        end = 0
        while end + RECORD.size <= len(self._rest):
            number = self.number + len(headers)
            fields = bytes(self._rest[end : end + RECORD.size])
            self.fault = record_fault(self._header, number, fields, None) or ""
            if self.fault:
                break
            parts = RECORD.unpack(fields)
            body = end + RECORD.size
            following = body + parts[5] + parts[7]
            if following > len(self._rest):
                break
            table = bytes(self._rest[body : body + parts[5]])
            self.fault = record_fault(self._header, number, fields, table) or ""
            if self.fault:
                break
            headers.append(fields)
            tables.append(table)
            end = following
        if self.fault:
            self.fault = f"record {self.number + len(headers)}: {self.fault}"
        return headers, tables, end


def seal_fault(header: SegmentHeader, tail: bytes, length: int) -> str:
    """Why the end of a sealed segment's file, behind its records, is not what was written; empty when it is."""
    try:
        _, offset, size, expected = parse_footer(header.salt, tail[-FOOTER.size :], length)
    except DrengineError as error:
        return error.message
    if offset + size + FOOTER.size != length or size + FOOTER.size != len(tail):
        return "the index does not begin where the records end"
    return "" if checksum(header.salt, tail[:size]) == expected else "the index fails its checksum"


def walk(
    reader: Reader, header: SegmentHeader, header_length: int, until: int, hashed: Hashed | None = None
) -> PassingRecords:
    """Check what is there of a segment's records, up to a file offset."""
    passing = PassingRecords(header, header_length, 0, hashed)
    at = header_length
    while at < until and not passing.fault:
        data = reader.read_at(at, min(CHUNK_BYTES, until - at))
        if not data:
            break
        passing.feed(data)
        at += len(data)
    return passing
