"""A tap on small files, a replica that follows it by the rules of tracker.py, and helpers to crash it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drengine.model.points import Mark
from drengine.nbd.export import Command, Request
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.tap.superblock import Register
from drengine_agent.capture.tap.tracker import Tap, TapOptions
from drengine_agent.capture.tracker import Changes
from tests.clock import ManualClock

SIZES = {1: 40_000, 2: 9 * 4096, 7: 1000}


def write(offset: int, data: bytes, flags: int = 0) -> Request:
    return Request(Command.WRITE, flags, 0, offset, len(data), memoryview(data))


def zero(offset: int, length: int) -> Request:
    return Request(Command.WRITE_ZEROES, 0, 0, offset, length)


def trim(offset: int, length: int) -> Request:
    return Request(Command.TRIM, 0, 0, offset, length)


class Site:
    """Files, a tap on them, and the disks' whole content after each batch (`history`)."""

    def __init__(self, path: Path, *, journal_bytes: int = 32 << 10, retry_seconds: float = 30.0) -> None:
        self.path = path
        self.clock = ManualClock()
        self.options = TapOptions(journal_bytes=journal_bytes, retry_seconds=retry_seconds)
        self.sizes = dict(SIZES)
        for number, size in self.sizes.items():
            (path / f"disk{number}").write_bytes(os.urandom(size))
        self.open()

    def open(self) -> None:
        self.volumes = [
            Volume.open(number, f"disk{number}", self.path / f"disk{number}", writable=True) for number in self.sizes
        ]
        self.tap = Tap(self.volumes, self.path / "journal", self.options, self.clock)
        self.tap.open([volume.geometry for volume in self.volumes])

    def close(self) -> None:
        self.tap.close()
        self.release()

    def crash(self) -> None:
        """What a SIGKILL leaves: the files as they are. Only the descriptors are let go."""
        self.tap._kept.close()
        self.release()

    def release(self) -> None:
        for volume in self.volumes:
            volume.close()

    def apply(self, volume: int, *requests: Request) -> set[int]:
        self.clock.advance(0.001)
        _, failed = self.tap.apply(self.tap.volumes[volume], requests)
        return failed

    def disks(self) -> dict[int, bytes]:
        return {number: (self.path / f"disk{number}").read_bytes() for number in self.sizes}

    def lost(self) -> bool:
        return bool(self.tap._registers[Register.LOST])


class Replica:
    """A target in one place: applies what a pipeline would ship, remembers what is durable."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.disks = {number: bytearray(size) for number, size in site.sizes.items()}
        self.durable = Mark()
        self.at = Mark()
        self._durable_disks = {number: bytes(disk) for number, disk in self.disks.items()}
        self.scans: list[str] = []

    def pull(self, bytes_max: int = 1 << 20) -> Changes:
        """Ask once, read and apply what is said. The reads happen here, after the answer."""
        changes = self.site.tap.changes(self.at, bytes_max=bytes_max)
        self.read(changes)
        return changes

    def read(self, changes: Changes) -> None:
        if changes.rescan_reason:
            self.scans.append(changes.rescan_reason)
            for number, disk in self.disks.items():
                disk[:] = self.site.tap.volumes[number].read(0, len(disk))
        for part in changes.ranges:
            data = self.site.tap.volumes[part.volume].read(part.offset, part.length)
            self.disks[part.volume][part.offset : part.offset + part.length] = data
        apply_writes(self.disks, changes.writes)
        self.at = changes.mark

    def commit(self) -> None:
        """All that was shipped is durable and acknowledged."""
        self.durable = self.at
        self._durable_disks = {number: bytes(disk) for number, disk in self.disks.items()}
        self.site.tap.acknowledge(self.durable)

    def lose_session(self) -> None:
        """The connection broke: the target forgets what was not durable."""
        self.at = self.durable
        for number, disk in self.disks.items():
            disk[:] = self._durable_disks[number]

    def catch_up(self, *, commit: bool = True) -> Changes:
        """Pull until a cut is possible and nothing waits."""
        for _ in range(200):
            changes = self.pull()
            if commit:
                self.commit()
            if changes.cut_ok and not changes.more:
                assert self.image() == self.site.disks()
                return changes
        raise AssertionError("the replica never caught up")

    def image(self) -> dict[int, bytes]:
        return {number: bytes(disk) for number, disk in self.disks.items()}


def apply_writes(disks: dict[int, bytearray], writes: Sequence) -> None:
    for w in writes:
        data = bytes(w.length) if w.data is None else w.data
        assert len(data) == w.length
        disks[w.volume][w.offset : w.offset + w.length] = data
