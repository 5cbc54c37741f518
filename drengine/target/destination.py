"""Where a restore may write, and how a file gets its name."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shlex
import stat
from pathlib import Path

from drengine.linux.devices import is_mounted, sector_bytes
from drengine.linux.identity import evidence_in, evidence_of, is_same
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.model.sectors import SECTOR_BYTES
from drengine.target.errors import DESTINATION_EXISTS, DESTINATION_REFUSED, DESTINATION_SMALL

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def check_destination(
    destination: Path, volume: VolumeGeometry, store: Path, *, overwrite: bool = False, write_device: bool = False
) -> None:
    """Refuse what must not be written, before anything is.

    Args:
        destination: a file, or a block device itself.
        overwrite: a file that is there may be replaced.
        write_device: a block device may be written.

    Raises:
        DrengineError: DESTINATION_REFUSED (inside the store, a link, mounted or in use, the source's own volume, not a
            file or device), DESTINATION_EXISTS, DESTINATION_SMALL.
    """
    folder = destination.parent
    if destination.is_symlink():
        raise DrengineError(
            DESTINATION_REFUSED,
            f"{destination} is a symbolic link, and not to a block device",
            hint="Name the file itself; links are followed to block devices only.",
        )
    if not folder.is_dir():
        raise DrengineError(DESTINATION_REFUSED, f"there is no folder {folder}", hint="Make it, or name another one.")
    if store.resolve() in (folder / destination.name).resolve().parents:
        raise DrengineError(DESTINATION_REFUSED, f"{destination} lies inside the store")
    if not destination.exists():
        return
    status = destination.stat()
    if stat.S_ISBLK(status.st_mode):
        _check_device(destination, volume, status)
        if not write_device:
            raise DrengineError(
                DESTINATION_EXISTS,
                f"{destination} is a block device, and what it holds would be lost",
                hint="If that is meant, add --write-device.",
            )
    elif stat.S_ISREG(status.st_mode):
        _check_file(destination, volume)
        if not overwrite:
            raise DrengineError(DESTINATION_EXISTS, f"{destination} exists")
    else:
        raise DrengineError(DESTINATION_REFUSED, f"{destination} is neither a regular file nor a block device")


def sectors_differ(volume: str, size: int, destination: Path) -> str:
    """What to say where a volume's disk had sectors of `size` bytes and its destination has others; empty if equal.

    A file has none: what attaches it decides, and takes 512 by default.
    """
    there = sector_bytes(destination)
    if size == (there or SECTOR_BYTES):
        return ""
    what = f"{volume} was made on a disk with sectors of {size} bytes"
    if there:
        return (
            f"{what}, and {destination} has {there}: its partition table can't be read there. "
            f"Restore it to a disk with sectors of {size} bytes, or to a file, and attach that with "
            f"`losetup --find --show --partscan --sector-size {size} FILE`"
        )
    place = shlex.quote(str(destination))
    return f"{what}: attach it with `losetup --find --show --partscan --sector-size {size} {place}`"


def lock(descriptor: int, path: Path) -> None:
    """Agents and other restores lock what they use; the lock goes with the descriptor.

    Raises:
        DrengineError: DESTINATION_REFUSED.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DrengineError(DESTINATION_REFUSED, f"{path} is in use by another process") from error


def free_bytes(folder: Path) -> int:
    """What this process may still write to the file system of a folder."""
    room = os.statvfs(folder)
    return room.f_frsize * (room.f_bavail if os.geteuid() else room.f_bfree)


def rename_new(path: Path, destination: Path) -> None:
    """Give a file another name that is free.

    Raises:
        FileExistsError: the name is taken, by whatever.
        OSError: it can't be renamed.
    """
    code = errno.ENOSYS
    if hasattr(_libc, "renameat2"):
        old, new = os.fsencode(path), os.fsencode(destination)
        if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(path), None, str(destination))
    destination.hardlink_to(path)  # for a file system, kernel or C library that can't do it at once
    path.unlink()


def _check_file(file: Path, volume: VolumeGeometry) -> None:
    """It must not be a disk in use: not the protected one, not an agent's, not a loop device's."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text(encoding="utf-8", errors="replace").rstrip("\n") == str(file.resolve()):
                raise DrengineError(DESTINATION_REFUSED, f"{file} is in use by {backing.parts[3]}")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DrengineError(DESTINATION_REFUSED, f"{file}: {error.strerror}") from error
    try:
        if is_same(evidence_in(volume.identity), evidence_of(descriptor)):
            raise DrengineError(DESTINATION_REFUSED, f"{file} is the protected volume itself")
        lock(descriptor, file)
    finally:
        os.close(descriptor)


def _check_device(device: Path, volume: VolumeGeometry, status: os.stat_result) -> None:
    if is_mounted(status):
        raise DrengineError(DESTINATION_REFUSED, f"{device} is mounted")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise DrengineError(DESTINATION_REFUSED, f"{device}: {error.strerror}") from error
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
    if size < volume.size_bytes:
        raise DrengineError(DESTINATION_SMALL, f"{device} has {size} bytes, the volume {volume.size_bytes}")
