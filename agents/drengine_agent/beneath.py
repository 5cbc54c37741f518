"""What lies beneath a directory: the devices and files whose content changes when something is written there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from drengine.linux.mounts import read_mounts

Identity = tuple[str, int, int]
"""``("device", major, minor)`` or ``("file", st_dev, st_ino)``."""


def identity(path: Path) -> Identity:
    """The identity of a block device or a regular file.

    Raises:
        OSError: it can't be looked at.
    """
    found = path.stat()
    if stat.S_ISBLK(found.st_mode):
        return ("device", os.major(found.st_rdev), os.minor(found.st_rdev))
    return ("file", found.st_dev, found.st_ino)


def beneath(directory: Path, *, root: Path = Path("/")) -> frozenset[Identity]:
    """Everything beneath a directory, or beneath where it would be made: its file system's devices, the disks of
    partitions, the members of device mapper and md, the files of loop devices and what those lie on.

    Raises:
        OSError: it can't be looked at.
    """
    found: set[Identity] = set()
    for number in _devices_of(_existing(directory), root):
        _descend(number, root, found)
    return frozenset(found)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _devices_of(path: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Devices of the file system that holds a path; also of those whose files carry a number of their own (btrfs)."""
    number = path.stat().st_dev
    if os.major(number) != 0:
        yield os.major(number), os.minor(number)
        return
    mounts = read_mounts(root / "proc/self/mountinfo")
    named = [mount for mount in mounts if mount.device == (os.major(number), os.minor(number))]
    holding = path.resolve()
    around = sorted(
        (mount for mount in mounts if holding.is_relative_to(mount.at)), key=lambda each: len(each.at.parts)
    )
    for mount in named or around[-1:]:
        if device := mount.block_device():
            yield device


def beneath_device(number: tuple[int, int], *, root: Path = Path("/")) -> frozenset[Identity]:
    """The same for a block device: itself and everything beneath it.

    Raises:
        OSError: it can't be looked at.
    """
    found: set[Identity] = set()
    _descend(number, root, found)
    return frozenset(found)


def _descend(number: tuple[int, int], root: Path, found: set[Identity]) -> None:
    if ("device", *number) in found:
        return
    found.add(("device", *number))
    node = root / f"sys/dev/block/{number[0]}:{number[1]}"
    if not node.exists():
        return
    if (node / "partition").exists():
        _descend(_number(node.resolve().parent / "dev"), root, found)
    for member in sorted((node / "slaves").glob("*")):
        _descend(_number(member.resolve() / "dev"), root, found)
    backing = node / "loop/backing_file"
    if backing.exists():
        file = Path(backing.read_text(encoding="utf-8").rstrip("\n"))
        if file.exists():
            found.add(identity(file))
            found |= beneath(file.parent, root=root)


def _number(path: Path) -> tuple[int, int]:
    major, _, minor = path.read_text(encoding="ascii").partition(":")
    return int(major), int(minor)
