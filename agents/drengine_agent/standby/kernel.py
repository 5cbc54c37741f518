"""Disks by the kernel's NBD driver. Which /dev/nbdN is whose tells the process that holds it: it bears a mark."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from drengine.linux.devices import told
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdAddress
from drengine.process import end_marked, find_marked, start_marked
from drengine_agent.standby.disk import AttachedDisk, flush_unused
from drengine_agent.standby.errors import STANDBY_FAILED
from drengine_agent.standby.tools import MARK, run_tool

BLOCKS = Path("/sys/block")
READY_SECONDS = 15.0
GRACE_SECONDS = 15.0
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class KernelDisk(AttachedDisk):
    """`kernel`"""

    def attach(self, deadline: float) -> Path:
        if found := self.device():
            return found
        end_marked(MARK, self._value, self.directory, grace_seconds=0.0)  # one that holds no device
        sector_bytes = self.sector_bytes()
        for free in (each for each in sorted(BLOCKS.glob("nbd*")) if not told(each / "pid")):
            said = self._connect(Path("/dev") / free.name, sector_bytes)
            if found := self.device():
                return found
            if not told(free / "pid"):  # else somebody else was faster
                raise DrengineError(STANDBY_FAILED, f"nbd-client: {said}")
        raise DrengineError(STANDBY_FAILED, "there is no free /dev/nbdN; load the module nbd, or attach by fuse")

    def detach(self) -> None:
        if device := self.device():
            flush_unused(device)
            run_tool("nbd-client", "-d", device)
        end_marked(MARK, self._value, self.directory, grace_seconds=GRACE_SECONDS)

    def device(self) -> Path | None:
        processes = set(map(str, find_marked(MARK, self._value, self.directory)))
        held = (each.name for each in BLOCKS.glob("nbd*") if told(each / "pid") in processes)
        return next((Path("/dev") / name for name in held), None) if processes else None

    @property
    def _value(self) -> str:
        return f"{self.instance}/{self.volume}"

    def _connect(self, device: Path, sector_bytes: int) -> str:
        """Try to, and return what nbd-client said."""
        address, output = NbdAddress.parse(self.uri), self.directory / f"{self.volume}.nbd"
        # Beyond this host a server of ours speaks TLS for it.
        where = ["-unix", address.place] if isinstance(address.place, str) else [str(each) for each in address.place]
        # By netlink no process would stay, and it would not connect again when its server was away for a moment.
        options = ["-name", address.export, "-nonetlink", "-persist", "-nofork", "-block-size", str(sector_bytes)]
        output.write_bytes(b"")
        argv = ["nbd-client", *where, str(device), *options]
        start_marked(argv, MARK, self._value, output=output, directory=self.directory)
        deadline = time.monotonic() + READY_SECONDS
        while not self.device() and find_marked(MARK, self._value, self.directory):
            if time.monotonic() > deadline:
                end_marked(MARK, self._value, self.directory, grace_seconds=0.0)
            time.sleep(LOOK_SECONDS)
        return output.read_text(errors="replace").strip()
