"""Which catalogue a store has: the one place that makes, opens and replaces catalogues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from drengine.model.errors import DrengineError
from drengine.store.catalogue import sqlite
from drengine.store.catalogue.epoch import EpochNote
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.sqlite import SqliteCatalogue
from drengine.store.errors import CATALOGUE_UNAVAILABLE
from drengine.store.identity import StoreFile


def create_catalogue(directory: Path, file: StoreFile) -> None:
    """Make the empty catalogue of a store that is being made; durable when the caller has synced the directory.

    Raises:
        DrengineError: STORE_EXISTS where the database holds one; those of opening one.
    """
    if file.catalogue:
        _postgres().create(file)
    else:
        EpochNote(directory).write(SqliteCatalogue.create(directory), sync=True)


def shared_store(url: str) -> StoreFile | None:
    """The store whose catalogue is in a database, as its STORE files say it; None: there is none.

    Raises:
        DrengineError: CATALOGUE_URL, CATALOGUE_UNAVAILABLE, CATALOGUE_REFUSED, CATALOGUE_UNSUITABLE, STORE_VERSION.
    """
    found: StoreFile | None = _postgres().look(url)
    return found


def finish_catalogue(file: StoreFile) -> None:
    """The store is made, but for its STORE file: others may join it from now on."""
    if file.catalogue:
        _postgres().finish(file)


def ensure_catalogue(file: StoreFile) -> None:
    """Before a rebuild: a database that has lost the store's catalogue gets an empty one."""
    if file.catalogue:
        _postgres().ensure(file)


def open_catalogue(directory: Path, file: StoreFile, *, read_only: bool = False) -> Catalogue:
    """Connect to a store's catalogue. Its rows can be read at once; before they are relied on, `check` it.

    Raises:
        DrengineError: CATALOGUE_DAMAGED, also when it is older than the segments; STORE_VERSION, STORE_READ_ONLY,
            STORE_IO; for a database CATALOGUE_URL, CATALOGUE_UNAVAILABLE, CATALOGUE_REFUSED, CATALOGUE_UNSUITABLE,
            CATALOGUE_FOREIGN.
    """
    if not file.catalogue:
        return SqliteCatalogue(directory, read_only=read_only)
    catalogue: Catalogue = _postgres().open_one(directory, file, read_only=read_only)
    return catalogue


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
        with _postgres().remaking(directory, file, key) as (catalogue, aside):
            yield Replacement(catalogue, aside)
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


def _postgres() -> ModuleType:
    """The one door to what needs psycopg, which is an extra.

    Raises:
        DrengineError: CATALOGUE_UNAVAILABLE: it is not installed.
    """
    try:
        from drengine.store.catalogue.postgres import shared  # noqa: PLC0415
    except ImportError as error:
        raise DrengineError(
            CATALOGUE_UNAVAILABLE, f"psycopg is not installed here: {error}", hint="Install drengine[postgres]."
        ) from error
    return shared
