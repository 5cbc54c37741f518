"""The catalogue in a SQLite file, for a store of one host.

WAL with synchronous=FULL: a transaction is on stable storage when `transaction()` leaves without an
error. Several processes may have it open; each connection is used by one thread at a time (a lock
sees to it). SQLite has no checksums of its own; those of the rows are checked when the catalogue is opened.

Each transaction has a number, its epoch. A catalogue whose epoch is behind the one noted beside the segments
(epoch.py) is older than the data: it is not opened, and no transaction of it begins.

In an encrypted store every transaction also keeps the seal over all rows (seal.py), and begins by checking it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

from drengine.crypt.errors import KEY_NEEDED, STORE_TAMPERED
from drengine.durable import sync_directory
from drengine.model.errors import DrengineError, ErrorKind
from drengine.ownership import open_owned
from drengine.store.catalogue.epoch import Epoch, EpochNote, first_epoch
from drengine.store.catalogue.interface import Catalogue, Fence
from drengine.store.catalogue.rows import TABLE_OF, EpochRow, HeadRow, Table, Tables, row_checksum
from drengine.store.catalogue.seal import UNSEALED, Seal
from drengine.store.errors import (
    CATALOGUE_DAMAGED,
    MAINTENANCE_BUSY,
    RESOURCES_EXHAUSTED,
    STORE_AWAY,
    STORE_FULL,
    STORE_IO,
    STORE_READ_ONLY,
    STORE_VERSION,
    os_errors,
)

CATALOGUE_NAME = "catalogue.sqlite"
UNFINISHED_NAME = f"{CATALOGUE_NAME}.new"
"""Of a catalogue that a rebuild makes; kept as ``catalogue.sqlite.damaged-N`` is the one that it replaces."""
SIDE_SUFFIXES = ("-wal", "-shm", "-journal")
"""What SQLite may keep beside the file, and would replay into whatever takes its name."""

APPLICATION_ID = 0x4452454E
SCHEMA_VERSION = 9
BUSY_SECONDS = 30.0
_TABLES_OF_VERSION = {
    1: Tables.VERSION_1,
    2: Tables.VERSION_2,
    3: Tables.VERSION_3,
    4: Tables.VERSION_4,
    5: Tables.VERSION_5,
    6: Tables.VERSION_6,
    7: Tables.VERSION_7,
    8: Tables.VERSION_8,
    SCHEMA_VERSION: Tables.NEWEST,
}

_NAMES_OF_VERSION = {
    version: frozenset(table.name for table in tables) for version, tables in _TABLES_OF_VERSION.items()
}

_TABLES_OF_SOURCES = {
    version: [table for table in tables if table.fields[0] == "source" or table is Tables.SOURCE]
    for version, tables in _TABLES_OF_VERSION.items()
}
"""Those whose key begins with the source's name."""

_TYPES: dict[type[Any], str] = {int: "INTEGER", str: "TEXT", bytes: "BLOB"}

_KINDS: dict[str, ErrorKind] = {
    "SQLITE_FULL": STORE_FULL,
    "SQLITE_NOMEM": RESOURCES_EXHAUSTED,
    "SQLITE_IOERR_NOMEM": RESOURCES_EXHAUSTED,
    "SQLITE_IOERR": STORE_IO,
    "SQLITE_READONLY_DBMOVED": STORE_AWAY,
    "SQLITE_READONLY": STORE_READ_ONLY,
    "SQLITE_CANTOPEN": STORE_READ_ONLY,
    "SQLITE_PERM": STORE_READ_ONLY,
    "SQLITE_BUSY": MAINTENANCE_BUSY,
    "SQLITE_LOCKED": MAINTENANCE_BUSY,
}


def _from_sqlite(error: Exception) -> DrengineError:
    name = getattr(error, "sqlite_errorname", "") or ""
    kind = next((kind for prefix, kind in _KINDS.items() if name.startswith(prefix)), CATALOGUE_DAMAGED)
    return DrengineError(kind, f"catalogue: {error}")


