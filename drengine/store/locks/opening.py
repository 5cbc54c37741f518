"""Which locks a store has."""

from __future__ import annotations

from pathlib import Path

from drengine.store.identity import StoreFile
from drengine.store.locks.flock import FileLocks
from drengine.store.locks.interface import Holder, Locks


def open_locks(directory: Path, file: StoreFile, holder: Holder) -> Locks:
    """The locks of the store in a directory; where several hosts share it, they are `holder`'s."""
    if not file.catalogue:
        return FileLocks(directory)
    from drengine.store.locks.postgres import locks_of  # noqa: PLC0415 - psycopg is an extra

    return locks_of(file, holder)
