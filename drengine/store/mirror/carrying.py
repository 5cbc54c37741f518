"""Copies one segment's file, as far as it is committed, and checks it while it passes.

A file grows as its original does. What a crash left of one that nothing names yet is walked, and gone on with behind
its last whole record: so is what lies on a disk that was shipped.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from drengine.crypt.errors import SOURCE_ERASED
from drengine.model.errors import DrengineError
from drengine.store.blobs import Appender, Changes, Reader, Storage
from drengine.store.blobs.storage import ObjectStorage
from drengine.store.catalogue.rows import SEALED, SegmentRow
from drengine.store.errors import DAMAGED
from drengine.store.keys import StoreKeys
from drengine.store.mirror.difference import file_length
from drengine.store.mirror.passing import CHUNK_BYTES, Hashed, PassingRecords, seal_fault, walk
from drengine.store.names import segment_name
from drengine.store.segments.format import SegmentHeader
from drengine.store.views.records import read_header

_SECTOR_BYTES = 4096
_UNREADABLE = (errno.EIO, errno.EILSEQ)


class NotYetThere(Exception):
    """The object store does not have all that is committed of a file; the host that wrote it uploads it still."""


class Carried(NamedTuple):
    """What was copied of a segment: how many bytes, and what is wrong with them (empty: nothing)."""

    bytes: int
    fault: str


@dataclass(slots=True)
class _File:
    """A file of the copy that grows: how long it is, and how many records it has."""

    appender: Appender
    length: int
    number: int
    is_synced: bool = False


class Carrier:
    """Copies segments from one storage to another. For one thread.

    Open segments' files stay open between passes, because they grow in each.
    """

    def __init__(
        self, origin: Storage, copy: Storage, keys: StoreKeys, passed: Callable[[int], None], *, hashes: bool
    ) -> None:
        """`passed` is told of each bytes that pass; it may wait, or raise to end it. `keys`: of the original."""
        self._origin = origin
        self._copy = copy
        self._keys = keys
        self._passed = passed
        self._hashes = hashes
        self._files: dict[str, _File] = {}

    def carry(self, row: SegmentRow, known: SegmentRow | None) -> Carried:
        """Bring the file of a segment to where the original's catalogue says it is, from where the copy's does.

        Raises:
            FileNotFoundError: the original has no such file (any more).
            NotYetThere: the original is not uploaded so far.
            OSError: of either storage.
        """
        name, until = segment_name(*row[:4]), file_length(row)
        reader = self._origin.open(name)
        try:
            try:
                header, header_length = self._header(reader, name, row, known)
            except DrengineError as error:
                if error.kind is not DAMAGED:
                    raise
                return self._carry_unread(reader, name, until, error.message)
            if isinstance(self._origin, ObjectStorage) and reader.size() < until:
                raise NotYetThere(name)
            file = self._taken_up(name, row, known, header, header_length)
            begin = file.length
            fault = self._pass_on(reader, file, row, header, max(header_length, file.length))
        finally:
            reader.close()
        return Carried(until - begin, fault)

    def whole(self, row: SegmentRow) -> bytes | None:
        """All of a closed segment's file, if the original has it whole, with every hash, and as it was written.

        Raises:
            OSError: of the original's storage.
        """
        try:
            reader = self._origin.open(segment_name(*row[:4]))
        except FileNotFoundError:
            return None
        try:
            header, header_length = read_header(reader)
            data = bytearray(reader.read_at(0, file_length(row)))
            passing = PassingRecords(header, header_length, 0, self._hashed(header))
        except DrengineError:
            return None
        finally:
            reader.close()
        self._passed(len(data))
        passing.feed(data[header_length : row.committed_length])
        fault = passing.fault
        if row.state == SEALED:
            fault = fault or seal_fault(header, bytes(data[row.committed_length :]), row.length)
        is_whole = not fault and passing.whole_until == row.committed_length and len(data) == file_length(row)
        return bytes(data) if is_whole else None

    def sync(self) -> dict[str, Changes]:
        """Make what was copied durable; by file, what the transaction that commits it has to change with it."""
        changes = {}
        for name, file in self._files.items():
            if not file.is_synced:
                changes[name] = file.appender.sync()
                file.is_synced = True
        return changes

    def let_go(self, row: SegmentRow) -> None:
        """A file that grows no more."""
        if file := self._files.pop(segment_name(*row[:4]), None):
            file.appender.close()

    def close(self) -> None:
        """Let go of all files. What was not synced may be lost."""
        for file in self._files.values():
            file.appender.close()
        self._files.clear()

    def _header(
        self, reader: Reader, name: str, row: SegmentRow, known: SegmentRow | None
    ) -> tuple[SegmentHeader, int]:
        """The segment's header: from the copy, where that is what goes on."""
        if known is None or known.revision != row.revision:
            return read_header(reader)
        with suppress(FileNotFoundError):
            mine = self._copy.open(name)
            try:
                return read_header(mine)
            finally:
                mine.close()
        return read_header(reader)

    def _taken_up(
        self, name: str, row: SegmentRow, known: SegmentRow | None, header: SegmentHeader, header_length: int
    ) -> _File:
        """The copy's file, open for appending behind what is good of it."""
        if known and known.revision == row.revision:
            length, number = file_length(known), known.last_sequence - known.first_sequence + 1
        else:
            length, number = self._what_is_there(name, row, header, header_length)
        file = self._files.get(name)
        if file is None or file.length != length:
            self.let_go(row)
            appender = self._copy.resume(name, length) if length else self._created(name)
            file = self._files[name] = _File(appender, length, number)
        file.is_synced = False
        return file

    def _hashed(self, header: SegmentHeader) -> Hashed | None:
        """How hashes are compared in a segment; None where its key was forgotten, so that nobody can."""
        try:
            return Hashed(self._keys.cipher(header))
        except DrengineError as error:
            if error.kind is not SOURCE_ERASED:
                raise
            return None

    def _created(self, name: str) -> Appender:
        try:
            return self._copy.create(name)
        except FileExistsError:
            self._copy.delete(name)
            return self._copy.create(name)

    def _what_is_there(self, name: str, row: SegmentRow, header: SegmentHeader, header_length: int) -> tuple[int, int]:
        """Length and records of a file that no row names: begun before a crash, or shipped."""
        if (file := self._files.get(name)) is not None:
            return file.length, file.number
        try:
            reader = self._copy.open(name)
        except FileNotFoundError:
            return 0, 0
        try:
            expected = header.pack()
            if reader.read_at(0, len(expected)) != expected:
                return 0, 0
            passing = walk(
                reader,
                header,
                header_length,
                min(reader.size(), row.committed_length),
                self._hashed(header) if self._hashes else None,
            )
            if row.state == SEALED and passing.whole_until == row.committed_length and reader.size() >= row.length:
                tail = reader.read_at(row.committed_length, row.length - row.committed_length)
                if not seal_fault(header, tail, row.length):
                    return row.length, passing.number
            return passing.whole_until, passing.number
        finally:
            reader.close()

    def _pass_on(self, reader: Reader, file: _File, row: SegmentRow, header: SegmentHeader, checked_from: int) -> str:
        """Copy the rest; returns what is wrong with it."""
        hashed = self._hashed(header) if self._hashes else None
        passing = PassingRecords(header, checked_from, file.number, hashed)
        until, tail, fault = file_length(row), bytearray(), ""
        while file.length < until:
            data, lost = _read(reader, file.length, min(CHUNK_BYTES, until - file.length))
            fault = fault or lost
            records = data[max(checked_from - file.length, 0) : max(row.committed_length - file.length, 0)]
            passing.feed(records)
            if row.state == SEALED:
                tail += data[max(row.committed_length - file.length, 0) :]
            self._passed(len(data))
            file.appender.append(data)
            file.length += len(data)
        file.number = passing.number
        fault = fault or passing.fault
        if not fault and passing.whole_until != max(row.committed_length, checked_from):
            fault = f"record {passing.number} is cut short"
        return fault or (seal_fault(header, bytes(tail), row.length) if tail else "")

    def _carry_unread(self, reader: Reader, name: str, until: int, why: str) -> Carried:
        """Copy a file of which not even the header can be read, as it is."""
        file = self._files[name] = _File(self._created(name), 0, 0)
        while file.length < until:
            data, _ = _read(reader, file.length, min(CHUNK_BYTES, until - file.length))
            self._passed(len(data))
            file.appender.append(data)
            file.length += len(data)
        return Carried(until, why)


def _read(reader: Reader, at: int, length: int) -> tuple[bytes, str]:
    """Bytes of the original, zeros in place of those that its disk cannot give, and why."""
    try:
        data = reader.read_at(at, length)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        if length > _SECTOR_BYTES:
            parts = [_read(reader, each, min(_SECTOR_BYTES, at + length - each)) for each in _sectors(at, length)]
            return b"".join(part for part, _ in parts), next((why for _, why in parts if why), "")
        return bytes(length), f"bytes from {at} cannot be read: {error.strerror}"
    if len(data) < length:
        return data + bytes(length - len(data)), f"the file ends at {at + len(data)}"
    return data, ""


def _sectors(at: int, length: int) -> range:
    return range(at, at + length, _SECTOR_BYTES)
