"""The STORE file: which store this is, and in which format. One line of JSON, then its xxh3-64 in hexadecimal."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash

from drengine.durable import replace_durably
from drengine.model.errors import ACCESS_DENIED, DrengineError
from drengine.ownership import barrier
from drengine.store.blobs.available import LOCAL, StorageName
from drengine.store.errors import NOT_A_STORE, STORE_IDENTITY_DAMAGED, STORE_VERSION, os_errors

IDENTITY_NAME = "STORE"
IDENTITY_BYTES_MAX = 4096
FORMAT_NAME = "drengine replica store"


VERSION = 1
"""Of a STORE file. Each segment has a version of its own."""
VERSION_WITH_STORAGE = 2
"""Of a STORE file that names another storage than the directory itself: what does not know of any must not open it."""
VERSION_WITH_CATALOGUE = 3
"""... of one that names a catalogue elsewhere."""
VERSION_OF_COPY = 4
"""... of one that says that the store is a copy, which only a mirror may change."""


class StoreFile(NamedTuple):
    """What a STORE file says.

    Attributes:
        identity: 16 bytes that name the store.
        storage: which storage holds its segments.
        catalogue: URL of its catalogue's database, without a secret; empty: SQLite, in the directory.
        is_copy: a mirror keeps it (copies.py). The catalogue decides; this serves whoever makes that anew.
    """

    identity: bytes
    storage: StorageName = StorageName()
    catalogue: str = ""
    is_copy: bool = False

    @property
    def version(self) -> int:
        """Of the file: what does not know all of it must not open the store."""
        if self.is_copy:
            return VERSION_OF_COPY
        if self.catalogue:
            return VERSION_WITH_CATALOGUE
        return VERSION if self.storage.name == LOCAL else VERSION_WITH_STORAGE


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Contents of the STORE file. `id` is 32 hexadecimal digits."""

    format: str
    version: int
    id: str
    storage: str = LOCAL
    place: str = ""
    catalogue: str = ""
    copy: bool = False


def write_store_file(directory: Path, file: StoreFile) -> None:
    """Write the STORE file: from then on the directory is a store. Atomic and durable."""
    fields = Identity(FORMAT_NAME, file.version, file.identity.hex(), *file.storage, file.catalogue, file.is_copy)
    line = msgspec.json.encode(fields)
    data = line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode() + b"\n"
    with os_errors(f"writing {directory / IDENTITY_NAME}"):
        replace_durably(directory / IDENTITY_NAME, data)


def read_identity(directory: Path) -> bytes:
    """The store's identity, see `read_store_file`."""
    return read_store_file(directory).identity


def require_directory(directory: Path) -> None:
    """There is one, as far as this user may know.

    Raises:
        DrengineError: NOT_A_STORE, ACCESS_DENIED.
    """
    if not stat.S_ISDIR(_kind(directory)):
        raise DrengineError(NOT_A_STORE, f"{directory} is not a directory")


def read_store_file(directory: Path) -> StoreFile:
    """What the STORE file says.

    Raises:
        DrengineError: NOT_A_STORE, STORE_VERSION, STORE_IDENTITY_DAMAGED, ACCESS_DENIED.
    """
    path = directory / IDENTITY_NAME
    if not stat.S_ISREG(_kind(path)):
        raise DrengineError(NOT_A_STORE, f"{directory} is not a replica store: it has no {IDENTITY_NAME} file")
    with os_errors(f"reading {path}"), path.open("rb") as file:
        data = file.read(IDENTITY_BYTES_MAX)
    lines = data.split(b"\n")
    damaged = DrengineError(STORE_IDENTITY_DAMAGED, f"{path} fails its checksum")
    if len(lines) != 3 or lines[2] or lines[1] != xxhash.xxh3_64_hexdigest(lines[0]).encode():
        raise damaged
    try:
        identity = msgspec.json.decode(lines[0], type=Identity)
        storage = StorageName(identity.storage, identity.place)
        found = StoreFile(bytes.fromhex(identity.id), storage, identity.catalogue, identity.copy)
    except (msgspec.DecodeError, ValueError) as error:
        raise damaged from error
    if identity.format != FORMAT_NAME:
        raise DrengineError(NOT_A_STORE, f"{directory} holds {identity.format[:60]!r}")
    if identity.version > found.version:
        raise DrengineError(
            STORE_VERSION,
            f"{directory} has format {identity.version}, this version reads up to {VERSION}",
        )
    if len(found.identity) != 16:
        raise damaged
    return found


def _kind(path: Path) -> int:
    """What lies at a path (`st_mode`); 0: nothing. A path that is too long for the system is nothing, either.

    Raises:
        DrengineError: ACCESS_DENIED.
    """
    try:
        return path.stat().st_mode
    except PermissionError as error:
        raise DrengineError(ACCESS_DENIED, barrier(path)) from error
    except (OSError, ValueError):
        return 0
