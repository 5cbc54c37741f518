"""Deleting objects about which it was decided, once nobody can be reading them."""

from __future__ import annotations

from itertools import groupby

from drengine.store.blobs import ObjectStorage
from drengine.store.context import StoreContext

AT_ONCE = 10_000


def delete_decided(context: StoreContext) -> int:
    """Delete objects whose decision is old enough and whose source nobody reads; how many decisions were carried out.

    A reader that comes later goes by the rows that the deciding transaction left, so it does not need them. The caller
    maintains the store.

    Raises:
        DrengineError: what is wrong with the object store; the decisions stay.
    """
    storage = context.storage
    if not isinstance(storage, ObjectStorage):
        return 0
    read = {lease.source for lease in context.locks.leased_positions()}
    before_ns = context.clock.now_ns() - int(storage.delete_delay_seconds * 1e9)
    decided = sorted(context.catalogue.object_removals(), key=lambda row: row.source)
    due = [row for row in decided if row.source not in read and row.decided_ns <= before_ns][:AT_ONCE]
    for source, rows in groupby(due, key=lambda row: row.source):
        gone = list(rows)
        storage.delete_objects(gone)
        with context.catalogue.transaction(source):
            context.catalogue.remove(*gone)
    return len(due)
