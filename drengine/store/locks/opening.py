"""Which locks a store has."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from drengine.store.identity import StoreFile
from drengine.store.locks.flock import FileLocks
from drengine.store.locks.interface import Holder, Locks


def open_locks(directory: Path, file: StoreFile, holder: Holder) -> Locks:
    """The locks of the store in a directory; where several hosts share it, they are `holder`'s."""
    if not file.catalogue:
        return FileLocks(directory)
    from drengine.store.catalogue.postgres.database import Database  # noqa: PLC0415 - psycopg is an extra
    from drengine.store.locks.postgres import PostgresLocks  # noqa: PLC0415

    name = holder.name or f"process {os.getpid()} of {socket.gethostname()}"
    return PostgresLocks(Database(file.catalogue, file.identity), holder._replace(name=name))
