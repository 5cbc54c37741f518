"""Block devices: behind links, in use, what the kernel tells of them, and which one it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from drengine.linux.mounts import read_mounts

Number = tuple[int, int]
"""Major and minor number: what a device is called in this boot, until another takes its place."""

BLOCK_DEVICES = Path("/sys/dev/block")


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def device_number(path: Path) -> Number:
    """The number of the block device at a path; (0, 0) if something else is there.

    Raises:
        OSError: nothing is there, or it can't be looked at.
    """
    found = path.stat()
    return (os.major(found.st_rdev), os.minor(found.st_rdev)) if stat.S_ISBLK(found.st_mode) else (0, 0)


def attribute(number: Number, name: str) -> str:
    """What the kernel tells of a device in a file such as `loop/backing_file`; empty if it tells nothing."""
    return told(BLOCK_DEVICES / "{}:{}".format(*number) / name)


def told(file: Path) -> str:
    """What the kernel tells in a file below /sys; empty if it tells nothing."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip("\n")
    except OSError:
        return ""


def disk_attribute(number: Number, name: str) -> str:
    """The same of the whole disk, also where the number is a partition's."""
    return attribute(number, f"../{name}" if attribute(number, "partition") else name)


def disk_name(number: Number) -> str:
    """The kernel's name of a device, of its disk if it is a partition; empty for what is no block device here."""
    try:
        node = (BLOCK_DEVICES / "{}:{}".format(*number)).resolve(strict=True)
    except OSError:
        return ""
    return node.parent.name if attribute(number, "partition") else node.name


def attachment(number: Number) -> str:
    """What never names two devices: number, the kernel's count of disks when this one appeared, and the boot.

    Kernels before 5.15 count no disks; there a number that is given again within one boot is not told apart.
    """
    return "{}:{} {} {}".format(*number, disk_attribute(number, "diskseq"), boot_id())


def device_instance(status: os.stat_result) -> int:
    """A number that the kernel gives to a disk when it is attached and to no other until the next boot; 0 if unknown.

    The name of a device may mean another disk a moment later; partitions have their disk's.
    """
    if not stat.S_ISBLK(status.st_mode):
        return 0
    return int(disk_attribute((os.major(status.st_rdev), os.minor(status.st_rdev)), "diskseq") or 0)


def sector_bytes(path: Path) -> int:
    """The logical sector size of the block device at a path; 0 for anything else."""
    try:
        number = device_number(path)
    except OSError:
        return 0
    return int(disk_attribute(number, "queue/logical_block_size") or 0)


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
