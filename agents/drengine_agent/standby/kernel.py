"""Disks by the kernel's NBD driver. A note says which /dev/nbdN is whose, and in which boot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.durable import replace_durably
from drengine.linux.devices import boot_id
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdAddress
from drengine_agent.standby.disk import AttachedDisk, flush_unused
from drengine_agent.standby.errors import STANDBY_FAILED
from drengine_agent.standby.tools import run_tool

BLOCKS = Path("/sys/block")


@dataclass(frozen=True, slots=True)
class KernelDisk(AttachedDisk):
    """`kernel`"""

    def attach(self, deadline: float) -> Path:
        if found := self.device():
            return found
        free = [each for each in sorted(BLOCKS.glob("nbd*")) if not (each / "pid").exists()]
        if not free:
            raise DrengineError(STANDBY_FAILED, "there is no free /dev/nbdN; load the module nbd, or attach by fuse")
        device = Path("/dev") / free[0].name
        replace_durably(self._note, f"{device}\n{boot_id()}".encode())  # first: what is not noted is never let go of
        # By netlink it would not connect again when the target was away for a moment.
        options = ("-nonetlink", "-persist", "-block-size", str(self.sector_bytes()))
        name = NbdAddress.parse(self.uri).export
        try:
            run_tool("nbd-client", *self._server(), device, "-name", name, *options)
        except DrengineError:
            self._note.unlink()
            raise
        return device

    def detach(self) -> None:
        if device := self.device():
            flush_unused(device)
            run_tool("nbd-client", "-d", device)

    def device(self) -> Path | None:
        try:
            device, boot = self._note.read_text().split("\n")
        except (OSError, ValueError):
            return None
        connected = boot == boot_id() and (BLOCKS / Path(device).name / "pid").exists()
        return Path(device) if connected else None

    @property
    def _note(self) -> Path:
        return self.directory / f"{self.volume}.nbd"

    def _server(self) -> list[str]:
        """Of whom nbd-client shall ask it: beyond this host a hydrator of ours speaks TLS for it."""
        place = NbdAddress.parse(self.uri).place
        return ["-unix", place] if isinstance(place, str) else [place[0], str(place[1])]
