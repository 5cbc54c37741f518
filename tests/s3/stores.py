"""Storages and places on the test server."""

from __future__ import annotations

import os
from pathlib import Path

from drengine.store.blobs import Changes, Storage
from drengine.store.blobs.available import S3, StorageName
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.s3.storage import S3Storage
from drengine.store.catalogue.opening import create_catalogue, open_catalogue
from drengine.store.identity import StoreFile
from drengine.store.names import SEGMENTS
from tests.s3.server import OWNER, REGION, Keys

FILE = StoreFile(bytes(16))
"""Of no store: its catalogue lies in the directory."""


def use_keys(keys: Keys = OWNER) -> None:
    """Have the SDK find these credentials, also in child processes."""
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = keys
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = "/dev/null"


def place(endpoint: str, bucket: str, prefix: str = "store") -> str:
    """Of a store in a bucket."""
    return f"s3://{bucket}/{prefix}?endpoint={endpoint}&region={REGION}&style=path"


def stored_in(endpoint: str, bucket: str, prefix: str = "store") -> StorageName:
    """The same for `Store.create`."""
    return StorageName(S3, place(endpoint, bucket, prefix))


def storage_with_catalogue(directory: Path, where: str, options: S3Options | None = None) -> S3Storage:
    """A storage and the SQLite catalogue that names its objects, without a store around them."""
    if not (directory / SEGMENTS).is_dir():
        (directory / SEGMENTS).mkdir(parents=True)
        create_catalogue(directory, FILE)
    storage = S3Storage(directory, where, options)
    storage.use_index(open_catalogue(directory, FILE))
    return storage


def commit(storage: Storage, changes: Changes) -> None:
    """Do what a writer's transaction does with what `sync` returned."""
    if isinstance(storage, S3Storage):
        with storage.index.transaction():
            storage.index.remove(*changes.remove)
            storage.index.put(*changes.put)
    else:
        assert changes == Changes()
