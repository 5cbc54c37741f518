"""The seal of an encrypted store's catalogue: rows that somebody without the key has changed are noticed.

Each row is worth HMAC-SHA256 of its table and values; the *sum* is the exclusive or of what all rows are worth, so
that a transaction keeps it up to date at the cost of the rows that it changes. The *tag* is HMAC-SHA256 of the sum with
the catalogue's lineage and epoch. Without the key neither a row's worth nor a tag can be made; a tag that was seen
fits one set of rows at one epoch only. So rows can't be altered, left out or put in, nor be those of another epoch.

The sum is kept masked by a key stream of its tag. In clear the sums of two epochs would tell what a row is worth, and
who knows what some 256 rows are worth finds, by linear algebra, some that together are worth nothing.

A copy of the whole store from an earlier day fits itself. Only what is kept elsewhere tells it: `Store.head` is made to
be noted outside, and the audit log does so.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Any

import msgspec

from drengine.crypt.errors import STORE_TAMPERED
from drengine.model.errors import DrengineError
from drengine.store.catalogue.epoch import Epoch
from drengine.store.catalogue.rows import EpochRow, HeadRow, Table, Tables

CATALOGUE_KEY = "catalogue"
"""Which of the store's keys makes it."""
SUM_BYTES = 32
_MASK = "mask"
"""No table has this name."""
UNSEALED = frozenset({Tables.EPOCH.name, Tables.HEAD.name})
"""Tables that are not summed: the tag covers the epoch, and is in the head."""


class Seal:
    """Keeps a catalogue's sum, and judges its tag. For one connection."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.change = 0
        """By what the transaction under way changes the sum."""

    def worth(self, table: str, values: tuple[Any, ...]) -> int:
        """What a row adds to the sum."""
        if table in UNSEALED:
            return 0
        return int.from_bytes(hmac.digest(self._key, msgspec.msgpack.encode((table, *values)), "sha256"))

    def head(self, sum: int, epoch: Epoch, partition: str = "") -> HeadRow:
        """The head of rows with this sum, at an epoch; of a partition, where there are several."""
        of = (partition,) if partition else ()
        message = msgspec.msgpack.encode((Tables.HEAD.name, *EpochRow(1, *epoch), sum.to_bytes(SUM_BYTES), *of))
        tag = hmac.digest(self._key, message, "sha256")
        return HeadRow(1, (sum ^ self._mask(tag)).to_bytes(SUM_BYTES), tag)

    def require(self, found: HeadRow | None, epoch: Epoch, partition: str = "") -> int:
        """The sum of a head that fits its epoch.

        Raises:
            DrengineError: STORE_TAMPERED.
        """
        if found is None or len(found.sum) != SUM_BYTES:
            raise DrengineError(STORE_TAMPERED, "catalogue: its seal is gone")
        total = int.from_bytes(found.sum) ^ self._mask(found.tag)
        if not hmac.compare_digest(self.head(total, epoch, partition).tag, found.tag):
            raise DrengineError(STORE_TAMPERED, f"catalogue: its seal does not fit transaction {epoch.number}")
        return total

    def _mask(self, tag: bytes) -> int:
        """What hides the sum that has this tag: never the same for two sums, nor for two epochs."""
        return int.from_bytes(hmac.digest(self._key, msgspec.msgpack.encode((_MASK, tag)), "sha256"))

    def total(self, rows: Iterable[tuple[Table, tuple[Any, ...]]]) -> int:
        """The sum of rows."""
        total = 0
        for table, values in rows:
            total ^= self.worth(table.name, values)
        return total
