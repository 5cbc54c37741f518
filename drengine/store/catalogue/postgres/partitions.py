"""Partitions: what a source's rows, or those of the store as a whole, have in common: their epoch and their seal.

The partition of the store as a whole also vouches for the list of partitions, so that none can be left out with all
that it says. A partition stays when its source is forgotten: its numbers never begin again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from drengine.store.catalogue.epoch import Epoch
from drengine.store.catalogue.rows import SourceRow
from drengine.store.names import NOTES

ROOT = ""
"""The partition of what belongs to no source. No source is called so."""
STAMP_BYTES = 16
TABLE = "partition"


class Partition(NamedTuple):
    """A row of the table.

    Attributes:
        lineage: of the database: the same in all of them.
        number: of its newest transaction; 0: none has changed anything.
        stamp: random bytes of that transaction.
        sum, tag: of its seal (catalogue/seal.py); empty where the store is not encrypted.
    """

    source: str
    lineage: int
    number: int
    stamp: bytes
    sum: bytes = b""
    tag: bytes = b""

    @property
    def epoch(self) -> Epoch:
        """The newest transaction."""
        return Epoch(self.lineage, self.number)


def partition_of(row: Any) -> str:
    """To which partition a row belongs."""
    if isinstance(row, SourceRow):
        return row.name
    return str(getattr(row, "source", ROOT))


def note_name(source: str) -> str:
    """The file of a seat in which a partition's epoch is noted."""
    return f"{NOTES}/{source or 'STORE'}"


def named(partitions: Iterable[str]) -> list[tuple[str, tuple[str]]]:
    """What the root's seal counts beside its rows: that each other partition is there."""
    return [(TABLE, (source,)) for source in partitions if source != ROOT]
