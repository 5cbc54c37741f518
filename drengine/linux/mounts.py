"""The kernel's list of mounts, as one process sees it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OWN_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_SETATTR, _NO_LINKS, _EMPTY_PATH = 442, 0x200000, 0x1000
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        number: of the mount, as `mnt_id` in /proc/PID/fdinfo.
        parent: number of the mount that it lies on.
        device: major and minor number of the file system; major 0 where it has no block device of that number.
        root: which directory of the file system is shown.
        at: where.
        kind: ext4, xfs...
        source: what was mounted, as it was named then.
        super_options: of the file system itself, whoever mounted it.
    """

    number: int
    parent: int
    device: tuple[int, int]
    root: str
    at: Path
    kind: str
    source: str
    super_options: tuple[str, ...]

    def block_device(self, root: Path = Path("/")) -> tuple[int, int] | None:
        """The block device that was mounted; btrfs shows a number of its own, so there its source is looked at.

        Args:
            root: of the process whose list it is.
        """
        if self.device[0]:
            return self.device
        if not self.source.startswith("/"):
            return None
        try:
            found = (root / self.source.lstrip("/")).stat().st_rdev
        except OSError:
            return None
        return (os.major(found), os.minor(found)) if found else None


def read_mounts(path: Path = OWN_MOUNTS) -> list[Mount]:
    """All mounts, in the kernel's order.

    Raises:
        OSError: the list can't be read.
    """
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [_parsed(line) for line in lines]


def mount_at(place: Path, mounts: Iterable[Mount]) -> Mount | None:
    """What is seen at a place without links: the topmost mount there, or None. Nothing but the list is asked."""
    there = {mount.number: mount for mount in mounts if mount.at == place}
    for mount in list(there.values()):
        if mount.parent != mount.number:
            there.pop(mount.parent, None)
    return next(iter(there.values()), None)


def _parsed(line: str) -> Mount:
    fields = line.split(" ")
    kind = fields.index("-", 6) + 1
    major, _, minor = fields[2].partition(":")
    return Mount(
        number=int(fields[0]),
        parent=int(fields[1]),
        device=(int(major), int(minor)),
        root=_unescaped(fields[3]),
        at=Path(_unescaped(fields[4])),
        kind=fields[kind],
        source=_unescaped(fields[kind + 1]),
        super_options=tuple(fields[kind + 2].split(",")) if len(fields) > kind + 2 else (),
    )


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def follow_no_links(place: Path) -> None:
    """Have no process follow symbolic links on what is mounted there (mount_setattr(2), Linux 5.14).

    Raises:
        OSError: the kernel can't.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = (ctypes.c_uint64 * 4)(_NO_LINKS, 0, 0, 0)  # struct mount_attr: set, clear, propagation, userns
    descriptor = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = ctypes.c_size_t(ctypes.sizeof(wanted))
        if libc.syscall(_MOUNT_SETATTR, descriptor, b"", _EMPTY_PATH, ctypes.byref(wanted), size):
            error = ctypes.get_errno()
            raise OSError(error, f"links can't be refused (nosymfollow): {os.strerror(error)}")
    finally:
        os.close(descriptor)
