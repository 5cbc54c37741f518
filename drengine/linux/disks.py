"""Block devices as the kernel lists them under /sys/dev/block."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
    try:
        text = (BLOCK_DEVICES / "{}:{}".format(*number) / name).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return text.strip("\n")


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
