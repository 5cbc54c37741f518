"""Copies on the local disk of what the object store has: whole files and blocks of them, within a bound.

Everything here may be deleted at any time, by anybody: it is fetched again. A copy appears under its name by a rename,
so it is whole; its name bears the file's token, so it is never one of another file. What was used longest ago goes
first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from drengine.ownership import make_directory
from drengine.store.blobs.local import UNFINISHED, LocalReader, LocalStorage
from drengine.store.blobs.storage import Buffer

CACHE = "cache"
BLOCK_BYTES = 1 << 20
_FREED_SHARE = 0.1
"""Room is made for so much of the bound at once, so that the folder is rarely walked."""
_TOUCH_SECONDS = 60.0
_UNFINISHED_NS_MAX = 3600 * 1_000_000_000


class _Copy(NamedTuple):
    used_ns: int
    size: int
    path: Path


class Cache:
    """The folder `cache` of a store's directory. Threads and processes share it."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._root = directory / CACHE
        self._bytes_max = bytes_max
        self._files: LocalStorage | None = None
        self._lock = threading.Lock()
        self._size: int | None = None
        self._touched: dict[str, float] = {}

    def open_whole(self, name: str, file: str) -> LocalReader | None:
        """A whole copy of a file."""
        return self._open(f"{name}.{file}")

    def open_block(self, name: str, file: str, number: int) -> LocalReader | None:
        """A copy of the bytes from `number` * BLOCK_BYTES on; the last one of a file may be shorter, or grow."""
        return self._open(f"{name}.{file}.{number:08x}")

    def keep_block(self, name: str, file: str, number: int, data: Buffer) -> None:
        """Keep a block."""
        self._keep(f"{name}.{file}.{number:08x}", data)

    def keep_whole(self, name: str, file: str, data: Buffer) -> None:
        """Keep a whole file."""
        self._keep(f"{name}.{file}", data)

    def take_over(self, path: Path, name: str, file: str) -> None:
        """A local file that the object store has by now becomes a copy: it may go from now on."""
        self._storage().make_folders(name)
        size = path.stat().st_size
        path.rename(self._root / f"{name}.{file}")
        self._grew(size)

    def forget(self, name: str, file: str) -> None:
        """Delete the copies of a file."""
        folder, leaf = (self._root / f"{name}.{file}").parent, f"{name}.{file}".rpartition("/")[2]
        with suppress(FileNotFoundError):
            for path in folder.iterdir():
                if path.name == leaf or path.name.startswith(f"{leaf}."):
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all copies."""
        for copy in list(self._copies()):
            copy.path.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove copies that somebody died while making; how many there were."""
        dead = [copy.path for copy in self._copies() if copy.path.name.endswith(UNFINISHED) and _is_old(copy)]
        for path in dead:
            path.unlink(missing_ok=True)
        return len(dead)

    def size(self) -> int:
        """Bytes of all copies, as they were found when the folder was last walked, and what came since."""
        with self._lock:
            if self._size is None:
                self._size = sum(copy.size for copy in self._copies())
            return self._size

    def _open(self, leaf: str) -> LocalReader | None:
        try:
            reader = self._storage().open(leaf)
        except OSError:  # whatever is wrong with a copy, there is the object
            return None
        now = time.monotonic()
        if now > self._touched.get(leaf, -_TOUCH_SECONDS) + _TOUCH_SECONDS:
            with self._lock:
                if len(self._touched) > 10_000:
                    self._touched.clear()
                self._touched[leaf] = now
            with suppress(OSError):
                os.utime(self._root / leaf)
        return reader

    def _keep(self, leaf: str, data: Buffer) -> None:
        """A copy that cannot be kept costs another request, and nothing else."""
        if len(data) > self._bytes_max:
            return
        aside = f"{leaf}.{threading.get_ident():x}-{os.getpid():x}{UNFINISHED}"
        try:
            appender = self._storage().create(aside)
            try:
                appender.append(data)
                (self._root / aside).rename(self._root / leaf)
            except BaseException:
                (self._root / aside).unlink(missing_ok=True)
                raise
            finally:
                appender.close()
        except OSError:
            self._files = None  # somebody may have deleted the folder itself
            return
        self._grew(len(data))

    def _grew(self, size: int) -> None:
        self.size()
        with self._lock:
            self._size = (self._size or 0) + size
            if self._size > self._bytes_max:
                self._size = self._make_room()

    def _make_room(self) -> int:
        """Delete what was used longest ago; returns what is left."""
        copies = sorted(self._copies())
        left = sum(copy.size for copy in copies)
        wanted = int(self._bytes_max * (1 - _FREED_SHARE))
        for copy in copies:
            if left <= wanted:
                break
            with suppress(OSError):
                copy.path.unlink(missing_ok=True)
                left -= copy.size
        return left

    def _copies(self) -> Iterator[_Copy]:
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    found = path.stat()
                    yield _Copy(found.st_mtime_ns, found.st_size, path)

    def _storage(self) -> LocalStorage:
        if self._files is None:
            make_directory(self._root)
            self._files = LocalStorage(self._root)
        return self._files


def _is_old(copy: _Copy) -> bool:
    return time.time_ns() - copy.used_ns > _UNFINISHED_NS_MAX
