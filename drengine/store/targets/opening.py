"""Which directory of targets a store has."""

from __future__ import annotations

from drengine.store.identity import StoreFile
from drengine.store.targets.alone import Alone
from drengine.store.targets.interface import Targets


def open_targets(file: StoreFile) -> Targets:
    """Of a store whose catalogue is elsewhere, the one that lies there."""
    if not file.catalogue:
        return Alone()
    from drengine.store.targets.postgres import targets_of  # noqa: PLC0415 - psycopg is an extra

    return targets_of(file)
