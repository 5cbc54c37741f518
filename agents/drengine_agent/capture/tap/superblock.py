"""The superblock of the tap: what the agent knew when it stopped, and a few numbers that outlive a SIGKILL.

::

    0      registers: u64 each, native order, in a shared mapping of the file (REGISTERS)
    4096   slot A, slot B, SLOT_BYTES each: u64 count | u32 length | u64 xxh3-64 of those and JSON | JSON

The newest valid slot counts. A register is one aligned store, so it is whole after the process is killed;
after a loss of power nobody believes the registers, because the boot id in the slot differs.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
from pathlib import Path

import msgspec
import xxhash

from drengine.model.errors import DrengineError, error_kind

JOURNAL_UNUSABLE = error_kind(
    "journal-unusable",
    74,
    "The capture journal can't be made or opened.",
    "Check that the journal's directory exists, is writable and has space for `nbd.journal`.",
)

FORMAT = 1
SLOT_BYTES = 256 << 10
UNKNOWN = (1 << 64) - 1
_REGISTER_BYTES = 4096
_SLOT = struct.Struct("<QIQ")
_SUMMED = struct.Struct("<QI")


class Register(enum.IntEnum):
    """What each register holds."""

    HEAD = 0
    """End of the last record that was written whole."""
    APPLIED = 1
    """Up to here the backing volumes have it too (HEAD, or one batch less)."""
    ACKED = 2
    """Up to here the target has it; the ring's space before it is free."""
    ORDER_FROM = 3
    """A cut is possible at or after this position; UNKNOWN while ranges are being read."""
    LOST = 4
    """1 while the journal alone can't say what changed: an unclean stop now means a rescan."""


class VolumeRecord(msgspec.Struct, frozen=True):
    """A volume as it was left."""

    volume: int
    identity: str
    size_bytes: int
    stamp: str


class Superblock(msgspec.Struct, frozen=True):
    """One slot's content.

    Attributes:
        format: FORMAT.
        epoch: the journal's 16 random bytes, in hex.
        boot_id: the boot in which this was written.
        clean: the tracker was closed: everything is on disk, the registers are right.
        capacity_bytes: size of the ring.
        base: position of the epoch's first record.
        previous: checksum of the last record (valid if clean).
        scan_reason: a rescan is due, for this reason; else empty.
        volumes: the volumes served.
    """

    format: int
    epoch: str
    boot_id: str
    clean: bool
    capacity_bytes: int
    base: int
    previous: int
    scan_reason: str
    volumes: tuple[VolumeRecord, ...]


class SuperblockFile:
    """The open file."""

    def __init__(self, path: Path) -> None:
        """Open it, making an empty one if there is none.

        Raises:
            DrengineError: JOURNAL_UNUSABLE.
        """
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._fd, 0, _REGISTER_BYTES + 2 * SLOT_BYTES)
            self._map = mmap.mmap(self._fd, _REGISTER_BYTES)
        except OSError as error:
            raise DrengineError(JOURNAL_UNUSABLE, f"{path}: {error.strerror}") from error
        self.registers = memoryview(self._map).cast("Q")
        self._count = 0

    def load(self) -> Superblock | None:
        """The newest valid slot; None if there is none."""
        found: list[tuple[int, Superblock]] = []
        for slot in (0, 1):
            raw = os.pread(self._fd, SLOT_BYTES, _REGISTER_BYTES + slot * SLOT_BYTES)
            count, length, checksum = _SLOT.unpack_from(raw)
            text = raw[_SLOT.size : _SLOT.size + length]
            if not count or checksum != _checksum(count, text):
                continue
            try:
                found.append((count, msgspec.json.decode(text, type=Superblock)))
            except msgspec.DecodeError:
                continue
        if not found:
            return None
        self._count, newest = max(found, key=lambda pair: pair[0])
        return newest if newest.format == FORMAT else None

    def is_new(self) -> bool:
        """No slot was ever written."""
        return not any(os.pread(self._fd, 2 * SLOT_BYTES, _REGISTER_BYTES))

    def save(self, superblock: Superblock) -> None:
        """Write the older slot; safe against a kill, durable after `sync`.

        Raises:
            OSError: the disk failed; the old slot still counts.
        """
        text = msgspec.json.encode(superblock)
        if len(text) > SLOT_BYTES - _SLOT.size:
            raise DrengineError(JOURNAL_UNUSABLE, f"{len(superblock.volumes)} volumes are too many for one journal")
        count = self._count + 1
        slot = _SLOT.pack(count, len(text), _checksum(count, text)) + text
        os.pwrite(self._fd, slot, _REGISTER_BYTES + count % 2 * SLOT_BYTES)
        self._count = count

    def sync(self) -> None:
        """Make slots and registers durable.

        Raises:
            OSError: it is unknown what is durable.
        """
        self._map.flush()
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of it."""
        self.registers.release()
        self._map.close()
        os.close(self._fd)


def _checksum(count: int, text: bytes) -> int:
    return xxhash.xxh3_64_intdigest(_SUMMED.pack(count, len(text)) + text)
