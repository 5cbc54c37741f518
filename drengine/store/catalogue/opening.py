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


def create_catalogue(directory: Path) -> None:
    """Make the empty catalogue of a store that is being made; durable when the caller has synced the directory."""
    epoch = SqliteCatalogue.create(directory)
    EpochNote(directory).write(epoch, sync=True)


def open_catalogue(directory: Path, *, read_only: bool = False) -> Catalogue:
    """Connect to a store's catalogue. Its rows can be read at once; before they are relied on, `check` it.

    Raises:
        DrengineError: CATALOGUE_DAMAGED, also when it is older than the segments; STORE_VERSION, STORE_READ_ONLY,
            STORE_IO.
    """
    return SqliteCatalogue(directory, read_only=read_only)


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
def replacing(directory: Path, key: bytes) -> Iterator[Replacement]:
    """Make a store's catalogue anew, sealed if there is a key: it counts when the block has left without an error."""
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
