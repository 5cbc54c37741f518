"""A source whose disk is a whole Debian: its replica, and what its agent would have told of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from drengine.model.extents import BLOCK_BYTES
from drengine.model.inventory import FileSystem, FstabLine, Interface, Inventory, Partition, Route, SourceDisk
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint, VolumeGeometry
from drengine.store.store import Store
from tests.images.debian import ADDRESS, INTERFACE
from tests.target.agent import data_batch

BATCH_BYTES = 4 << 20


def inventory(firmware: str, size_bytes: int) -> Inventory:
    """What an agent would have told of the server that the image was made on."""
    root = Partition(number=2, device="sda2", offset_bytes=65 << 20, size_bytes=max(1 << 20, size_bytes - (66 << 20)))
    first = Partition(number=1, device="sda1", offset_bytes=1 << 20, size_bytes=64 << 20)
    table = "gpt" if firmware == "uefi" else "dos"
    disk = {"device": "sda", "volume": "system", "table": table, "transport": "sata", "partitions": (first, root)}
    return Inventory(
        taken_ns=1_700_000_000_000_000_000,
        hostname="shop",
        os_id="debian",
        os_version="12",
        boot_mode=firmware,
        cpus=1,
        memory_bytes=512 << 20,
        root="sda2",
        root_chain=("sda2", "sda"),
        disks=(SourceDisk(size_bytes=size_bytes, is_root=True, **disk),),
        file_systems=(FileSystem(device="sda2", kind="ext4", mounted_at="/"),),
        fstab=(FstabLine(device="/dev/sda2", at="/", kind="ext4"),),
        interfaces=(Interface(name=INTERFACE, mac="3c:ec:ef:00:00:01", addresses=(f"{ADDRESS}/24",), driver="e1000e"),),
        routes=(Route(to="default", via="192.168.50.1", interface=INTERFACE),),
    )


def make_source(directory: Path, disk: Path, firmware: str, *, is_told: bool = True) -> RecoveryPoint:
    """A store with one point of the disk; its only one. `is_told`: its agent told what the server is made of."""
    size = disk.stat().st_size
    with Store.create(directory) as store:
        store.ensure_source("shop")
        writer = store.writer("shop", generation=1)
        writer.append_geometry(1, Mark(), (VolumeGeometry(1, "system", "disk:1", size),), generation=1)
        sequence = 1
        for writes in _batches(disk):
            sequence += 1
            writer.append_batch(sequence, Mark(), data_batch(writes), generation=1)
        writer.append_cut(sequence + 1, Mark(), Cut(1_700_000_000 * 10**9, PointKind.QUIET), generation=1)
        writer.commit(generation=1)
        writer.close()
        if is_told:
            store.keep_inventory("shop", inventory(firmware, size), generation=1)
        return store.points("shop")[0]


def point_digest(directory: Path, point: RecoveryPoint) -> str:
    """Of all that a point shows."""
    found = hashlib.sha256()
    with Store.open(directory) as store, store.view(point) as view:
        for offset in range(0, point.geometry[0].size_bytes, BATCH_BYTES):
            found.update(view.read(1, offset, min(BATCH_BYTES, point.geometry[0].size_bytes - offset)))
    return found.hexdigest()


def _batches(disk: Path) -> Iterator[list[tuple[int, bytes]]]:
    """What of a sparse file is data."""
    with disk.open("rb", buffering=0) as file:
        end = 0
        while (start := _next_data(file.fileno(), end)) is not None:
            end = -(-os.lseek(file.fileno(), start, os.SEEK_HOLE) // BLOCK_BYTES) * BLOCK_BYTES
            start -= start % BLOCK_BYTES
            for offset in range(start, end, BATCH_BYTES):
                data = os.pread(file.fileno(), min(BATCH_BYTES, end - offset), offset)
                if data.strip(b"\0"):
                    yield [(offset, data)]


def _next_data(file: int, offset: int) -> int | None:
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError:
        return None
