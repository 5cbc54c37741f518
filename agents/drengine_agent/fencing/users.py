"""Who uses a disk that is to be compared or overwritten: where it is mounted, and which services work there.

Asked only when a disk could not be had, so that whoever reads the refusal knows what to stop, and in which order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drengine.linux.devices import device_number, disk_name
from drengine.linux.mounts import Mount, read_mounts

UNITS_MAX = 12
_UNITS = (".service", ".scope")


@dataclass(frozen=True, slots=True)
class Users:
    """What is to be stopped first, then what is to be unmounted, the innermost mount first.

    Attributes:
        elsewhere: who keeps it mounted in a mount namespace of its own (a container), which no unmounting here ends.
    """

    units: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def order(self) -> str:
        """What to do, in order; empty where nothing was found."""
        parts = [f"stop {each}" for each in self.units] + [f"unmount {each}" for each in self.mounts]
        parts += [f"end {each}, which keeps it mounted in a namespace of its own" for each in self.elsewhere]
        return ", then ".join(parts)


def users_of(disk: Path) -> Users:
    """Of a block device and its partitions; of a file nothing is known."""
    try:
        number = device_number(disk)
        mounts = [each for each in read_mounts() if _is_on(each, disk_name(number))]
    except OSError:
        return Users()
    if not disk_name(number):
        return Users()
    places = sorted({str(each.at) for each in mounts}, key=lambda place: (-place.count("/"), place))
    devices = {device for place in places if (device := _device(place))}
    found = dict.fromkeys(_unit(process) for process in _processes() if _works_on(process, devices))
    away = dict.fromkeys(_unit(process) for process in _keepers(disk_name(number)))
    units, elsewhere = (tuple(unit for unit in each if unit)[:UNITS_MAX] for each in (found, away))
    return Users(units, tuple(places), elsewhere)


def _keepers(disk: str) -> Iterator[Path]:
    """One process of each other mount namespace in which the disk is mounted."""
    known = {_namespace(Path("/proc/self"))}
    for process in _processes():
        namespace = _namespace(process)
        if not namespace or namespace in known:
            continue
        known.add(namespace)
        with contextlib.suppress(OSError):
            if any(_is_on(each, disk) for each in read_mounts(process / "mountinfo")):
                yield process


def _namespace(process: Path) -> str:
    try:
        return str((process / "ns/mnt").readlink())
    except OSError:
        return ""


def _is_on(mount: Mount, disk: str) -> bool:
    number = mount.block_device()
    return bool(disk) and number is not None and disk_name(number) == disk


def _device(place: str) -> int:
    try:
        return Path(place).stat().st_dev
    except OSError:
        return 0


def _processes() -> Iterator[Path]:
    own = str(os.getpid())
    yield from (each for each in Path("/proc").iterdir() if each.name.isdigit() and each.name != own)


def _works_on(process: Path, devices: set[int]) -> bool:
    """Whether a process has a file or a directory open there, or runs from there."""
    if not devices:
        return False
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with contextlib.suppress(OSError):
            if link.stat().st_dev in devices:
                return True
    return False


def _unit(process: Path) -> str:
    """The systemd unit of a process; where it is of none, its name and number."""
    with contextlib.suppress(OSError):
        for part in reversed((process / "cgroup").read_text().strip().rpartition(":")[2].split("/")):
            if part.endswith(_UNITS):
                return part
        return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return ""
