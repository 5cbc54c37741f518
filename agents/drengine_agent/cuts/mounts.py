"""The file systems that lie on a group's volumes, in the order in which they must be frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from drengine_agent.capture.beneath import Identity, beneath, identity

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
    out what it has. One that can't be looked at (its place is hidden by another mount) is left out.
    """
    wanted = frozenset(identity(path) for path in volumes)
    found: dict[str, FileSystem] = {}
    for line in mountinfo.read_text(errors="replace").splitlines():
        fields = line.split()
        end = fields.index("-")
        number, at, kind = fields[2], Path(_unescaped(fields[4])), fields[end + 1]
        if number in found or "ro" in fields[5].split(",") or "ro" in fields[end + 3].split(","):
            continue
        below = _beneath(at)
        if below & wanted:
            found[number] = FileSystem(at, kind, len(below))
    return sorted(found.values(), key=lambda each: -each.depth)


def _beneath(at: Path) -> frozenset[Identity]:
    try:
        return beneath(at)
    except OSError:
        return frozenset()


def _unescaped(text: str) -> str:
    for written, meant in _ESCAPES.items():
        text = text.replace(written, meant)
    return text
