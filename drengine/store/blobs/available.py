"""Which storages there are: ours, and those that installed packages bring as entry points."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from drengine.model.errors import DrengineError
from drengine.plugins import Plugins
from drengine.store.blobs.index import Index
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.storage import ObjectStorage, Storage
from drengine.store.errors import STORAGE_UNAVAILABLE

LOCAL = "local"
S3 = "s3"
STORAGES = Plugins(
    "drengine.storages",
    "storage",
    {LOCAL: "drengine.store.blobs.local:LocalStorage", S3: "drengine.store.blobs.s3.storage:S3Storage"},
    STORAGE_UNAVAILABLE,
)
TRIALS = Plugins(
    "drengine.storage_trials",
    "trial of a storage",
    {S3: "drengine.store.blobs.s3.trial:try_place"},
    STORAGE_UNAVAILABLE,
)
"""What tries a place before it is used."""


class StorageName(NamedTuple):
    """Which storage holds a store's segments: its name, and the place in it (a bucket, a URL), without any secret."""

    name: str = LOCAL
    place: str = ""


def open_storage(
    name: StorageName, directory: Path, index: Index | None = None, options: S3Options | None = None
) -> Storage:
    """The storage of the store in `directory`.

    A storage is a callable of two arguments, the store's directory and the place; `s3` takes its options as well. An
    ObjectStorage is given the catalogue (`index`), or goes by what it finds, as a rebuild must.

    Raises:
        DrengineError: STORAGE_UNAVAILABLE; of `s3` also OBJECT_STORE_PLACE, OBJECT_STORE_KEYS.
    """
    make = STORAGES.load(name.name)
    arguments = (directory, name.place, options) if name.name == S3 else (directory, name.place)
    try:
        storage: Storage = make(*arguments)
        if index is not None and isinstance(storage, ObjectStorage):
            storage.use_index(index)
    except DrengineError:
        raise
    except Exception as error:  # third-party code may raise anything
        raise DrengineError(STORAGE_UNAVAILABLE, f"storage {name.name!r} at {name.place!r}: {error}") from error
    return storage
