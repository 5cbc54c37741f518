"""What is known of a conversion before any disk is looked at: whether it is needed, and whether it would be refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from drengine.conversion.devices import hardware_name
from drengine.conversion.errors import ENCRYPTED_GUEST, NO_ROOM, WINDOWS_GUEST, WRONG_FIRMWARE
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card, Machine
from drengine.model.inventory import Inventory

ROOM_BYTES_MIN = 16 << 20
"""Less is never enough for a new initramfs; how much it takes shows on the disk itself."""


def speaks_of(inventory: Inventory | None, volumes: Collection[str]) -> bool:
    """Whether an inventory is that of a server whose root disk is among these volumes.

    An agent may replicate the disks of other machines: then it tells what its own host is made of.
    """
    return inventory is not None and any(disk.is_root and disk.volume in volumes for disk in inventory.disks)


def differences(inventory: Inventory, machine: Machine, cards: Sequence[Card]) -> list[str]:
    """Why a source's disks would not simply boot on a machine; none: there is nothing to convert."""
    found = []
    transport = next((disk.transport for disk in inventory.disks if disk.is_root), "")
    if transport != machine.disk_bus:
        found.append(f"disks on {machine.disk_bus} instead of {transport or 'what is not known'}")
    names = sorted({line.device for line in inventory.fstab if hardware_name(line.device)})
    if names:
        found.append(f"{', '.join(names)} in fstab")
    known = {each.mac.lower(): set(each.addresses) for each in inventory.interfaces if each.mac}
    if any(known.get(card.mac.lower()) != set(card.addresses) for card in cards):
        found.append("other network cards or addresses")
    return found


def refusals(inventory: Inventory, machine: Machine) -> Iterator[DrengineError]:
    """What a conversion would surely fail for, as far as an inventory tells."""
    if inventory.os_id == "windows":
        yield DrengineError(WINDOWS_GUEST, f"{inventory.os_name or 'Windows'} is not converted")
    if inventory.encrypted_root:
        yield DrengineError(ENCRYPTED_GUEST, f"the root file system lies encrypted on {inventory.root}")
    if inventory.boot_mode and inventory.boot_mode != machine.firmware:
        fault = f"the source boots by {inventory.boot_mode.upper()}, and the machine has {machine.firmware.upper()}"
        yield DrengineError(WRONG_FIRMWARE, fault)
    for system in inventory.file_systems:
        if system.mounted_at in {"/", "/boot"} and system.size_bytes and system.free_bytes < ROOM_BYTES_MIN:
            fault = f"{system.mounted_at} has {system.free_bytes >> 20} MiB left, and a new initramfs takes more"
            yield DrengineError(NO_ROOM, fault)
