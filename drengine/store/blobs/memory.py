"""Files in memory: for tests, and as the smallest statement of what a storage must do."""

from __future__ import annotations

import errno
import threading

from drengine.store.blobs.storage import Abilities, Buffer


class MemoryAppender:
    """A file that grows in memory. See Appender."""

    def __init__(self, data: bytearray, *, may_go_on: bool) -> None:
        self._data = data
        self._may_go_on = may_go_on
        self._synced = False

    def append(self, data: Buffer) -> None:
        """See Appender."""
        if self._synced and not self._may_go_on:
            raise OSError(errno.EROFS, "this storage does not append after a sync")
        self._data += data

    def sync(self) -> None:
        """See Appender."""
        self._synced = True

    def close(self) -> None:
        """See Appender."""


class MemoryReader:
    """A file in memory being read. See Reader."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        return bytes(self._data[offset : offset + length])

    def size(self) -> int:
        """See Reader."""
        return len(self._data)

    def map(self) -> bytes:
        """See Reader."""
        return bytes(self._data)

    def close(self) -> None:
        """See Reader."""


class MemoryStorage:
    """A dictionary of files. See Storage. `append=False` behaves as an object store does."""

    def __init__(self, *, append: bool = True) -> None:
        self.abilities = Abilities(append=append)
        self.files: dict[str, bytearray] = {}
        self._lock = threading.Lock()

    def create(self, name: str) -> MemoryAppender:
        """See Storage."""
        with self._lock:
            if name in self.files:
                raise FileExistsError(errno.EEXIST, name)
            data = self.files[_checked(name)] = bytearray()
        return MemoryAppender(data, may_go_on=self.abilities.append)

    def open(self, name: str) -> MemoryReader:
        """See Storage."""
        with self._lock:
            if _checked(name) not in self.files:
                raise FileNotFoundError(errno.ENOENT, name)
            return MemoryReader(self.files[name])

    def put(self, name: str, data: Buffer) -> None:
        """See Storage."""
        with self._lock:
            self.files[_checked(name)] = bytearray(data)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        with self._lock:
            return sorted(name for name in self.files if name.startswith(_checked(prefix) + "/"))

    def delete(self, name: str) -> None:
        """See Storage."""
        with self._lock:
            self.files.pop(_checked(name), None)

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""

    def free_bytes(self) -> int | None:
        """See Storage."""
        return None


def _checked(name: str) -> str:
    if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
        raise OSError(errno.EINVAL, f"{name[:80]!r} is no name inside a store")
    return name
