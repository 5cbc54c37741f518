"""A disk whose write cache is lost with its server, and initiators that look at it over iSCSI."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drengine.nbd.export import FLAG_FUA, Command, Complete, Export, ExportInfo, Peer, Reply, Request
from tests.nbd.files import served
from tests.system.disks import skip_unless_disks_can_be_attached

DISK_BYTES = 16 << 20
INITIATOR = "iqn.1993-08.org.debian:01:tester"
QEMU_ISCSI = tuple(Path("/usr/lib").glob("*/qemu/block-iscsi.so"))


def skip_unless_iscsi_can_be_served() -> None:
    """Say aloud what is missing."""
    skip_unless_disks_can_be_attached()
    missing = [tool for tool in ("tgtd", "iscsi-ls", "qemu-io") if shutil.which(tool) is None]
    if missing or not QEMU_ISCSI:
        pytest.skip(f"not installed: {', '.join(missing) or 'qemu-block-extra'}")


@dataclass
class VolatileDisk:
    """A disk with a write cache: what no flush covered is not durable.

    Attributes:
        durable: what would be left if its server died now.
        commands: of all requests, in order.
    """

    sector_bytes: int = 512
    durable: bytearray = field(default_factory=lambda: bytearray(DISK_BYTES))
    cached: bytearray = field(default_factory=lambda: bytearray(DISK_BYTES))
    commands: list[Command] = field(default_factory=list)

    def crash(self) -> None:
        """Its server has died: the cache is lost."""
        self.cached[:] = self.durable

    def obey(self, request: Request) -> Reply:
        command, end = Command(request.command), request.offset + request.length
        self.commands.append(command)
        if command == Command.READ:
            return Reply(request, 0, bytes(self.cached[request.offset : end]))
        if command == Command.WRITE:
            self.cached[request.offset : end] = bytes(request.data or b"")
        elif command in (Command.TRIM, Command.WRITE_ZEROES):
            self.cached[request.offset : end] = bytes(request.length)
        if command == Command.FLUSH or request.flags & FLAG_FUA:
            self.durable[:] = self.cached
        return Reply(request)


class VolatileExport:
    """One opening of the disk."""

    inline = True

    def __init__(self, disk: VolatileDisk) -> None:
        self._disk = disk
        self.info = ExportInfo("disk", DISK_BYTES, sector_bytes=disk.sector_bytes)

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        return [self._disk.obey(request) for request in requests]

    async def handle(self, request: Request) -> Reply:
        raise NotImplementedError

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(length, 0)]

    def close(self) -> None:
        """Nothing is held."""


class VolatileProvider:
    """Serves one disk."""

    def __init__(self, disk: VolatileDisk) -> None:
        self._disk = disk

    async def names(self, peer: Peer) -> list[str]:
        return ["disk"]

    async def open(self, name: str, peer: Peer) -> Export:
        return VolatileExport(self._disk)


@contextmanager
def serving(disk: VolatileDisk, socket: Path) -> Iterator[str]:
    """Its NBD URI; served from a thread of this process."""
    with served(VolatileProvider(disk), socket) as uri:
        yield uri


@dataclass(frozen=True)
class Initiator:
    """One that logs in as somebody."""

    portal: str
    target: str
    name: str = INITIATOR
    user: str = ""
    secret: str = ""
    inside: tuple[str, ...] = ()

    def io(self, *commands: str, lun: int = 1, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """QEMU's initiator carries out commands of qemu-io, past any cache of its own."""
        credentials = {"user": self.user, "password-secret": "chap"} if self.user else {}
        node = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": self.portal,
            "target": self.target,
            "lun": lun,
            "initiator-name": self.name,
            "timeout": 10,
            **credentials,
        }
        argv = [*self.inside, "qemu-io", "--object", f"secret,id=chap,data={self.secret}"] if self.user else ["qemu-io"]
        for command in commands:
            argv += ["-c", command]
        argv += ["-t", "none", *flags, "-d", "unmap", f"json:{json.dumps({'driver': 'raw', 'file': node})}"]
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=60)

    def does(self, *commands: str, **options: Any) -> str:
        """As `io`; all of it works."""
        done = self.io(*commands, **options)
        assert done.returncode == 0, f"{commands}: {done.stdout}{done.stderr}"
        assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout

    def ask(self, tool: str, *arguments: str, lun: int = 1) -> subprocess.CompletedProcess[str]:
        """One of libiscsi's tools; `lun` 0: it is about the portal."""
        who = f"{self.user}%{self.secret}@" if self.user else ""
        url = f"iscsi://{who}{self.portal}" + (f"/{self.target}/{lun}" if lun else "")
        return self.ask_url(tool, *arguments, url)

    def ask_url(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same, about another URL."""
        argv = [*self.inside, tool, "-i", self.name, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=60)
