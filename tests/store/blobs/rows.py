"""A storage that is no part of the product: every file is a row of an SQLite database. It can't append."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from drengine.store.blobs.index import NO_CHANGES, Changes
from drengine.store.blobs.storage import Abilities, Buffer, name_parts


class RowStorage:
    """See Storage. A connection for each call: threads and processes share the database."""

    abilities = Abilities(append=False)

    def __init__(self, _directory: Path, place: str) -> None:
        self._path = Path(place)
        with self._database() as database:
            database.execute("CREATE TABLE IF NOT EXISTS file (name TEXT PRIMARY KEY, data BLOB NOT NULL)")

    def create(self, name: str) -> RowAppender:
        name_parts(name)
        with self._database() as database:
            if database.execute("SELECT 1 FROM file WHERE name = ?", (name,)).fetchone():
                raise FileExistsError(errno.EEXIST, "the name is taken", name)
        return RowAppender(self, name)

    def resume(self, name: str, length: int) -> RowAppender:
        raise OSError(errno.ENOTSUP, f"{name} takes nothing after its first {length} bytes")

    def open(self, name: str) -> RowReader:
        name_parts(name)
        with self._database() as database:
            found = database.execute("SELECT data FROM file WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return RowReader(found[0])

    def put(self, name: str, data: Buffer) -> None:
        name_parts(name)
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO file VALUES (?, ?)", (name, bytes(data)))

    def list(self, prefix: str) -> list[str]:
        if above := prefix.rpartition("/")[0]:
            name_parts(above)
        with self._database() as database:
            names = [name for (name,) in database.execute("SELECT name FROM file ORDER BY name")]
        return [name for name in names if name.startswith(prefix)]

    def delete(self, name: str) -> None:
        name_parts(name)
        with self._database() as database:
            database.execute("DELETE FROM file WHERE name = ?", (name,))

    def sync_dir(self, prefix: str) -> None:
        name_parts(prefix)

    def sweep(self) -> int:
        return 0

    def free_bytes(self) -> int | None:
        return None

    def available_length(self, name: str) -> int:
        return self.open(name).size()

    def close(self) -> None: ...

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=60)) as database, database:
            yield database


class RowAppender:
    def __init__(self, storage: RowStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._data: bytearray | None = bytearray()

    def append(self, *parts: Buffer) -> None:
        if self._data is None:
            raise OSError(errno.EROFS, "it was synced already", self._name)
        for part in parts:
            self._data += part

    def sync(self) -> Changes:
        if self._data is not None:
            self._storage.put(self._name, self._data)
        self._data = None
        return NO_CHANGES

    def close(self) -> None:
        self._data = None


class RowReader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def size(self) -> int:
        return len(self._data)

    def map(self) -> bytes:
        return self._data

    def close(self) -> None: ...
