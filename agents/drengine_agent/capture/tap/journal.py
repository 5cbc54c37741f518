"""The ring that remembers every write of all volumes, in order, until the target has it.

Positions are bytes since the epoch began and never go back; a position's place in the ring is `position %
capacity`. One record holds the writes of one batch (they were in flight together, so a cut may follow any
record)::

    u64 xxh3-64 of everything after it | u64 tag (the epoch's first 8 bytes) | u64 position | u64 time_ns
    u64 xxh3-64 of the record before | u64 length of this record | u32 rows | u32 zero | 8 zero bytes
    rows x (u32 volume | u32 kind | u64 offset | u64 length)
    the DATA rows' bytes, in order

A record never wraps: one without rows fills up the end of the ring; fewer than a header's bytes there are
skipped. Tag, position and the chain of checksums make stale records of earlier laps, epochs and torn tails
recognisable.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from drengine.model.errors import DrengineError
from drengine.model.extents import ExtentKind
from drengine_agent.capture.tap.superblock import JOURNAL_UNUSABLE, Register
from drengine_agent.capture.tracker import Write

HEADER = struct.Struct("<QQQQQQII8x")
ROW = struct.Struct("<IIQQ")
CAPACITY_BYTES_MIN = 4096
ROWS_MAX = 500
"""Rows of one record: with its header and table they fit one pwritev."""

_BODY = struct.Struct("<QQQQQII8x")
_DATA = int(ExtentKind.DATA)
_DISCARD = int(ExtentKind.DISCARD)


class JournalFullError(Exception):
    """The record does not fit into what is free."""


class JournalDamagedError(Exception):
    """A record that must be there is not, or fails its checks."""


class Journal:
    """The ring and its positions. One thread appends, another may read and acknowledge.

    Attributes:
        epoch: 16 random bytes naming this run of positions.
        base: position of the epoch's first record.
        head: end of the last record.
        acked: everything before it may be overwritten.
        previous: checksum of the last record.
        oldest_ns: time of the oldest record at or after `acked`; 0 if there is none.
    """

    def __init__(self, path: Path, capacity_bytes: int, registers: memoryview) -> None:
        """Open the ring's file, preallocating it to `capacity_bytes`; then call `begin` or `resume`.

        Raises:
            DrengineError: JOURNAL_UNUSABLE.
        """
        if capacity_bytes < CAPACITY_BYTES_MIN:
            raise DrengineError(JOURNAL_UNUSABLE, f"a journal of {capacity_bytes} bytes is too small")
        self.capacity_bytes = capacity_bytes
        self._registers = registers
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._fd).st_size != capacity_bytes:
                os.ftruncate(self._fd, capacity_bytes)
            os.posix_fallocate(self._fd, 0, capacity_bytes)
        except OSError as error:
            raise DrengineError(JOURNAL_UNUSABLE, f"{path}: {error.strerror}") from error
        self.epoch = bytes(16)
        self._tag = self.base = self.head = self.acked = self.previous = self.oldest_ns = 0

    def begin(self, epoch: bytes, base: int) -> None:
        """Start an empty epoch at position `base`; older records are forgotten."""
        self.epoch = epoch
        self._tag = int.from_bytes(epoch[:8], "little")
        self.base = self.head = self.acked = base
        self.previous = 0
        self.oldest_ns = 0
        for register in (Register.HEAD, Register.APPLIED, Register.ACKED):
            self._registers[register] = base

    def resume(self, epoch: bytes, base: int, previous: int, *, head: int, acked: int) -> None:
        """Take up an epoch that was closed cleanly at these positions."""
        self.epoch, self.base, self.previous = epoch, base, previous
        self._tag = int.from_bytes(epoch[:8], "little")
        self.head, self.acked = head, acked
        self._find_oldest()

    def recover(self, epoch: bytes, base: int, *, head: int, acked: int) -> int:
        """Take up an epoch whose process was killed in this boot: prove each unacknowledged record, find the
        end.

        Returns:
            The end; at or after `head` (a record written whole just before the kill counts).

        Raises:
            JournalDamagedError: the chain breaks before `head`.
        """
        self.resume(epoch, base, 0, head=head + self.capacity_bytes, acked=acked)
        position, previous = acked, None
        try:
            while position - acked < self.capacity_bytes:
                start, header, body = self._record(position, acked + self.capacity_bytes)
                if previous is not None and header[4] != previous:
                    break
                position, previous = start + len(body), header[0]
        except JournalDamagedError:
            pass  # the end, if it is not too early
        left = self.capacity_bytes - position % self.capacity_bytes
        if position < head == position + left and left < HEADER.size:
            position = head  # the end of the ring was skipped, and nothing written after it
        if position < head:
            raise JournalDamagedError(f"the journal's chain breaks at {position}, before {head}")
        self.head, self.previous = position, previous or 0
        self._registers[Register.HEAD] = position
        self._find_oldest()
        return position

    def append(self, rows: bytes, parts: Sequence[bytes | memoryview], parts_bytes: int, time_ns: int) -> int:
        """Write one record: packed ROWs (at most ROWS_MAX) and the DATA rows' bytes. Returns the new head.

        Raises:
            JournalFullError: there is no room; nothing changed.
            OSError: the disk failed; nothing is promised about what was written, and the head stays.
        """
        length = HEADER.size + len(rows) + parts_bytes
        place = self.head % self.capacity_bytes
        pad = self.capacity_bytes - place if length > self.capacity_bytes - place else 0
        if self.head + pad + length - self.acked > self.capacity_bytes:
            raise JournalFullError
        if pad:
            self._pad(place, pad, time_ns)
            place = 0
        position = self.head
        body = _BODY.pack(self._tag, position, time_ns, self.previous, length, len(rows) // ROW.size, 0) + rows
        hasher = xxhash.xxh3_64(body)
        for part in parts:
            hasher.update(part)
        checksum = hasher.intdigest()
        self._write(place, [checksum.to_bytes(8, "little") + body, *parts], length)
        if not self.oldest_ns:
            self.oldest_ns = time_ns
        self.previous = checksum
        self.head = self._registers[Register.HEAD] = position + length
        return position + length

    def _pad(self, place: int, length: int, time_ns: int) -> None:
        if length >= HEADER.size:
            body = _BODY.pack(self._tag, self.head, time_ns, self.previous, length, 0, 0)
            tail = bytes(length - HEADER.size)
            checksum = xxhash.xxh3_64_intdigest(body + tail)
            self._write(place, [checksum.to_bytes(8, "little") + body + tail], length)
            self.previous = checksum
        self.head = self._registers[Register.HEAD] = self.head + length

    def _write(self, place: int, parts: list[bytes | memoryview], length: int) -> None:
        done = os.pwritev(self._fd, parts, place)
        while done != length:
            more = os.pwrite(self._fd, b"".join(parts)[done:], place + done)
            if not more:
                raise OSError(errno.ENOSPC, "the journal takes no more")
            done += more

    def applied(self, position: int) -> None:
        """The backing volumes have everything before `position`."""
        self._registers[Register.APPLIED] = position

    def acknowledge(self, position: int) -> None:
        """Everything before `position` (a record's edge) may be overwritten."""
        if self.acked < position <= self.head:
            self.acked = self._registers[Register.ACKED] = position
            self._find_oldest()

    @property
    def used_bytes(self) -> int:
        """Bytes that are not acknowledged."""
        return self.head - self.acked

    def read(self, start: int, end: int, bytes_max: int) -> tuple[list[Write], int, int]:
        """Writes from `start` on, whole records, at least one and not much more than `bytes_max` bytes.

        Args:
            start: a record's edge, not before `acked`.
            end: a record's edge; read no further.
            bytes_max: stop after so many bytes of records.

        Returns:
            The writes, the position after them, and the last record's time (0 if there was none).

        Raises:
            JournalDamagedError: a record fails its checks.
            OSError: the disk failed.
        """
        writes: list[Write] = []
        position, time_ns = start, 0
        while position < end and position - start < bytes_max:
            position, header, body = self._record(position, end)
            if header[6]:
                writes += _writes(body, header[6])
                time_ns = header[3]
            position += len(body)
        return writes, position, time_ns

    def tables(self, start: int, end: int) -> Iterator[memoryview]:
        """The packed rows of each record in a range of positions: what was touched, without its bytes.

        Raises:
            JournalDamagedError, OSError: as `read`.
        """
        position = start
        while position < end:
            position, header, body = self._record(position, end)
            yield body[HEADER.size : HEADER.size + header[6] * ROW.size]
            position += len(body)

    def sync(self) -> None:
        """Make every record durable.

        Raises:
            OSError: it is unknown what is durable.
        """
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _find_oldest(self) -> None:
        self.oldest_ns = 0
        if self.acked < self.head:
            try:
                self.oldest_ns = self._header(self.acked, self.head)[1][3]
            except (JournalDamagedError, OSError):
                self.oldest_ns = 1  # unknown: the reader will meet the damage; until then the lag is not hidden

    def _header(self, position: int, end: int) -> tuple[int, tuple[int, ...]]:
        """The header at `position` (or after the ring's end, if too few bytes are left) and its position."""
        left = self.capacity_bytes - position % self.capacity_bytes
        if left < HEADER.size:
            position, left = position + left, self.capacity_bytes
        raw = os.pread(self._fd, HEADER.size, position % self.capacity_bytes)
        header = HEADER.unpack(raw) if len(raw) == HEADER.size else (0,) * 8
        _, tag, place, _, _, length, rows, _ = header
        smallest = HEADER.size + rows * ROW.size
        if tag != self._tag or place != position or not smallest <= length <= min(left, end - position):
            raise JournalDamagedError(f"no record at position {position}")
        return position, header

    def _record(self, position: int, end: int) -> tuple[int, tuple[int, ...], memoryview]:
        position, header = self._header(position, end)
        body = memoryview(os.pread(self._fd, header[5], position % self.capacity_bytes))
        if len(body) != header[5] or xxhash.xxh3_64_intdigest(body[8:]) != header[0]:
            raise JournalDamagedError(f"the record at position {position} fails its checksum")
        return position, header, body


def _writes(body: memoryview, rows: int) -> list[Write]:
    found = []
    at = HEADER.size + rows * ROW.size
    for volume, kind, offset, length in ROW.iter_unpack(body[HEADER.size : at]):
        if kind == _DATA:
            found.append(Write(volume, offset, length, body[at : at + length]))
            at += length
        else:
            found.append(Write(volume, offset, length, None, kind == _DISCARD))
    return found
