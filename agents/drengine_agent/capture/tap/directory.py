"""The journal's directory: what the last run of the tap left behind, how far it can be believed, and how to
leave it.

::

    control   the superblock (superblock.py)
    ring      the journal (journal.py)
    dirty     dirty blocks, when a run ended cleanly without order: u64 xxh3-64 of the rest, then JSON
    (Remains)
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

from drengine.durable import replace_durably
from drengine.linux.devices import boot_id
from drengine.model.errors import DrengineError
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.tap.dirty import DirtySet
from drengine_agent.capture.tap.journal import Journal, JournalDamagedError
from drengine_agent.capture.tap.superblock import (
    FORMAT,
    JOURNAL_UNUSABLE,
    UNKNOWN,
    Register,
    Superblock,
    SuperblockFile,
    VolumeRecord,
)

_REAPPLY_BYTES = 8 << 20


class Remains(msgspec.Struct, frozen=True):
    """What must be shipped again, without order.

    Attributes:
        maps: dirty bits by volume number.
        epochs: by epoch (hex), the least position that a target's mark must have for the maps to be all it
        lacks. reason: how order was lost, a code of states.REASONS.
    """

    maps: dict[int, bytes]
    epochs: dict[str, int]
    reason: str


@dataclass(frozen=True, slots=True)
class TakenUp:
    """How a believed journal goes on: its `order_from`, or the remains of a run that ended without order."""

    order_from: int = 0
    remains: Remains | None = None


class JournalDirectory:
    """The open directory. `journal` and `registers` are the tap's to use.

    Attributes:
        doubt: why nothing of the last run can be used, a code of states.REASONS; empty if `taken_up` says
        how to go on. taken_up: see there; None when there is doubt.
    """

    def __init__(self, directory: Path, volumes: Mapping[int, Volume], capacity_bytes: int) -> None:
        """Open what is there, or make it; after a kill in this boot, prove the journal and finish its last
        batch.

        Raises:
            DrengineError: JOURNAL_UNUSABLE.
        """
        self._directory = directory
        self._volumes = volumes
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DrengineError(JOURNAL_UNUSABLE, f"{directory}: {error.strerror}") from error
        self._superblocks = SuperblockFile(directory / "control")
        self.registers = self._superblocks.registers
        superblock = self._superblocks.load()
        self.doubt = self._find_doubt(superblock)
        used = self.registers[Register.HEAD] != self.registers[Register.ACKED]
        if superblock is not None and not self.doubt and used:
            capacity_bytes = superblock.capacity_bytes
        self.journal = Journal(directory / "ring", capacity_bytes, self.registers)
        self.taken_up: TakenUp | None = None
        if superblock is not None and not self.doubt:
            try:
                self.taken_up = self._take_up(superblock)
            except (JournalDamagedError, OSError):
                self.doubt = "journal-damaged"

    def save(self, *, clean: bool, scan_reason: str) -> None:
        """Write down how things stand; durable after `sync`.

        Raises:
            OSError: the disk failed; what was written before still counts.
        """
        journal = self.journal
        records = tuple(VolumeRecord(n, v.identity, v.size_bytes, v.stamp()) for n, v in self._volumes.items())
        superblock = Superblock(
            FORMAT,
            journal.epoch.hex(),
            boot_id(),
            clean,
            journal.capacity_bytes,
            journal.base,
            journal.previous,
            scan_reason,
            records,
        )
        self._superblocks.save(superblock)

    def save_remains(self, dirty: DirtySet, epochs: Mapping[bytes, int], reason: str) -> None:
        """Leave dirty blocks for the next run, which believes them if `save(clean=True)` follows.

        Raises:
            OSError: the disk failed.
        """
        remains = Remains(dirty.dump(), {epoch.hex(): least for epoch, least in epochs.items()}, reason)
        body = msgspec.json.encode(remains)
        replace_durably(self._directory / "dirty", xxhash.xxh3_64_digest(body) + body)

    def sync(self) -> None:
        """Make what `save` wrote durable."""
        self._superblocks.sync()

    def close(self) -> None:
        """Let go of the files."""
        self.journal.close()
        self._superblocks.close()

    def _find_doubt(self, superblock: Superblock | None) -> str:
        if superblock is None:
            return "epoch-changed" if self._superblocks.is_new() else "journal-damaged"
        known = {record.volume: record for record in superblock.volumes}
        before = {number: (record.identity, record.size_bytes) for number, record in known.items()}
        if before != {number: (v.identity, v.size_bytes) for number, v in self._volumes.items()}:
            return "geometry-changed"
        same_boot = superblock.boot_id == boot_id()
        if superblock.clean:
            if all(known[number].stamp == volume.stamp() for number, volume in self._volumes.items()):
                return ""
            return "changed-outside" if same_boot else "rebooted"
        if not same_boot:
            return "rebooted"
        return (superblock.scan_reason or "unclean-stop") if self.registers[Register.LOST] else ""

    def _take_up(self, superblock: Superblock) -> TakenUp:
        epoch, base = bytes.fromhex(superblock.epoch), superblock.base
        head, acked = self.registers[Register.HEAD], self.registers[Register.ACKED]
        if self.registers[Register.LOST]:  # and yet closed cleanly
            return TakenUp(remains=self._load_remains())
        if superblock.clean:
            self.journal.resume(epoch, base, superblock.previous, head=head, acked=acked)
        else:
            head = self.journal.recover(epoch, base, head=head, acked=acked)
            self._reapply(max(self.registers[Register.APPLIED], acked), head)
        order_from = self.registers[Register.ORDER_FROM]
        return TakenUp(order_from=head if order_from == UNKNOWN else order_from)

    def _load_remains(self) -> Remains:
        raw = (self._directory / "dirty").read_bytes()
        if xxhash.xxh3_64_digest(raw[8:]) != raw[:8]:
            raise JournalDamagedError("the dirty blocks left by the last run fail their checksum")
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(raw[8:], type=Remains)
        raise JournalDamagedError("the dirty blocks left by the last run can't be read")

    def _reapply(self, start: int, end: int) -> None:
        while start < end:
            writes, start, _ = self.journal.read(start, end, _REAPPLY_BYTES)
            for write in writes:
                volume = self._volumes[write.volume]
                if write.data is None:
                    volume.zero(write.offset, write.length)
                else:
                    volume.write(write.offset, write.data)
        self.journal.applied(end)
