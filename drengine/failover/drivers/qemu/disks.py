"""The machine's disks: block nodes over NBD, and the devices that the guest sees."""

from __future__ import annotations

import json
from typing import Any

from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.move import MovingDisk
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.blockdev import nbd_node

_SERIAL_CHARACTERS = 20
_SATA_PORTS = 6
_DEVICES = {"virtio": "virtio-blk-pci", "nvme": "nvme", "sata": "ide-hd", "scsi": "scsi-hd"}
PAUSES = {"virtio", "sata", "scsi"}
"""Buses on which a failed request can pause the machine. The others' disks stay on their hydrators."""


def disk_arguments(request: LaunchRequest, settings: QemuSettings) -> list[str]:
    """QEMU's arguments for all disks, in the order in which they boot.

    Raises:
        DrengineError: LAUNCH_SETTINGS, a disk can't be on this bus. NBD_CLIENT, a URI is none.
    """
    disks = in_order(request, settings)
    arguments = _controllers(settings.disk_bus, len(disks))
    serials = serial_numbers([disk.volume for disk in disks])
    for number, disk in enumerate(disks):
        node = {**nbd_node(disk.uri), "node-name": _node(number), "discard": "unmap", "detect-zeroes": "unmap"}
        if settings.tls_directory:
            node["tls-creds"] = "tls"
        device: dict[str, Any] = {"driver": _DEVICES[settings.disk_bus], "id": _device(number), "drive": _node(number)}
        device |= _place(settings.disk_bus, number)
        device |= {"serial": serials[number], "bootindex": number + 1}
        if request.hydrate and settings.disk_bus in PAUSES:
            node["reconnect-delay"] = 0  # the machine is paused instead, and goes on when there is a hydrator again
            device |= {"werror": "stop", "rerror": "stop"}
        if disk.sector_bytes != SECTOR_BYTES:
            if settings.disk_bus == "sata":
                fault = f"volume {disk.volume} has sectors of {disk.sector_bytes} bytes, which disk_bus sata can't have"
                raise DrengineError(LAUNCH_SETTINGS, f"settings of driver qemu: {fault}")
            device |= {"logical_block_size": disk.sector_bytes, "physical_block_size": disk.sector_bytes}
        arguments += ["-blockdev", json.dumps(node), "-device", json.dumps(device)]
    return arguments


def moving_disks(request: LaunchRequest, settings: QemuSettings) -> list[MovingDisk]:
    """What the mover knows of them."""
    stays = "" if settings.disk_bus in PAUSES else f"disk_bus {settings.disk_bus} can't pause the machine"
    return [
        MovingDisk(volume=disk.volume, device=_device(number), node=_node(number), uri=disk.uri, stays=stays)
        for number, disk in enumerate(in_order(request, settings))
    ]


def in_order(request: LaunchRequest, settings: QemuSettings) -> list[Disk]:
    """The disk that boots comes first."""
    first = settings.boot or (request.disks[0].volume if request.disks else "")
    return sorted(request.disks, key=lambda disk: disk.volume != first)


def serial_numbers(volumes: list[str]) -> list[str]:
    """What the guest knows its disks by: the volume's name, as far as it has room, and never twice the same."""
    short = [volume[:_SERIAL_CHARACTERS] for volume in volumes]
    return [
        serial if short.count(serial) == 1 else f"{serial[: _SERIAL_CHARACTERS - 4]}-{number}"
        for number, serial in enumerate(short)
    ]


def _controllers(bus: str, disks: int) -> list[str]:
    if bus == "scsi":
        return ["-device", json.dumps({"driver": "virtio-scsi-pci", "id": "scsi"})]
    if bus == "sata":
        needed = range(-(-disks // _SATA_PORTS))
        made = [["-device", json.dumps({"driver": "ich9-ahci", "id": f"sata{number}"})] for number in needed]
        return [argument for each in made for argument in each]
    return []


def _place(bus: str, number: int) -> dict[str, Any]:
    """Where on its bus a disk is."""
    if bus == "scsi":
        return {"bus": "scsi.0", "scsi-id": number}
    if bus == "sata":
        return {"bus": f"sata{number // _SATA_PORTS}.{number % _SATA_PORTS}"}
    return {}


def _node(number: int) -> str:
    return f"disk{number}"


def _device(number: int) -> str:
    return f"device{number}"
