"""Disks with their partitions, the file systems on them, fstab, and the way from the root file system down to disks."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drengine.linux.mounts import Mount, read_mounts
from drengine.linux.partitions import Read, read_partitions
from drengine.linux.superblocks import HEAD_BYTES, superblock
from drengine.model.inventory import FileSystem, FstabLine, Partition, SourceDisk
from drengine_agent.inventory.blocks import (
    Block,
    Blocks,
    chain_of,
    disks_of,
    read_at,
    read_blocks,
    uncovered,
    volumes_of,
)
from drengine_agent.inventory.texts import number_of, printable, text_of

_ESCAPED = re.compile(r"\\([0-7]{3})")
_TRANSPORTS = (
    ("/virtio", "virtio"),
    ("/nvme", "nvme"),
    ("/session", "iscsi"),
    ("/rport-", "fc"),
    ("/end_device-", "sas"),
    ("/usb", "usb"),
    ("/ata", "sata"),
    ("/mmc_host", "mmc"),
    ("/vbd-", "xen"),
    ("/VMBUS", "hyperv"),
)
"""What stands in the path of a disk in /sys, and how the disk is reached."""


def storage_facts(root: Path, volumes: Mapping[str, Path]) -> dict[str, Any]:
    """Attributes of Inventory that concern disks. `volumes`: paths of what is replicated, by name."""
    blocks = read_blocks(root)
    replicated = volumes_of(volumes, blocks)
    mounted = _mounted(root, blocks)
    top = next((name for name, mount in mounted.items() if mount.at == Path("/")), "")
    chain = chain_of(top, blocks)
    children = {name for block in blocks.values() if block.partition for name in block.below}
    systems = [_file_system(block, mounted.get(block.name), block.name in children) for block in blocks.values()]
    found = {each.device: each for each in systems if each}
    return {
        "root": top,
        "root_chain": chain,
        "encrypted_root": any(
            blocks[name].is_encrypting or (name in found and found[name].kind == "crypto_LUKS") for name in chain
        ),
        "disks": (*_disks(blocks, replicated, chain), *_files(volumes)),
        "file_systems": tuple(_placed(each, blocks, replicated) for each in found.values()),
        "fstab": fstab_lines(text_of(root / "etc/fstab")),
    }


def fstab_lines(text: str) -> tuple[FstabLine, ...]:
    """The lines of an fstab."""
    found = []
    for line in text.splitlines():
        match [_ESCAPED.sub(lambda seen: chr(int(seen[1], 8)), word) for word in line.split()]:
            case [device, at, kind, *rest] if not device.startswith("#"):
                found.append(FstabLine(device=device, at=at, kind=kind, options=rest[0] if rest else "defaults"))
    return tuple(found)


def _mounted(root: Path, blocks: Blocks) -> dict[str, Mount]:
    """By device the place where it is mounted: a whole file system rather than a part of one, and the first of those.

    The first process's list is asked, because services have mounts of their own that are nobody else's.
    """
    mounts: list[Mount] = []
    for process in ("self", "1"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            mounts = read_mounts(root / "proc" / process / "mountinfo") or mounts
    names = {block.number: block.name for block in blocks.values()}
    found: dict[str, Mount] = {}
    for mount in sorted(mounts, key=lambda each: each.root != "/"):
        name = names.get(mount.block_device() or (0, 0))
        if name:
            found.setdefault(name, mount)
    return found


def _file_system(block: Block, mount: Mount | None, has_partitions: bool) -> FileSystem | None:
    seen = None if has_partitions and not mount else superblock(block.read(0, HEAD_BYTES))
    if seen is None and mount is None:
        return None
    kind = mount.kind if mount else seen.kind if seen else ""
    uuid, label = (seen.uuid, seen.label) if seen else ("", "")
    if mount is None:
        return FileSystem(device=block.name, kind=kind, uuid=uuid, label=label)
    size = free = 0
    with contextlib.suppress(OSError):
        told = os.statvfs(mount.at) if _is_seen(mount) else None
        size, free = (told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize) if told else (0, 0)
    return FileSystem(
        device=block.name,
        kind=kind,
        uuid=uuid,
        label=label,
        mounted_at=str(mount.at),
        size_bytes=size,
        free_bytes=free,
    )


def _is_seen(mount: Mount) -> bool:
    """Whether it is what this process sees there, which may have mounts, or a root, of its own."""
    seen = mount.at.stat().st_dev
    return (os.major(seen), os.minor(seen)) == mount.device or not mount.device[
        0
    ]  # btrfs has a number for each subvolume


def _placed(system: FileSystem, blocks: Blocks, replicated: Mapping[str, str]) -> FileSystem:
    return FileSystem(
        **{name: getattr(system, name) for name in system.__struct_fields__ if name not in ("disks", "unreplicated")},
        disks=disks_of(system.device, blocks),
        unreplicated=uncovered(system.device, blocks, replicated),
    )


def _disks(blocks: Blocks, replicated: Mapping[str, str], root_chain: tuple[str, ...]) -> tuple[SourceDisk, ...]:
    """All disks, and whatever else is replicated."""
    found = []
    for block in blocks.values():
        if not block.is_disk and block.name not in replicated:
            continue
        sector = number_of(block.at / "queue/logical_block_size") or 512
        table, partitions = _partitions(block.read, sector, block.name, blocks)
        found.append(
            SourceDisk(
                device=block.name,
                size_bytes=block.size_bytes,
                volume=replicated.get(block.name, ""),
                sector_bytes=sector,
                table=table,
                transport=_transport(block.at),
                model=printable(text_of(block.at / "device/model")),
                is_root=block.name in root_chain,
                partitions=partitions,
            )
        )
    return tuple(found)


def _files(volumes: Mapping[str, Path]) -> tuple[SourceDisk, ...]:
    """Volumes that are files."""
    found = []
    for name, path in volumes.items():
        if not path.is_file():
            continue

        def read(offset: int, length: int, path: Path = path) -> bytes:
            return read_at(path, offset, length)

        table, partitions = _partitions(read, 512, name, {})
        found.append(
            SourceDisk(device=name, size_bytes=path.stat().st_size, volume=name, table=table, partitions=partitions)
        )
    return tuple(found)


def _partitions(read: Read, sector_bytes: int, disk: str, blocks: Blocks) -> tuple[str, tuple[Partition, ...]]:
    """By the table itself, under the kernel's names; where it can't be read, by the kernel alone."""
    known = {block.partition: block for block in blocks.values() if block.partition and block.below == (disk,)}
    table, entries = read_partitions(read, sector_bytes)
    rows = [
        Partition(
            number=each.number,
            device=known[each.number].name if each.number in known else f"{disk}-part{each.number}",
            offset_bytes=each.offset_bytes,
            size_bytes=each.size_bytes,
            type=each.type,
            uuid=each.uuid,
        )
        for each in entries
    ]
    rows += [
        Partition(number=number, device=block.name, offset_bytes=block.offset_bytes, size_bytes=block.size_bytes)
        for number, block in sorted(known.items())
        if number not in {each.number for each in entries}
    ]
    return table, tuple(rows)


def _transport(at: Path) -> str:
    with contextlib.suppress(OSError):
        path = str(at.resolve())
        return next((word for part, word in _TRANSPORTS if part in path), "")
    return ""
