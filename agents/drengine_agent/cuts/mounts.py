"""The file systems that lie on a group's volumes, in the order in which they must be frozen."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from drengine_agent.capture.beneath import Identity, beneath, identity

UNFREEZABLE = frozenset({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "udf"})
"""The kernel has no freeze for them: an EFI partition must not forbid all cuts. As for raw devices, the proof that
nothing was written during the cut is the tracker's."""
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted, writable file system.

    Attributes:
        at: one of the places where it is mounted.
        kind: ext4, xfs...
        depth: of how many devices and files its content passes through.
    """

    at: Path
    kind: str
    depth: int


def file_systems_on(volumes: Iterable[Path], *, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[FileSystem]:
    """Each writable file system that lies on any of these devices, once; what lies on another one comes first.

    A file system in a loop device's file on another file system must be frozen before that one, or it could not write
    out what it has. A place that another mount hides is left out; so are kinds that can't be frozen.
    """
    wanted = frozenset(identity(path) for path in volumes)
    found: dict[str, FileSystem] = {}
    for line in mountinfo.read_text(errors="replace").splitlines():
        fields = line.split()
        end = fields.index("-")
        number, at, kind = fields[2], Path(_unescaped(fields[4])), fields[end + 1]
        # Whether the file system itself is read-only counts: a service's protection makes its own mounts so.
        if number in found or kind in UNFREEZABLE or "ro" in fields[end + 3].split(","):
            continue
        below = _beneath(at) if _is_at(number, at) else frozenset()
        if below & wanted:
            found[number] = FileSystem(at, kind, len(below))
    return sorted(found.values(), key=lambda each: -each.depth)


def _is_at(number: str, at: Path) -> bool:
    """Whether it is this file system that is seen there. Btrfs shows a number of its own for each subvolume."""
    try:
        found = at.stat().st_dev
    except OSError:
        return False
    return number == f"{os.major(found)}:{os.minor(found)}" or (number.startswith("0:") and os.major(found) == 0)


def _beneath(at: Path) -> frozenset[Identity]:
    try:
        return beneath(at)
    except OSError:
        return frozenset()


def _unescaped(text: str) -> str:
    for written, meant in _ESCAPES.items():
        text = text.replace(written, meant)
    return text
