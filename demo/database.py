"""SQLite on a block device: the database at its start, the rollback journal behind it, over NBD and without a mount.

It is real SQLite with its own crash recovery; only the lowest layer (its VFS) is ours: reads and writes go to an NBD
export, and a sync is an NBD flush. So the demonstration needs no root, and a commit is as durable as the disk below it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import apsw

from drengine.nbd.client import NbdClient

DATABASE_BYTES = 24 << 20
JOURNAL_BYTES = 8 << 20
DISK_BYTES = DATABASE_BYTES + JOURNAL_BYTES
PAGE_BYTES = 4096
SCHEMA = """
create table orders (
    number integer primary key,
    item text not null,
    amount integer not null,
    chain text not null
)
"""


def make_database_disk(image: Path) -> None:
    """A disk with an empty database on it: to SQLite it is a file that is longer than its header says."""
    with sqlite3.connect(image) as database:
        database.execute(f"pragma page_size = {PAGE_BYTES}")
        database.execute(SCHEMA)
    database.close()
    with image.open("r+b") as file:
        file.truncate(DISK_BYTES)


def open_database(uri: str) -> apsw.Connection:
    """The database on the disk at an NBD URI; what a crash left half done is rolled back by SQLite."""
    filesystem = DiskVfs(NbdClient.of(uri))
    connection = apsw.Connection("disk", vfs=filesystem.name)
    connection.execute("pragma journal_mode = persist; pragma synchronous = full; pragma locking_mode = exclusive")
    return connection


class DiskVfs(apsw.VFS):
    """A file system with two files of fixed size: the database and its journal."""

    def __init__(self, disk: NbdClient) -> None:
        self.name = f"disk-{id(self):x}"
        self._disk = disk
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        """See SQLite's sqlite3_vfs."""
        journal = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL)
        if not journal and not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return super().xOpen(name, flags)  # temporary files
        flags[1] = flags[0]
        start, length = (DATABASE_BYTES, JOURNAL_BYTES) if journal else (0, DATABASE_BYTES)
        return DiskFile(self._disk, start, length)  # type: ignore[return-value]

    def xAccess(self, pathname: str, flags: int) -> bool:
        """Both files are always there; a journal whose header is zero is one that nobody needs."""
        return pathname.endswith("-journal")

    def xDelete(self, filename: str, _syncdir: bool) -> None:
        """The journal is emptied, never removed (journal_mode persist)."""

    def xFullPathname(self, name: str) -> str:
        """Names mean nothing here."""
        return name


class DiskFile:
    """A part of the disk as a file of SQLite's."""

    def __init__(self, disk: NbdClient, start: int, length: int) -> None:
        self._disk = disk
        self._start = start
        self._length = length

    def xRead(self, amount: int, offset: int) -> bytes:
        """See SQLite's sqlite3_io_methods."""
        inside = max(0, min(amount, self._length - offset))
        return bytes(self._disk.read(self._start + offset, inside))

    def xWrite(self, data: bytes, offset: int) -> None:
        """See SQLite's sqlite3_io_methods."""
        if offset + len(data) > self._length:
            raise apsw.FullError("the disk is full")
        self._disk.write(self._start + offset, data)

    def xSync(self, flags: int) -> None:
        """Everything written is on stable storage when this returns."""
        self._disk.flush()

    def xTruncate(self, size: int) -> None:
        """A part of a disk has one size for ever."""

    def xFileSize(self) -> int:
        """Its size for ever."""
        return self._length

    def xLock(self, level: int) -> None:
        """Nobody else is there: a disk has one user."""

    def xUnlock(self, level: int) -> None:
        """See xLock."""

    def xCheckReservedLock(self) -> bool:
        """See xLock."""
        return False

    def xFileControl(self, _op: int, _ptr: int) -> bool:
        """Nothing is understood."""
        return False

    def xSectorSize(self) -> int:
        """What the disk writes at once."""
        return PAGE_BYTES

    def xDeviceCharacteristics(self) -> int:
        """No promises."""
        return 0

    def xClose(self) -> None:
        """The disk stays open: both files share it."""
