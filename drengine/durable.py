"""Small files that must be there after a power cut: written aside, synced, renamed, and their folder synced."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from drengine.ownership import give_to_owner

ASIDE = ".new"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe does not keep us waiting
_MODE = 0o600


def replace_durably(path: Path, content: bytes, *, mode: int = _MODE) -> None:
    """Make or replace a file: old or new after any crash, and new once this has returned.

    Processes that replace the same file at once take turns. What a crash leaves beside it (NAME.new) is used again.

    Args:
        path: the file, in a folder that is there.
        content: all that it shall hold.
        mode: its permissions, whatever the umask says; only its owner's by default.

    Raises:
        OSError: it could not be made durable.
    """
    folder = os.open(path.parent, _FOLDER)
    try:
        aside = path.name + ASIDE
        descriptor = open_aside(aside, folder, mode)
        try:
            os.fchmod(descriptor, mode)
            _write_all(descriptor, content)
            os.fsync(descriptor)
            os.rename(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=folder)
            raise
        finally:
            os.close(descriptor)
        os.fsync(folder)
    finally:
        os.close(folder)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: they could not be made durable.
    """
    descriptor = os.open(directory, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_aside(name: str, folder: int, mode: int) -> int:
    """Descriptor of an empty, locked file in an open folder: two that write the same name take turns.

    The lock goes with the descriptor. A link of this name is refused; what a stranger put there is replaced, because
    he could read what is written to it, or hold its lock for good.

    Raises:
        OSError: it can't be opened.
    """
    while True:
        descriptor = os.open(name, _FILE, mode, dir_fd=folder)
        try:
            if _is_strange(descriptor, folder):
                os.unlink(name, dir_fd=folder)
                os.close(descriptor)
                continue
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_named(descriptor, name, folder):
                give_to_owner(descriptor, folder)
                os.ftruncate(descriptor, 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def remove_aside(name: str, folder: int) -> bool:
    """Remove a file that a dead writer left; whether it was there.

    Raises:
        BlockingIOError: its writer lives.
        OSError: it can't be removed.
    """
    descriptor = os.open(name, _FILE & ~os.O_CREAT, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if named := _is_named(descriptor, name, folder):
            os.unlink(name, dir_fd=folder)
        return named
    finally:
        os.close(descriptor)


def _is_named(descriptor: int, name: str, folder: int) -> bool:
    """Whether the open file still has this name, or was renamed or removed before its lock was had."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _is_strange(descriptor: int, folder: int) -> bool:
    """Whether a file is none that we, root, or the owner of its folder made."""
    found = os.fstat(descriptor)
    ours = found.st_uid in (0, os.geteuid(), os.fstat(folder).st_uid)
    return not ours or found.st_nlink > 1 or not stat.S_ISREG(found.st_mode)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
