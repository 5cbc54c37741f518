"""Writing a point onto the disks of a host that has no system of its own yet: from a live image, a rescue system.

It is a reversal onto disks that hold nothing of the source: what differs is fetched, each extent proved by its hash,
written, synced and read back. So it goes on where it was broken off, and ends only when every byte is equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.model.homes import NEW_HOME_UNFIT, SpareDisk, place_volumes
from drengine.model.points import PointSelector, VolumeGeometry
from drengine.wire.events import Purpose
from drengine_agent.capture.backing import Volume
from drengine_agent.errors import REVERSE_REFUSED
from drengine_agent.failback.point_reader import PointReader, session_errors
from drengine_agent.failback.reverse import Reversal, ReverseReport
from drengine_agent.ship.uplink import Uplink

TELL_SECONDS = 0.5
_BLKRRPART = 0x125F


@dataclass(frozen=True, slots=True)
class Restored:
    """What was written.

    Attributes:
        report: of the reversal.
        disks: by volume.
        unread: disks whose partitions the kernel knows as they were; they show after a reboot.
    """

    report: ReverseReport
    disks: dict[str, Path]
    unread: tuple[Path, ...]


async def restore(
    uplink: Uplink, point: str, disks: Mapping[str, Path], tell: Callable[[ReverseReport], None]
) -> Restored:
    """Make these disks equal to these volumes of a point; its others are left out. Interrupted, run it again.

    Args:
        uplink: how the source's target is reached.
        point: its id.
        disks: by the volume's name; nobody else uses them.
        tell: is told now and then how far it is.

    Raises:
        DrengineError: NEW_HOME_UNFIT, a disk is too small, or no such volume; REVERSE_REFUSED; COMMAND_REFUSED,
            the session broke: run it again; what keeps a disk from being opened; the transport's.
    """
    at = PointSelector.parse(point)
    if at.branch is None or at.sequence is None:
        raise DrengineError(REVERSE_REFUSED, f"a point is named by its id, as 1-57, not {point[:60]!r}")
    hello = uplink.hello(0, Purpose.REVERSE, at.branch, sequence=at.sequence)
    async with session_errors(), PointReader.opened(uplink, hello) as reader:
        geometry = reader.session.welcome.geometry
    with ExitStack() as stack:
        volumes = await asyncio.to_thread(_opened, geometry, disks, stack)
        run = Reversal(volumes, uplink, hello, all_volumes=False)
        telling = asyncio.create_task(_keep_telling(run, tell))
        try:
            async with session_errors():
                report = await run.run()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        tell(report)
    return Restored(report, dict(disks), tuple(each for each in disks.values() if not _read_partitions(each)))


async def _keep_telling(run: Reversal, tell: Callable[[ReverseReport], None]) -> None:
    while True:
        tell(run.report)
        await asyncio.sleep(TELL_SECONDS)


def _opened(geometry: tuple[VolumeGeometry, ...], disks: Mapping[str, Path], stack: ExitStack) -> dict[int, Volume]:
    """The disks as the volumes that they are to become."""
    known = {each.name: each for each in geometry}
    if strange := sorted(disks.keys() - known.keys()):
        raise DrengineError(NEW_HOME_UNFIT, f"the point has no volume {strange[0]!r}; there are {', '.join(known)}")
    opened: dict[int, Volume] = {}
    for name, path in disks.items():
        wanted = known[name]
        volume = Volume.open(wanted.volume, name, path, writable=True, declared=wanted.identity)
        stack.callback(volume.close)
        place_volumes([wanted], [SpareDisk(name, str(path), volume.size_bytes)], {})
        opened[wanted.volume] = volume
    return opened


def _read_partitions(disk: Path) -> bool:
    """Have the kernel read a disk's partition table anew; whether it could."""
    if not disk.is_block_device():
        return True
    with contextlib.suppress(OSError), disk.open("rb") as file:
        fcntl.ioctl(file, _BLKRRPART)
        return True
    return False
