"""A helper whose disks are real: loop devices, shown as its kernel would show the volumes that are attached to it.

`python -m tests.failover.drivers.ec2.helper CONFIG BLOCKS` is its agent, as a process.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

from drengine.telemetry.logs import setup_logging
from drengine_agent.standby.config import load_standby_config
from drengine_agent.standby.host import serve_standby
from tests.failover.drivers.ec2.site import Network
from tests.failover.drivers.ec2.standin import Request
from tests.linux.loops import loop_device


class HelperDisks:
    """What the volumes' contents lie on, and the kernel's list of disks (`blocks`) of the helper."""

    def __init__(self, site: Network, folder: Path, disks: ExitStack, volume_bytes: int) -> None:
        self._site = site
        self._volume_bytes = volume_bytes
        self._folder = folder
        self._disks = disks
        self._devices: dict[str, Path] = {}
        self.blocks = folder / "block"
        self.blocks.mkdir()

    def device(self, volume: str) -> Path:
        """What a volume's content lies on."""
        if volume not in self._devices:
            image = self._folder / f"{volume}.img"
            self._devices[volume] = self._disks.enter_context(loop_device(image, self._volume_bytes))
        return self._devices[volume]

    def show(self) -> None:
        """List what is attached to the helper now."""
        for disk in self.blocks.glob("*/device/serial"):
            disk.unlink()
        for volume in list(self._site.cloud.backend.volumes.values()):
            if volume.attachment is not None and volume.attachment.instance.id == self._site.helper:
                place = self.blocks / self.device(volume.id).name / "device"
                place.mkdir(parents=True, exist_ok=True)
                (place / "serial").write_text(f"{volume.id.replace('-', '')}\n")

    def watch(self, request: Request, after: bool) -> None:
        """Whatever EC2 was asked, before its answer is given."""
        if after and request.action in ("AttachVolume", "DetachVolume"):
            self.show()


if __name__ == "__main__":
    setup_logging(level="info", form="text")
    asyncio.run(serve_standby(load_standby_config(Path(sys.argv[1])), blocks=Path(sys.argv[2])))
