"""Which locks a store has."""

from __future__ import annotations

from pathlib import Path

from drengine.store.locks.flock import FileLocks
from drengine.store.locks.interface import Locks


def open_locks(directory: Path) -> Locks:
    """The locks of the store in a directory."""
    return FileLocks(directory)
