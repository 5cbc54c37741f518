"""The file systems that lie on a group's volumes, in the order in which they must be frozen."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drengine.linux.mounts import Mount, read_mounts
from drengine_agent.beneath import Identity, beneath_device, identity

UNFREEZABLE = frozenset({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "udf"})
"""The kernel has no freeze for them: an EFI partition must not forbid all cuts. As for raw devices, the proof that
nothing was written during the cut is the tracker's."""
PROCESSES = Path("/proc")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted, writable file system.

    Attributes:
        at: a path of ours to one of the places where it is mounted.
        kind: ext4, xfs...
        depth: of how many devices and files its content passes through.
    """

    at: Path
    kind: str
    depth: int


def file_systems_on(volumes: Iterable[Path], *, processes: Path = PROCESSES) -> list[FileSystem]:
    """Each writable file system that lies on any of these devices, once; what lies on another one comes first.

    A file system in a loop device's file on another file system must be frozen before that one, or it could not write
    out what it has. One that only other mount namespaces see (containers, services with mounts of their own) is
    reached through the root of a process there. A place that another mount hides is left out; so are kinds that can't
    be frozen.
    """
    wanted = frozenset(identity(path) for path in volumes)
    found: dict[tuple[int, int], FileSystem] = {}
    for mounts, root in _views(processes):
        for mount in mounts:
            # Whether the file system itself is read-only counts: a service's protection makes its own mounts so.
            if mount.device in found or mount.kind in UNFREEZABLE or "ro" in mount.super_options:
                continue
            at = root / mount.at.relative_to("/")
            below = _beneath(mount, root) if _is_at(mount.device, at) else frozenset()
            if below & wanted:
                found[mount.device] = FileSystem(at, mount.kind, len(below))
    return sorted(found.values(), key=lambda each: -each.depth)


def _views(processes: Path) -> Iterator[tuple[list[Mount], Path]]:
    """The mounts as we see them, then those of each other mount namespace, with a path to its root."""
    yield read_mounts(processes / "self/mountinfo"), Path("/")
    seen = {_namespace(processes / "self")}
    for process in sorted(
        (each for each in processes.iterdir() if each.name.isdigit()), key=lambda each: int(each.name)
    ):
        namespace = _namespace(process)
        if not namespace or namespace in seen:
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile: another one there may live
            mounts = read_mounts(process / "mountinfo")
            seen.add(namespace)
            yield mounts, process / "root"


def _namespace(process: Path) -> str:
    try:
        return os.readlink(process / "ns/mnt")  # noqa: PTH115 - no path, but a name of the kernel's
    except OSError:
        return ""


def _is_at(number: tuple[int, int], at: Path) -> bool:
    """Whether it is this file system that is seen there, by a directory. Btrfs shows a number of its own for each
    subvolume; a container has single files mounted."""
    try:
        found = at.stat()
    except OSError:
        return False
    device = os.major(found.st_dev), os.minor(found.st_dev)
    return stat.S_ISDIR(found.st_mode) and (number == device or (number[0], device[0]) == (0, 0))


def _beneath(mount: Mount, root: Path) -> frozenset[Identity]:
    device = mount.block_device(root)
    try:
        return beneath_device(device) if device else frozenset()
    except OSError:
        return frozenset()
