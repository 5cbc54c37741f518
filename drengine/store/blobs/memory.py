"""Files in memory: for tests, and as the smallest statement of what a storage must do."""

from __future__ import annotations

import errno
import threading

from drengine.store.blobs.index import NO_CHANGES, Changes
from drengine.store.blobs.storage import Abilities, Buffer, name_parts


class MemoryStorage:
    """A dictionary of files. See Storage. `append=False` behaves as an object store does."""

    def __init__(self, *, append: bool = True) -> None:
        self.abilities = Abilities(append=append)
        self.files: dict[str, bytearray] = {}
        self.lock = threading.Lock()

    def create(self, name: str) -> MemoryAppender:
        """See Storage."""
        name_parts(name)
        with self.lock:
            if name in self.files:
                raise FileExistsError(errno.EEXIST, "the name is taken", name)
            if self.abilities.append:
                self.files[name] = bytearray()
        return MemoryAppender(self, name)

    def resume(self, name: str, length: int) -> MemoryAppender:
        """See Storage."""
        name_parts(name)
        with self.lock:
            if name not in self.files:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            if len(self.files[name]) < length:
                raise OSError(errno.EINVAL, f"{name} is shorter than {length} bytes")
            del self.files[name][length:]
        return MemoryAppender(self, name)

    def open(self, name: str) -> MemoryReader:
        """See Storage."""
        name_parts(name)
        with self.lock:
            if name not in self.files:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            return MemoryReader(self.files[name])

    def put(self, name: str, data: Buffer) -> None:
        """See Storage."""
        name_parts(name)
        with self.lock:
            self.files[name] = bytearray(data)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        if above := prefix.rpartition("/")[0]:
            name_parts(above)
        with self.lock:
            return sorted(name for name in self.files if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """See Storage."""
        name_parts(name)
        with self.lock:
            self.files.pop(name, None)

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""
        name_parts(prefix)

    def sweep(self) -> int:
        """See Storage."""
        return 0

    def free_bytes(self) -> int | None:
        """See Storage."""
        return None

    def available_length(self, name: str) -> int:
        """See Storage."""
        with self.lock:
            return len(self.files.get(name, b""))

    def close(self) -> None:
        """See Storage."""


class MemoryAppender:
    """A file that grows in memory. See Appender."""

    def __init__(self, storage: MemoryStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._data = storage.files[name] if storage.abilities.append else bytearray()
        self._uploaded = False

    def append(self, *parts: Buffer) -> None:
        """See Appender."""
        self._require_open()
        for part in parts:
            self._data += part

    def sync(self) -> Changes:
        """See Appender."""
        self._require_open()
        if not self._storage.abilities.append:
            with self._storage.lock:
                if self._name in self._storage.files:
                    raise FileExistsError(errno.EEXIST, "another writer took the name", self._name)
                self._storage.files[self._name] = self._data
            self._uploaded = True
        return NO_CHANGES

    def close(self) -> None:
        """See Appender."""

    def _require_open(self) -> None:
        if self._uploaded:
            raise OSError(errno.EROFS, "this storage takes nothing after a sync")


class MemoryReader:
    """A file in memory being read. See Reader."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        return bytes(self._data[offset : offset + length])

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader."""
        return self.read_at(offset, length)

    def size(self) -> int:
        """See Reader."""
        return len(self._data)

    def map(self) -> bytes:
        """See Reader."""
        return bytes(self._data)

    def close(self) -> None:
        """See Reader."""
