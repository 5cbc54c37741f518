"""Which catalogue a store has: the one place that makes, opens and replaces catalogues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drengine.store.catalogue import sqlite
from drengine.store.catalogue.epoch import EpochNote
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.sqlite import SqliteCatalogue
from drengine.store.identity import StoreFile


def create_catalogue(directory: Path, file: StoreFile) -> None:
    """Make the empty catalogue of a store that is being made; durable when the caller has synced the directory.

    Raises:
        DrengineError: STORE_EXISTS where the database holds one; those of opening one.
    """
    if file.catalogue:
        from drengine.store.catalogue.postgres import database  # noqa: PLC0415 - psycopg is an extra

        database.create(file)
    else:
        EpochNote(directory).write(SqliteCatalogue.create(directory), sync=True)


def shared_store(url: str) -> StoreFile | None:
    """The store whose catalogue is in a database, as its STORE files say it; None: there is none.

    Raises:
        DrengineError: CATALOGUE_URL, CATALOGUE_UNAVAILABLE, CATALOGUE_REFUSED, CATALOGUE_UNSUITABLE, STORE_VERSION.
    """
    from drengine.store.catalogue.postgres.url import check_url  # noqa: PLC0415 - psycopg is an extra

    check_url(url)
    from drengine.store.catalogue.postgres import database  # noqa: PLC0415

    return database.look(url)


def finish_catalogue(file: StoreFile) -> None:
    """The store is made, but for its STORE file: others may join it from now on."""
    if file.catalogue:
        from drengine.store.catalogue.postgres import database  # noqa: PLC0415 - psycopg is an extra

        database.finish(file)


def ensure_catalogue(file: StoreFile) -> None:
    """Before a rebuild: a database that has lost the store's catalogue gets an empty one."""
    if file.catalogue:
        from drengine.store.catalogue.postgres import database  # noqa: PLC0415 - psycopg is an extra

        if database.look(file.catalogue) is None:
            database.create(file)
            database.finish(file)


def open_catalogue(directory: Path, file: StoreFile, *, read_only: bool = False) -> Catalogue:
    """Connect to a store's catalogue. Its rows can be read at once; before they are relied on, `check` it.

    Raises:
        DrengineError: CATALOGUE_DAMAGED, also when it is older than the segments; STORE_VERSION, STORE_READ_ONLY,
            STORE_IO; for a database CATALOGUE_URL, CATALOGUE_UNAVAILABLE, CATALOGUE_REFUSED, CATALOGUE_UNSUITABLE,
            CATALOGUE_FOREIGN.
    """
    if not file.catalogue:
        return SqliteCatalogue(directory, read_only=read_only)
    from drengine.store.catalogue.postgres import database  # noqa: PLC0415 - psycopg is an extra
    from drengine.store.catalogue.postgres.catalogue import PostgresCatalogue  # noqa: PLC0415

    if not read_only:
        database.upgrade(file.catalogue)
    return PostgresCatalogue(database.Database(file.catalogue, file.identity), directory, read_only=read_only)


@dataclass(slots=True)
class Replacement:
    """A catalogue that takes the place of the one that is there.

    Attributes:
        catalogue: empty, in a transaction.
        kept_aside: afterwards, where the old one is now; empty when there was none.
    """

    catalogue: Catalogue
    kept_aside: str = ""


@contextmanager
def replacing(directory: Path, file: StoreFile, key: bytes) -> Iterator[Replacement]:
    """Make a store's catalogue anew, sealed if there is a key: it counts when the block has left without an error."""
    if file.catalogue:
        yield from _replacing_rows(directory, file, key)
        return
    sqlite.remove_unfinished(directory)
    SqliteCatalogue.create(directory, sqlite.UNFINISHED_NAME)
    made = Replacement(SqliteCatalogue(directory, name=sqlite.UNFINISHED_NAME))
    try:
        with made.catalogue.transaction():
            yield made
            if key:
                made.catalogue.seal(key)
            epoch = made.catalogue.epoch()
    finally:
        made.catalogue.close()
    note = EpochNote(directory)
    note.remove()
    made.kept_aside = sqlite.take_place(directory)
    note.write(epoch, sync=True)
    note.close()


def _replacing_rows(directory: Path, file: StoreFile, key: bytes) -> Iterator[Replacement]:
    from drengine.store.catalogue.postgres import database  # noqa: PLC0415 - psycopg is an extra
    from drengine.store.catalogue.postgres.catalogue import PostgresCatalogue  # noqa: PLC0415

    catalogue = PostgresCatalogue(database.Database(file.catalogue, file.identity), directory)
    try:
        with catalogue.remaking() as aside:
            yield Replacement(catalogue, aside)
            if key:
                catalogue.seal(key)
    finally:
        catalogue.close()
