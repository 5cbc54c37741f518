"""Locks between the processes of one host: flock(2) on files under `locks/`.

The kernel releases them when their process dies, however it dies. A lease file appears under its name only after it is
locked: an unlocked one belongs to the dead.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from drengine.model.errors import DrengineError, ErrorKind
from drengine.ownership import open_owned
from drengine.store.errors import BRANCH_BUSY, MAINTENANCE_BUSY, MIRROR_BUSY, os_errors
from drengine.store.locks.interface import Holder, Lock, Position

LOCKS_DIRECTORY = "locks"
_LEASE_PREFIX = "lease-"
_UNFINISHED = ".new"
_LEASE_ATTEMPTS = 16
_BRANCH_LOCK = re.compile(r"branch-(.+)-(\d{8})\.lock")
_LEASE = re.compile(_LEASE_PREFIX + r"(.+)-(\d{1,19})-(\d{1,19})-[0-9a-f]+")


class FileLock(Lock):
    """An exclusive lock on a file, held until `release`."""

    def __init__(self, path: Path, fd: int, *, transient: bool = False) -> None:
        self._path = path
        self._fd = fd
        self._transient = transient

    def require(self) -> None:
        """Return: only its holder can end it."""

    def release(self) -> None:
        """Let go; harmless when done twice."""
        if self._fd >= 0:
            if self._transient:
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Let go, and take the lock's file away: what it stood for is gone."""
        self._transient = True
        self.release()


class FileLocks:
    """The locks of the store in a directory; see `Locks`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / LOCKS_DIRECTORY

    def branch(self, source: str, branch: int) -> FileLock:
        """See `Locks.branch`."""
        return self._lock(_branch_lock(source, branch), BRANCH_BUSY, f"branch {branch} of {source!r} has a writer")

    def branch_holder(self, source: str, branch: int) -> Holder | None:
        """Asked of the kernel, because trying the lock would get in a writer's way."""
        try:
            inode = (self._directory / _branch_lock(source, branch)).stat().st_ino
        except OSError:
            return None
        return Holder() if inode in _locked_inodes() else None

    def branch_holders(self) -> dict[tuple[str, int], Holder]:
        """See `Locks.branch_holders`."""
        locked = _locked_inodes()
        with os_errors("reading locks"), os.scandir(self._directory) as entries:
            names = [_BRANCH_LOCK.fullmatch(entry.name) for entry in entries if entry.inode() in locked]
        return {(name[1], int(name[2])): Holder() for name in names if name}

    def maintenance(self) -> FileLock:
        """See `Locks.maintenance`."""
        return self._lock("maintenance.lock", MAINTENANCE_BUSY, "another process maintains the store")

    def mirror(self) -> FileLock:
        """Become the only process that mirrors into this directory: a copy always has locks of its own host.

        Raises:
            DrengineError: MIRROR_BUSY.
        """
        return self._lock("mirror.lock", MIRROR_BUSY, "another process mirrors into this directory")

    def manifests(self) -> FileLock:
        """See `Locks.manifests`."""
        return self._wait_for("manifest.lock")

    def keys(self) -> FileLock:
        """See `Locks.keys`."""
        return self._wait_for("keys.lock")

    def lease(self, position: Position) -> FileLock:
        """See `Locks.lease`."""
        # The name says it all: a disk that is full still has room for an empty file.
        name = f"{position.source}-{position.branch}-{position.sequence}-{secrets.token_hex(8)}"
        path = self._directory / f"{_LEASE_PREFIX}{name}"
        making = path.with_name(f"{path.name}{_UNFINISHED}")
        with os_errors("taking a lease"):
            # Another process may take the file for a dead one's between its creation and its lock: then try again.
            for _ in range(_LEASE_ATTEMPTS - 1):
                with suppress(FileNotFoundError):
                    return _make_lease(making, path)
            return _make_lease(making, path)

    def leased_positions(self) -> set[Position]:
        """See `Locks.leased_positions`; files of dead processes are removed."""
        positions = set()
        with os_errors("reading leases"):
            with os.scandir(self._directory) as entries:
                names = [entry.name for entry in entries if entry.name.startswith(_LEASE_PREFIX)]
            for path in (self._directory / name for name in sorted(names)):
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                except PermissionError:
                    # Somebody else's, who may be living: it stops what it names, and nothing else.
                    positions |= _leased(path.name)
                    continue
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                except (BlockingIOError, PermissionError):
                    positions |= _leased(path.name)
                finally:
                    os.close(fd)
        return positions

    def close(self) -> None:
        """Nothing serves them all."""

    def _wait_for(self, name: str) -> FileLock:
        path = self._directory / name
        with os_errors(f"locking {name}"):
            fd = open_owned(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        return FileLock(path, fd)

    def _lock(self, name: str, kind: ErrorKind, message: str) -> FileLock:
        path = self._directory / name
        while True:
            with os_errors(f"locking {name}"):
                fd = open_owned(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), path.stat()):
                        return FileLock(path, fd)
            except BlockingIOError:
                os.close(fd)
                raise DrengineError(kind, message) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # the one before removed it


def _make_lease(making: Path, path: Path) -> FileLock:
    fd = open_owned(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        making.rename(path)
    except BlockingIOError:
        os.close(fd)
        raise FileNotFoundError(making) from None
    except BaseException:
        os.close(fd)
        making.unlink(missing_ok=True)
        raise
    return FileLock(path, fd, transient=True)


def _leased(name: str) -> set[Position]:
    """What a lease's file names; nothing while it is being made, or when it is no lease's name."""
    match = _LEASE.fullmatch(name)
    return {Position(match[1], int(match[2]), int(match[3]))} if match else set()


def _locked_inodes() -> set[int]:
    """Files that anybody on this host holds a lock of."""
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return set()
    held = (line.split() for line in locks.splitlines() if " FLOCK " in line)
    return {int(fields[5].rpartition(":")[2]) for fields in held if "->" not in fields}


def _branch_lock(source: str, branch: int) -> str:
    return f"branch-{source}-{branch:08d}.lock"
