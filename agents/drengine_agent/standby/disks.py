"""Which kind of disk each way makes, and what mounting them asks about it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from drengine.control.attach import ISCSI, AttachOrder
from drengine.linux.devices import Number, disk_attribute
from drengine.model.errors import DrengineError
from drengine_agent.standby.disk import AttachedDisk
from drengine_agent.standby.errors import STANDBY_FAILED
from drengine_agent.standby.initiator import IscsiDisk, is_lun_of
from drengine_agent.standby.kernel import KernelDisk
from drengine_agent.standby.looped import CopyDisk, FuseDisk
from drengine_agent.standby.ways import COPY, FUSE, KERNEL

PARTITION_SECONDS = 5.0
LOOK_SECONDS = 0.05
_KINDS: Mapping[str, type[AttachedDisk]] = {KERNEL: KernelDisk, FUSE: FuseDisk, COPY: CopyDisk}


def attached_disks(order: AttachOrder, uris: Mapping[str, str], directory: Path, way: str) -> list[AttachedDisk]:
    """The disks of an order, by volume at these NBD URIs, attached or to be in this way."""
    made: list[AttachedDisk] = []
    for volume, uri in uris.items():
        if way == ISCSI:
            lun = order.luns.get(volume)
            made.append(IscsiDisk(order.instance, volume, uri, directory, order.isolated, lun))
        else:
            made.append(_KINDS[way](order.instance, volume, uri, directory, order.isolated))
    return made


def partition_of(device: Path, number: int) -> Path:
    """What the kernel calls a partition of a disk; 0: the disk."""
    between = "p" if device.name[-1].isdigit() else ""
    return device.with_name(f"{device.name}{between}{number}") if number else device


def wait_for_partition(device: Path, number: int) -> Path:
    """A partition, which a disk that was just attached may not have yet.

    Raises:
        DrengineError: STANDBY_FAILED, it has none of this number.
    """
    partition, deadline = partition_of(device, number), time.monotonic() + PARTITION_SECONDS
    while not partition.exists():
        if time.monotonic() > deadline:
            raise DrengineError(STANDBY_FAILED, f"{device} has no partition {number}")
        os.close(os.open(device, os.O_RDONLY | os.O_CLOEXEC))  # the NBD driver reads the table when it is opened
        time.sleep(LOOK_SECONDS)
    return partition


def is_attached(number: Number, instances: Path) -> bool:
    """Whether a device, or the disk of a partition, is one that a recovery host attached.

    Args:
        number: of the device.
        instances: where the host has its instances' directories, without links.
    """
    if disk_attribute(number, "pid"):  # only network block devices have one
        return True
    backing = disk_attribute(number, "loop/backing_file")
    return (bool(backing) and Path(backing).is_relative_to(instances)) or is_lun_of(number, instances)
