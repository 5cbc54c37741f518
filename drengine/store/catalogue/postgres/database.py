"""The database of a shared catalogue: made, recognised, brought to the newest version, emptied by a rebuild."""

from __future__ import annotations

from typing import Any

import psycopg

from drengine.model.errors import DrengineError
from drengine.store.blobs.available import StorageName
from drengine.store.catalogue.epoch import first_epoch
from drengine.store.catalogue.postgres import statements
from drengine.store.catalogue.postgres.link import SCHEMA, Link
from drengine.store.catalogue.postgres.migrations import NEWEST, VERSION_TABLE
from drengine.store.catalogue.postgres.partitions import ROOT, TABLE, Partition
from drengine.store.catalogue.rows import row_checksum
from drengine.store.errors import CATALOGUE_FOREIGN, STORE_EXISTS, STORE_VERSION
from drengine.store.identity import StoreFile


class Database:
    """A database by its URL, and whose it must be.

    Attributes:
        url: without any secret.
    """

    def __init__(self, url: str, identity: bytes) -> None:
        self.url = url
        self._identity = identity

    def link(self) -> Link:
        """A connection of its own, which finds this store's catalogue there or fails."""
        return Link(self.url, self._require_ours)

    def _require_ours(self, connection: psycopg.Connection[Any]) -> None:
        found = _look(connection)
        if found is None:
            raise DrengineError(CATALOGUE_FOREIGN, "the database holds no store's catalogue")
        if found[0] != self._identity:
            raise DrengineError(
                CATALOGUE_FOREIGN,
                f"the database is of store {found[0].hex()}, and this is {self._identity.hex()}",
            )


def look(url: str) -> StoreFile | None:
    """Which store's catalogue is at a URL; None: none.

    Raises:
        DrengineError: CATALOGUE_URL, CATALOGUE_UNAVAILABLE, CATALOGUE_REFUSED, CATALOGUE_UNSUITABLE, STORE_VERSION.
    """
    link = Link(url)
    try:
        with link.errors():
            found = _look(link.connection())
            return StoreFile(*found[:2], url) if found and found[2] else None
    finally:
        link.close()


def upgrade(url: str) -> None:
    """Bring a catalogue that is there to the newest version.

    Raises:
        DrengineError: as `look`; STORE_READ_ONLY.
    """
    link = Link(url)
    try:
        with link.errors():
            found = _version(link.connection())
            if found not in (None, NEWEST):
                _migrate(link.connection(), found)
    finally:
        link.close()


def create(file: StoreFile) -> None:
    """Make the catalogue of a store in a database that has none; what an interrupted one left is removed.

    Raises:
        DrengineError: STORE_EXISTS where a store is; and as `look`; STORE_READ_ONLY.
    """
    link = Link(file.catalogue)
    try:
        with link.errors():
            found = _version(link.connection())
            if found != NEWEST:
                _migrate(link.connection(), found)
                link.drop()
            connection = link.connection()
            with connection.transaction():
                _begin_store(connection, file)
    finally:
        link.close()


def _begin_store(connection: psycopg.Connection[Any], file: StoreFile) -> None:
    connection.execute(statements.LOCK_STORE, (statements.STORE_LOCK,))
    found = connection.execute("SELECT identity, ready FROM store").fetchone()
    if found and found[1]:
        raise DrengineError(
            STORE_EXISTS,
            f"the database holds the catalogue of store {bytes(found[0]).hex()}",
            hint="Join that store with `drengine store join DIRECTORY --catalogue URL`, or make another database.",
        )
    for table in (*(table.name for table in statements.KEPT), TABLE, "store"):
        connection.execute(f"DELETE FROM {table}")
    root = Partition(ROOT, first_epoch().lineage, 1, b"")
    connection.execute(statements.INSERT[TABLE], (*root, row_checksum(TABLE, tuple(root))))
    connection.execute(
        "INSERT INTO store (identity, storage, place, ready) VALUES (%s, %s, %s, false)",
        (file.identity, *file.storage),
    )


def finish(file: StoreFile) -> None:
    """The store is made: from now on others may join it, and nobody makes another one here."""
    link = Database(file.catalogue, file.identity).link()
    try:
        with link.errors():
            link.connection().execute("UPDATE store SET ready = true")
    finally:
        link.close()


def _migrate(connection: psycopg.Connection[Any], found: str | None) -> None:
    from drengine.store.catalogue.postgres.migrations.migrate import migrate  # noqa: PLC0415 - see there

    migrate(connection, found)


def _version(connection: psycopg.Connection[Any]) -> str | None:
    there = connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.{VERSION_TABLE}",)).fetchone()
    if there is None or there[0] is None:
        return None
    found = connection.execute(statements.SELECT_VERSION).fetchone()
    return str(found[0]) if found else None


def _look(connection: psycopg.Connection[Any]) -> tuple[bytes, StorageName, bool] | None:
    version = _version(connection)
    if version is None:
        return None
    if version != NEWEST:
        raise DrengineError(STORE_VERSION, f"the catalogue has version {version}, this program knows {NEWEST}")
    found = connection.execute("SELECT identity, storage, place, ready FROM store").fetchone()
    return (bytes(found[0]), StorageName(found[1], found[2]), bool(found[3])) if found else None