def _raise_system_error(path: Path, error: Exception) -> None:
    """SQLite says only that it cannot open a file: ask the system why, by opening all that SQLite does.

    Raises:
        DrengineError: the system's reason, if it still holds.
    """
    if getattr(error, "sqlite_errorname", "") != "SQLITE_CANTOPEN":
        return
    beside = [path.with_name(f"{path.name}{suffix}") for suffix in SIDE_SUFFIXES]
    with os_errors(f"opening {path}"), ExitStack() as opened:
        for each in (path, *(each for each in beside if each.exists())):
            opened.callback(os.close, os.open(each, os.O_RDWR | os.O_CLOEXEC))


class SqliteCatalogue(Catalogue):
    """One connection to the file."""

    def __init__(
        self,
        directory: Path,
        *,
        read_only: bool = False,
        name: str = CATALOGUE_NAME,
        key: bytes = b"",
    ) -> None:
        """Open an existing catalogue; an older one is brought to the newest version, unless only for reading.

        `key` is that of its seal; empty: it has none, or `check` will say it, or nothing of it is changed.

        Raises:
            DrengineError: CATALOGUE_DAMAGED, also when it is older than the segments; STORE_VERSION, STORE_READ_ONLY,
                STORE_IO.
        """
        self._directory = directory
        self._name = name
        path = directory / name
        if not path.is_file():
            raise DrengineError(CATALOGUE_DAMAGED, f"{path} is missing")
        self._lock = threading.RLock()
        self._depth = 0
        self._changed = False
        self._version = 0
        """While a transaction is open: what others had committed when it began."""
        self._known: tuple[int, Epoch] | None = None
        """The newest transaction, if it is one of this connection, and the data version that it saw."""
        self._key = key
        self._seal = Seal(key) if key else None
        self._sum = 0
        """While a transaction is open: the sealed sum of all rows when it began; afterwards, as it left it."""
        self._note = EpochNote(directory) if name == CATALOGUE_NAME else None
        try:
            self._db = _connect(path, read_only=read_only)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            _raise_system_error(path, error)
            raise _from_sqlite(error) from error
        try:
            self.version = self._check_identity()
            self._require_current()
            if self.version < SCHEMA_VERSION and not read_only:
                self.upgraded = self.version == 1
                self._upgrade()
            self.has_epochs = self.version > 1
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(directory: Path, name: str = CATALOGUE_NAME) -> Epoch:
        """Make an empty catalogue; durable when the caller has synced the directory. Returns its first epoch."""
        epoch = first_epoch()
        # SQLite gives what it keeps beside the file the same mode and owner.
        os.close(open_owned(directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        try:
            db = _connect(directory / name, read_only=False)
            try:
                db.execute("BEGIN IMMEDIATE")
                for statement in _schema(SCHEMA_VERSION).values():
                    db.execute(statement)
                _put(db, EpochRow(1, *epoch))
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                db.execute("COMMIT")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                db.close()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _from_sqlite(error) from error
        return epoch

    def another(self) -> Catalogue:
        """See `Catalogue.another`."""
        return SqliteCatalogue(self._directory, name=self._name, key=self._key)

    def close(self) -> None:
        """Close the connection; the last one also empties the write-ahead log."""
        with self._lock:
            self._db.close()
            if self._note:
                self._note.close()

    def check(self, key: bytes = b"", *, every_row: bool = True) -> None:
        """Check the file's structure and every row; see `Catalogue.check`."""
        if key:
            self._key, self._seal = key, Seal(key)
        elif not every_row:
            return
        with self._errors():
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found is None or found[0] != "ok":
            raise DrengineError(CATALOGUE_DAMAGED, f"catalogue: {found[0] if found else 'no answer'}")
        with self._lock, self._errors():
            self._db.execute("BEGIN")  # all rows and the seal of one moment
            try:
                total = 0
                for table in _TABLES_OF_VERSION[self.version]:
                    for *values, found in self._db.execute(f"SELECT * FROM {table.name}"):
                        if row_checksum(table.name, tuple(values)) != found:
                            raise DrengineError(
                                CATALOGUE_DAMAGED, f"catalogue: a row of {table.name} fails its checksum"
                            )
                        total ^= self._seal.worth(table.name, tuple(values)) if self._seal else 0
                if self._seal and total != self._seal.require(self._head(), self.epoch()):
                    raise DrengineError(STORE_TAMPERED, "catalogue: its rows are not those that were sealed")
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def transaction(self, source: str | None = None, *, fence: Fence | None = None) -> Iterator[None]:
        """See `Catalogue.transaction`. It blocks all other writers for its length, whatever it changes."""
        del source, fence  # one file, and the kernel's locks
        with self._lock:
            if self._depth:
                yield
                return
            with self._errors():
                self._db.execute("BEGIN IMMEDIATE")
            self._depth, self._changed = 1, False
            epoch = None
            try:
                # Nobody else commits from now on.
                self._version, known = self._read_version(), self._known
                before = self._require_current(known[1] if known and known[0] == self._version else None)
                self._require_sealed(before, is_known=bool(known and known[0] == self._version))
                yield
                self._known = None
                if self._changed:
                    epoch = before._replace(number=before.number + 1)
                    self.put(EpochRow(1, *epoch))
                    if self._seal:
                        self._sum ^= self._seal.change
                        self.put(self._seal.head(self._sum, epoch))
                with self._errors():
                    self._db.execute("COMMIT")
                self._known = (self._version, epoch or before)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0
            if epoch:
                self.note_epoch(epoch)

    def snapshot(self) -> AbstractContextManager[None]:
        """See `Catalogue.snapshot`."""
        return self.transaction()

    def seal(self, key: bytes) -> None:
        """Seal all rows, and keep them sealed from now on; nothing happens where a seal fits already."""
        with self.transaction():
            if self._seal and self._head():
                return
            self._key, self._seal = key, Seal(key)
            rows = [(table, values) for table in _TABLES_OF_VERSION[self.version] for values in self._values(table)]
            self._sum, self._changed = self._seal.total(rows), True

    def head(self) -> HeadRow | None:
        """The seal; None where the store is not encrypted."""
        with self._lock:
            return self._head()

    def epoch(self, source: str = "") -> Epoch:
        """The newest transaction."""
        if self.version == 1:
            return Epoch(0, 0)
        found = self._select(Tables.EPOCH, "")
        if len(found) != 1:
            raise DrengineError(CATALOGUE_DAMAGED, "catalogue: it does not say which transaction was its newest")
        row = cast(EpochRow, found[0])
        return Epoch(row.lineage, row.number)

    def state_of(self, source: str) -> Hashable:
        """See Catalogue: of the rows' checksums, because there is one epoch for all sources."""
        found = []
        with self._lock, self._one_moment():
            for table in _TABLES_OF_SOURCES[self.version]:
                column = table.fields[0]
                query = f"SELECT count(*), total(checksum), sum(checksum & 0xffffffff) FROM {table.name}"
                found.append(self._db.execute(f"{query} WHERE {column} = ?", (source,)).fetchone())
        return tuple(found)

    @contextmanager
    def _one_moment(self) -> Iterator[None]:
        """What the block's statements read is of one moment, and nobody waits for them."""
        with self._errors():
            if self._depth:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def noted_epoch(self, source: str = "") -> Epoch | None:
        """The newest transaction that is known beside the segments; None when nothing readable says it."""
        return self._note.read() if self._note else None

    def note_epoch(self, epoch: Epoch, source: str = "", *, sync: bool = False) -> None:
        """Note beside the segments that this transaction was committed."""
        if self._note:
            self._note.write(epoch, sync=sync)

    def data_version(self) -> int:
        """A number that changes whenever another connection has committed something."""
        with self._lock:
            return self._version if self._depth else self._read_version()

    def _read_version(self) -> int:
        with self._errors():
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def put(self, *rows: Any) -> None:
        """Insert or replace rows of any kind, inside a transaction."""
        with self._lock, self._errors():
            self._changed = self._changed or bool(rows)
            for row in rows:
                self._unseal(row)
                if self._seal:
                    self._seal.change ^= self._seal.worth(TABLE_OF[type(row)].name, tuple(row))
                _put(self._db, row)

    def remove(self, *rows: Any) -> None:
        """Delete rows by their keys, inside a transaction."""
        with self._lock, self._errors():
            self._changed = self._changed or bool(rows)
            for row in rows:
                self._unseal(row)
                table = TABLE_OF[type(row)]
                self._db.execute(f"DELETE FROM {table.name} WHERE {_BY_KEY[table.name]}", tuple(row)[: table.keys])

    def _unseal(self, row: Any) -> None:
        """Take from the sum what the row of this key adds to it now."""
        table = TABLE_OF[type(row)]
        if self._seal and table.name not in UNSEALED:
            keys = tuple(row)[: table.keys]
            for old in self._db.execute(f"SELECT * FROM {table.name} WHERE {_BY_KEY[table.name]}", keys).fetchall():
                self._seal.change ^= self._seal.worth(table.name, old[:-1])

    def _require_sealed(self, epoch: Epoch, *, is_known: bool) -> None:
        """At the begin of a transaction: check the seal on which it builds, unless it is our own (`is_known`).

        Raises:
            DrengineError: STORE_TAMPERED; KEY_NEEDED when this connection could not keep it.
        """
        if self._seal:
            self._seal.change = 0
            if not is_known:
                self._sum = self._seal.require(self._head(), epoch)
        elif not is_known and self._head():
            raise DrengineError(KEY_NEEDED, "the catalogue is sealed")

    def _head(self) -> HeadRow | None:
        found = self._select(Tables.HEAD, "")
        return cast(HeadRow, found[0]) if found else None

    def _added_up(self, table: Table, sums: str, where: str, *keys: Any) -> tuple[int, ...]:
        """See `Catalogue._added_up`."""
        with self._lock, self._errors():
            found = self._db.execute(f"SELECT {sums} FROM {table.name} {where}", keys).fetchone()
        return tuple(value or 0 for value in found)

    def _values(self, table: Table, where: str = "", *keys: Any) -> list[tuple[Any, ...]]:
        if table.name not in self._tables:
            return []
        with self._lock, self._errors():
            found = self._db.execute(f"SELECT * FROM {table.name} {where}", keys).fetchall()
        for values in found:
            if row_checksum(table.name, values[:-1]) != values[-1]:
                raise DrengineError(CATALOGUE_DAMAGED, f"catalogue: a row of {table.name} fails its checksum")
        return [values[:-1] for values in found]

    def _require_current(self, known: Epoch | None = None) -> Epoch:
        """The newest transaction (`known`, if it is), unless the segments know of a later one, or of another catalogue.

        Raises:
            DrengineError: CATALOGUE_DAMAGED.
        """
        # First the note, then the row: a commit in between is ahead of the note that was read.
        noted = self.noted_epoch()
        epoch = known or self.epoch()
        if noted is not None and noted.lineage != epoch.lineage:
            raise DrengineError(
                CATALOGUE_DAMAGED, "the catalogue is not the one that the segments know: it was made anew since"
            )
        if noted is not None and noted.number > epoch.number:
            raise DrengineError(
                CATALOGUE_DAMAGED,
                f"the catalogue is older than the segments: it ends at transaction {epoch.number}, and {noted.number} "
                "was committed. "
                "Its write-ahead log was lost, or an old copy was put back",
            )
        return epoch

    def _upgrade(self) -> None:
        """From an older version to the newest: add what is missing to tables, and the tables that are."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                self.version = version  # another process may have been faster
                old, new = _schema(version), _schema(SCHEMA_VERSION)
                for table in _TABLES_OF_VERSION[SCHEMA_VERSION]:
                    if old.get(table.name) == new[table.name]:
                        continue
                    rows = self._values(table) if table.name in old else []
                    self._db.execute(f"DROP TABLE IF EXISTS {table.name}")
                    self._db.execute(new[table.name])
                    for values in rows:
                        _put(self._db, table.row(*values))
                if version == 1:
                    _put(self._db, EpochRow(1, *first_epoch()))
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self.version = SCHEMA_VERSION

    @property
    def _tables(self) -> frozenset[str]:
        """Names of the tables that a catalogue of its version has."""
        return _NAMES_OF_VERSION[self.version]

    def _check_identity(self) -> int:
        """Check that it is a catalogue of a version that is known, and which."""
        with self._errors():
            self._db.execute("BEGIN")  # somebody else may be upgrading it
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            schema = dict(self._db.execute("SELECT name, sql FROM sqlite_master").fetchall())
            self._db.execute("COMMIT")
        if application != APPLICATION_ID:
            raise DrengineError(CATALOGUE_DAMAGED, "catalogue: the file is not a catalogue of drengine")
        if version not in _TABLES_OF_VERSION:
            raise DrengineError(STORE_VERSION, f"catalogue has version {version}, this is {SCHEMA_VERSION}")
        if schema != _schema(version):
            raise DrengineError(CATALOGUE_DAMAGED, "catalogue: its tables are not those of a catalogue")
        return int(version)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _from_sqlite(error) from error


def _put(db: sqlite3.Connection, row: Any) -> None:
    table = TABLE_OF[type(row)]
    values = (*row, row_checksum(table.name, tuple(row)))
    db.execute(_INSERTS[table.name], values)


_INSERTS = {
    table.name: f"INSERT OR REPLACE INTO {table.name} VALUES ({','.join('?' * (len(table.row._fields) + 1))})"
    for table in Tables.NEWEST
}
_BY_KEY = {table.name: " AND ".join(f"{field} = ?" for field in table.fields[: table.keys]) for table in Tables.NEWEST}


@cache
def _schema(version: int) -> Mapping[str, str]:
    """The statement that makes each table of a version."""
    statements = {}
    for table in _TABLES_OF_VERSION[version]:
        types = get_type_hints(table.row)
        columns = ", ".join(f"{field} {_TYPES[types[field]]} NOT NULL" for field in table.fields)
        keys = ", ".join(table.fields[: table.keys])
        statements[table.name] = (
            f"CREATE TABLE {table.name} ({columns}, checksum INTEGER NOT NULL, PRIMARY KEY ({keys}))"
            " STRICT, WITHOUT ROWID"
        )
    return statements


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        return _configured(path, "mode=rwc", ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"))
    try:
        return _configured(path, "mode=ro", ("SELECT count(*) FROM sqlite_master",))
    except sqlite3.OperationalError:
        # A reader needs a -shm file. Where none can be made, there is no writer either, unless a log is left to replay.
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        return _configured(path, "mode=ro&immutable=1", ("SELECT count(*) FROM sqlite_master",))


def _configured(path: Path, mode: str, statements: tuple[str, ...]) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for statement in (*statements, "PRAGMA cell_size_check = ON", "PRAGMA trusted_schema = OFF"):
            db.execute(statement).fetchall()
    except BaseException:
        db.close()
        raise
    return db


def remove_unfinished(directory: Path) -> None:
    """Remove what a rebuild that was interrupted left."""
    for suffix in ("", *SIDE_SUFFIXES):
        (directory / f"{UNFINISHED_NAME}{suffix}").unlink(missing_ok=True)


def take_place(directory: Path) -> str:
    """Put the new catalogue where the old one was, which is kept aside. One rename decides."""
    path = directory / CATALOGUE_NAME
    aside = ""
    if path.exists():
        number = 1
        while (directory / f"{CATALOGUE_NAME}.damaged-{number}").exists():
            number += 1
        aside = f"{CATALOGUE_NAME}.damaged-{number}"
        # The old log must not be replayed into the new file.
        for suffix in SIDE_SUFFIXES:
            old = directory / f"{CATALOGUE_NAME}{suffix}"
            if old.exists():
                old.rename(directory / f"{aside}{suffix}")
        os.link(path, directory / aside)
    sync_directory(directory)
    (directory / UNFINISHED_NAME).replace(path)
    sync_directory(directory)
    return aside
