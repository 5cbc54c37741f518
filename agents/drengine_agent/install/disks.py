"""Disks that a person may want to protect, as they stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.linux.mounts import read_mounts
from drengine_agent.beneath import beneath_device

NOT_OFFERED = ("loop", "ram", "zram", "sr", "fd", "nbd", "dm-", "md")
"""Of memory or removable media; and what is stacked on others, which a person may still name."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole disk.

    Attributes:
        name: the kernel's.
        path: by which it is found: a name that lasts, where udev gives it one.
        size_bytes: its size.
        mounted: where file systems are mounted that lie on it, through partitions, LVM, LUKS and md.
    """

    name: str
    path: Path
    size_bytes: int
    mounted: tuple[str, ...]


def disks(root: Path = Path("/")) -> list[Disk]:
    """Whole disks with a medium, by name."""
    on: dict[tuple[str, int, int], list[str]] = {}
    for mount in read_mounts(root / "proc/self/mountinfo"):
        device = mount.block_device(root)
        for member in _members(device, root) if device else ():
            for each in beneath_device(member, root=root):
                on.setdefault(each, []).append(str(mount.at))
    found = []
    for disk in sorted((root / "sys/block").iterdir()):
        size_bytes = int((disk / "size").read_text()) * 512
        if not size_bytes or disk.name.startswith(NOT_OFFERED):
            continue
        places = on.get(("device", *_number(disk / "dev")), [])
        path = _lasting(disk.name, root)
        found.append(Disk(disk.name.replace("!", "-"), path, size_bytes, tuple(dict.fromkeys(places))))
    return found


def mounted_disks(root: Path = Path("/")) -> list[Disk]:
    """Those that hold mounted file systems."""
    return [each for each in disks(root) if each.mounted]


def _members(device: tuple[int, int], root: Path) -> set[tuple[int, int]]:
    """The devices of a mounted file system: btrfs may have several, of which the list of mounts names one."""
    for folder in (root / "sys/fs/btrfs").glob("*/devices"):
        members = {_number(each / "dev") for each in folder.iterdir() if (each / "dev").exists()}
        if device in members:
            return members
    return {device}


def _number(path: Path) -> tuple[int, int]:
    major, _, minor = path.read_text(encoding="ascii").partition(":")
    return int(major), int(minor)


def _lasting(name: str, root: Path) -> Path:
    """A link that udev makes from the disk's serial number; otherwise the kernel's name."""
    device = Path("/dev") / name.replace("!", "/")
    by_id = root / "dev/disk/by-id"
    links = sorted(by_id.iterdir()) if by_id.is_dir() else []
    named = [each.name for each in links if each.is_symlink() and each.readlink().name == device.name]
    return Path("/dev/disk/by-id") / named[0] if named else device
