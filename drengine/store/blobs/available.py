"""Which storages there are: ours, and those that installed packages bring as entry points."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from drengine.model.errors import DrengineError
from drengine.plugins import Plugins
from drengine.store.blobs.storage import Storage
from drengine.store.errors import STORAGE_UNAVAILABLE

LOCAL = "local"
STORAGES = Plugins(
    "drengine.storages", "storage", {LOCAL: "drengine.store.blobs.local:LocalStorage"}, STORAGE_UNAVAILABLE
)


class StorageName(NamedTuple):
    """Which storage holds a store's segments: its name, and the place in it (a bucket, a URL), without any secret."""

    name: str = LOCAL
    place: str = ""


def open_storage(name: StorageName, directory: Path, index: object = None) -> Storage:
    """The storage of the store in `directory`.

    A storage is a callable of two arguments, the store's directory and the place. One whose files are named by rows of
    the catalogue has a method `use_index`, which is given the catalogue (`index`) before anything is asked of it;
    without an index it goes by what it finds, as a rebuild must.

    Raises:
        DrengineError: STORAGE_UNAVAILABLE.
    """
    make = STORAGES.load(name.name)
    try:
        storage: Storage = make(directory, name.place)
        if index is not None and (use_index := getattr(storage, "use_index", None)):
            use_index(index)
    except Exception as error:  # third-party code may raise anything
        raise DrengineError(STORAGE_UNAVAILABLE, f"storage {name.name!r} at {name.place!r}: {error}") from error
    return storage
