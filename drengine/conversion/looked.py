"""How a server boots of which no agent told: by the first sectors of its disks, without anything of it being mounted.

An older agent tells no inventory, and a source that was registered by hand has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from drengine.conversion.devices import ESP
from drengine.linux.partitions import Read, read_partitions
from drengine.model.inventory import Inventory, SourceDisk

_ESP_TYPES = {ESP, "ef"}
_CODE_BYTES = 440
_GRUB = b"GRUB"


@dataclass(frozen=True, slots=True)
class LookedDisk:
    """A disk that is looked at."""

    volume: str
    size_bytes: int
    sector_bytes: int
    read: Read


def inventory_of_disks(disks: Iterable[LookedDisk]) -> Inventory | None:
    """The disk that the server boots from, and how; None: none of them boots.

    One that GRUB's BIOS part starts does so on any machine, also if it could by UEFI as well.
    """
    found = [(disk, *_boots(disk)) for disk in disks]
    for mode in ("grub", "uefi", "bios"):
        booted = next((disk for disk, modes, _ in found if mode in modes), None)
        if booted:
            tables = (
                SourceDisk(
                    device=disk.volume,
                    volume=disk.volume,
                    size_bytes=disk.size_bytes,
                    sector_bytes=disk.sector_bytes,
                    table=table,
                    is_root=disk is booted,
                )
                for disk, _, table in found
            )
            return Inventory(taken_ns=0, boot_mode="uefi" if mode == "uefi" else "bios", disks=tuple(tables))
    return None


def _boots(disk: LookedDisk) -> tuple[frozenset[str], str]:
    """By what a disk can start (`grub`, `uefi`, `bios`), and its kind of partition table."""
    partitions, code = read_partitions(disk.read, disk.sector_bytes), disk.read(0, _CODE_BYTES)
    ways = {
        "grub": _GRUB in code,
        "uefi": any(each.type in _ESP_TYPES for each in partitions.entries),
        "bios": any(code) and bool(partitions.entries),
    }
    return frozenset(way for way, is_there in ways.items() if is_there), partitions.table
