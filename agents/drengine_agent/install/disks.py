"""Disks that a person may want to protect, as they stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.linux.mounts import read_mounts

NOT_OFFERED = ("loop", "ram", "zram", "sr", "fd", "nbd", "dm-", "md")
"""Of memory or removable media; and what is stacked on others, which a person may still name."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole disk.

    Attributes:
        name: the kernel's.
        size_bytes: its size.
        mounted: where file systems of it, or of its partitions, are mounted.
    """

    name: str
    size_bytes: int
    mounted: tuple[str, ...]


def disks(root: Path = Path("/")) -> list[Disk]:
    """Whole disks with a medium, by name."""
    mounts: dict[str, list[str]] = {}
    for mount in read_mounts(root / "proc/self/mountinfo"):
        mounts.setdefault("{}:{}".format(*mount.device), []).append(str(mount.at))
    found = []
    for disk in sorted((root / "sys/block").iterdir()):
        size_bytes = int((disk / "size").read_text()) * 512
        if not size_bytes or disk.name.startswith(NOT_OFFERED):
            continue
        numbers = [each.read_text().strip() for each in (disk / "dev", *disk.glob(f"{disk.name}*/dev"))]
        on = tuple(dict.fromkeys(place for number in numbers for place in mounts.get(number, ())))
        found.append(Disk(disk.name, size_bytes, on))
    return found
