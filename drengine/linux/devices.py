"""Block devices: behind links, in use, and which one it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from drengine.linux.mounts import read_mounts


def device_behind(path: Path) -> Path:
    """The block device that a link such as ``/dev/disk/by-id/...`` leads to; any other path as it is.

    People name disks by links because the devices' own names change. A link to anything else is not followed: what it
    leads to was not named.
    """
    return path.resolve() if path.is_symlink() and path.is_block_device() else path


def is_mounted(device: os.stat_result) -> bool:
    """Whether a block device is mounted where this process can see it."""
    number = os.major(device.st_rdev), os.minor(device.st_rdev)
    return any(mount.block_device() == number for mount in read_mounts())


def device_instance(status: os.stat_result) -> int:
    """A number that the kernel gives to a disk when it is attached and to no other until the next boot; 0 if unknown.

    The name of a device may mean another disk a moment later; partitions have their disk's.
    """
    if not stat.S_ISBLK(status.st_mode):
        return 0
    place = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    for folder in (place, place.resolve().parent):
        try:
            return int((folder / "diskseq").read_text())
        except (OSError, ValueError):
            continue
    return 0
