"""After a disk has failed a write or a sync: look at what is said to be there before building on it (fault 5).

What was committed was synced without an error, so it should be whole. But the disk has shown that it can fail, and
recovery is too late to find out: the newest segments are read again and their checksums compared.
"""

from __future__ import annotations

from drengine.store.context import StoreContext
from drengine.store.damage import damage_row, record_damage
from drengine.store.views.records import Address

SEGMENTS = 2


def reread_newest(context: StoreContext, source: str) -> int:
    """Read the newest segments of a source's active branch again; returns how many records are damaged.

    What is damaged is remembered with the points that need it, so the next session asks the source for it again.

    Raises:
        DrengineError: STORE_IO, the disk still fails; nothing may be written yet.
    """
    branch = context.catalogue.source(source).active_branch
    found = []
    for row in context.catalogue.segments(source, branch)[-SEGMENTS:]:
        count = context.records.index(row).record_count
        for record in range(count):
            address = Address(source, branch, row.segment, record)
            if faults := context.records.faults(address):
                context.records.forget(address)
                found.append(damage_row(context, address, faults[0].reason))
    record_damage(context, found)
    return len(found)
