"""Where an open store lies, and whether it still does: nothing is read from or written into what took its place.

A store is used by path (files, locks, SQLite), and a path may lead elsewhere tomorrow: the directory is moved away, its
file system unmounted, another store put there. Each writer asks here first. When the same directory is back at its
path, everything that was open is valid again.
"""

from __future__ import annotations

import os
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.errors import STORE_AWAY, STORE_READ_ONLY, os_errors
from drengine.store.identity import IDENTITY_NAME, read_identity
from drengine.store.locks.flock import LOCKS_DIRECTORY

_Stamp = tuple[int, ...]


class Place:
    """The directory of an open store. Threads may share it."""

    def __init__(self, directory: Path, identity: bytes, *, has_file: bool = True) -> None:
        """Remember what lies there now. `has_file`: its catalogue is a file there.

        Raises:
            DrengineError: STORE_AWAY, STORE_IO, RESOURCES_EXHAUSTED.
        """
        self._directory = directory
        self._identity = identity
        with os_errors(f"opening {directory}"):
            # While it is held, no other directory can get its inode number.
            self._descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._directory_stamp = _inode(directory)
                self._catalogue_stamp = _inode(directory / CATALOGUE_NAME) if has_file else None
                self._identity_stamp = _version(directory / IDENTITY_NAME)
            except BaseException:
                os.close(self._descriptor)
                raise

    def require(self) -> None:
        """Return when the store that was opened lies at its path.

        Raises:
            DrengineError: STORE_AWAY, STORE_IO, RESOURCES_EXHAUSTED.
        """
        with os_errors(f"looking at {self._directory}"):
            if _inode(self._directory) != self._directory_stamp:
                raise self._away("another directory lies there")
            stamp = self._catalogue_stamp
            if stamp is not None and _inode(self._directory / CATALOGUE_NAME) != stamp:
                raise self._away("its catalogue was replaced")
            version = _version(self._directory / IDENTITY_NAME)
        if version != self._identity_stamp:
            if read_identity(self._directory) != self._identity:
                raise self._away("another store lies there")
            self._identity_stamp = version

    def require_writable(self) -> None:
        """Return when it lies at its path and may be written.

        Raises:
            DrengineError: as `require`; STORE_READ_ONLY.
        """
        self.require()
        require_writable(self._directory)

    def close(self) -> None:
        """Forget it; harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _away(self, why: str) -> DrengineError:
        return DrengineError(STORE_AWAY, f"{self._directory} is not the store that was opened: {why}")


def require_writable(directory: Path) -> None:
    """Return when this user may write the store in a directory.

    Raises:
        DrengineError: STORE_READ_ONLY, STORE_AWAY, STORE_IO.
    """
    with os_errors(f"looking at {directory}"):
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            raise DrengineError(STORE_READ_ONLY, f"{directory} is on a file system mounted read-only")
        for path in (directory, directory / CATALOGUE_NAME, directory / LOCKS_DIRECTORY):
            if path.exists() and not os.access(path, os.W_OK):
                raise DrengineError(STORE_READ_ONLY, f"{path} may not be written by this user")


def is_writable(directory: Path) -> bool:
    """Whether this user may write the store in a directory.

    Raises:
        DrengineError: STORE_AWAY, STORE_IO.
    """
    try:
        require_writable(directory)
    except DrengineError as error:
        if error.kind is not STORE_READ_ONLY:
            raise
        return False
    return True


def _inode(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_dev, found.st_ino


def _version(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
