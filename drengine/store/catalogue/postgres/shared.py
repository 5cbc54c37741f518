"""What opening.py asks of a catalogue in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drengine.store.catalogue.postgres.catalogue import PostgresCatalogue
from drengine.store.catalogue.postgres.database import Database, create, finish, look, upgrade
from drengine.store.identity import StoreFile

__all__ = ["create", "ensure", "finish", "look", "open_one", "remaking"]


def ensure(file: StoreFile) -> None:
    """A database that has lost the store's catalogue gets an empty one."""
    if look(file.catalogue) is None:
        create(file)
        finish(file)


def open_one(directory: Path, file: StoreFile, *, read_only: bool) -> PostgresCatalogue:
    """Connect to it; an older one is brought to the newest version, unless only for reading."""
    if not read_only:
        upgrade(file.catalogue)
    return PostgresCatalogue(Database(file.catalogue, file.identity), directory, read_only=read_only)


@contextmanager
def remaking(directory: Path, file: StoreFile, key: bytes) -> Iterator[tuple[PostgresCatalogue, str]]:
    """A transaction without rows, in the end sealed if there is a key; and where the rows of before are."""
    catalogue = PostgresCatalogue(Database(file.catalogue, file.identity), directory)
    try:
        with catalogue.remaking() as aside:
            yield catalogue, aside
            if key:
                catalogue.seal(key)
    finally:
        catalogue.close()
