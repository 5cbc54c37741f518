"""What the segments know of the catalogue: its lineage and the number of its newest transaction, kept beside them.

A catalogue that was put back from a copy, or that lost its write-ahead log, is a consistent file of an earlier day.
Nothing in it says so. Therefore each transaction carries a number, its *epoch*, and whoever committed one notes the
number here before the commit is reported to anybody. A catalogue whose epoch is less than the noted one is older than
the data: it is refused, and a rebuild makes a current one from the segments. The new one has a *lineage* of its own, a
random number, so that no copy from before the rebuild is ever taken for it.

The note follows the transaction and is not synced at each commit. So it is never ahead of a catalogue that was
left alone, whatever a crash leaves; after a power cut it may be behind, which only makes it weaker evidence.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from drengine.durable import sync_directory
from drengine.ownership import open_owned
from drengine.store.names import EPOCH_NAME

EPOCH_SLOT = struct.Struct("<8sQQQ")
"""Magic, lineage, epoch, xxh3-64 of all three. Epochs alternate between two slots, so a torn write leaves the other."""
EPOCH_MAGIC = b"DREPOCH\n"
EPOCH_SLOTS = 2
_LINEAGE_BITS = 63  # SQLite's integers are signed
TURN_SECONDS = 1.0
"""For so long a note waits for another process's."""
_PAUSE_SECONDS = 0.001
_NOTE_BYTES = EPOCH_SLOT.size * EPOCH_SLOTS


class Epoch(NamedTuple):
    """Which transaction of which catalogue. Both are 0 in a catalogue of version 1."""

    lineage: int
    number: int


def first_epoch() -> Epoch:
    """Of a catalogue that is made now."""
    return Epoch(secrets.randbits(_LINEAGE_BITS), 1)


class EpochNote:
    """The note of one store, or of one partition of it; each catalogue connection has its own object."""

    def __init__(self, directory: Path, name: str = EPOCH_NAME) -> None:
        self._path = directory / name
        self._descriptor = -1
        self._writable = False

    def read(self) -> Epoch | None:
        """The newest epoch noted; None when there is no readable note."""
        try:
            data = os.pread(self._open(write=False), _NOTE_BYTES, 0)
        except OSError:
            return None
        return parse_note(data)

    def write(self, epoch: Epoch, *, sync: bool = False) -> None:
        """Note an epoch; one that is behind the noted one of its lineage changes nothing.

        A note that cannot be written only leaves weaker evidence, so it does not fail a commit that has succeeded.
        """
        with suppress(OSError):
            descriptor = self._open(write=True)
            _take_turn(descriptor)
            try:
                noted = parse_note(os.pread(descriptor, _NOTE_BYTES, 0))
                if noted is None or noted.lineage != epoch.lineage:
                    os.pwrite(descriptor, pack_slot(epoch) * EPOCH_SLOTS, 0)
                elif epoch.number > noted.number:
                    os.pwrite(descriptor, pack_slot(epoch), epoch.number % EPOCH_SLOTS * EPOCH_SLOT.size)
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            if sync:
                os.fsync(descriptor)
                sync_directory(self._path.parent)

    def remove(self) -> None:
        """Forget what was noted: the catalogue is about to be made anew.

        Raises:
            OSError: it can't be removed.
        """
        self.close()
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)

    def close(self) -> None:
        """Let go of the file; harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, *, write: bool) -> int:
        if self._descriptor < 0 or (write and not self._writable):
            flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
            descriptor = open_owned(self._path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self.close()
            self._descriptor, self._writable = descriptor, write
        return self._descriptor


def _take_turn(descriptor: int) -> None:
    """Wait for another process's note, but not for one that is stopped in the midst of it.

    Raises:
        BlockingIOError: it is.
    """
    until = time.monotonic() + TURN_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def pack_slot(epoch: Epoch) -> bytes:
    """One slot."""
    body = EPOCH_SLOT.pack(EPOCH_MAGIC, *epoch, 0)[:-8]
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def parse_note(data: bytes) -> Epoch | None:
    """The newest epoch in the slots that are intact; None when none is, or when they tell of two lineages."""
    found = set()
    for at in range(0, len(data) - EPOCH_SLOT.size + 1, EPOCH_SLOT.size):
        slot = data[at : at + EPOCH_SLOT.size]
        _, lineage, number, _ = EPOCH_SLOT.unpack(slot)
        if slot == pack_slot(Epoch(lineage, number)):
            found.add(Epoch(lineage, number))
    return max(found) if len({each.lineage for each in found}) == 1 else None
