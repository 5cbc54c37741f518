"""Files on the local disk that the object store does not have, or not whole: `spool/NAME.TOKEN`.

Nothing here is deleted but by a decision about the file. Whoever writes a file, or uploads it for a writer that is
gone, holds its lock.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from drengine.ownership import make_directory
from drengine.store.blobs.local import LocalAppender, LocalReader, LocalStorage

SPOOL = "spool"
_LEAF = re.compile(r"(.+)\.([0-9a-f]{16})", re.ASCII)


class Spooled(NamedTuple):
    """A file here."""

    name: str
    file: str


class Spool:
    """The folder. Threads and processes share it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / SPOOL
        self._files: LocalStorage | None = None

    def create(self, name: str, file: str) -> LocalAppender:
        """Begin a file, and hold its lock."""
        appender = self._storage(make=True).create(f"{name}.{file}")
        appender.lock()
        return appender

    def open(self, name: str, file: str) -> LocalReader | None:
        """A file for reading; None when it is not here."""
        try:
            return self._storage().open(f"{name}.{file}")
        except FileNotFoundError:
            return None

    def path(self, name: str, file: str) -> Path:
        """Where it lies."""
        return self.root / f"{name}.{file}"

    def files(self, prefix: str) -> list[Spooled]:
        """Files whose name begins with `prefix`."""
        return [each for each in self._listed(prefix) if each.name.startswith(prefix)]

    def of_name(self, name: str) -> list[Spooled]:
        """Files of exactly this name: more than one where another host wrote it in between."""
        return [each for each in self._listed(f"{name}.") if each.name == name]

    def delete(self, name: str, file: str) -> None:
        """Remove a file."""
        if self.root.is_dir():
            self._storage().delete(f"{name}.{file}")

    def sync_dir(self, prefix: str) -> None:
        """Make the names in a folder durable."""
        with suppress(FileNotFoundError):
            self._storage(make=True).sync_dir(prefix)

    def free_bytes(self) -> int | None:
        """Room on its disk."""
        place = self.root if self.root.is_dir() else self.root.parent
        return LocalStorage(place).free_bytes()

    @contextmanager
    def held(self, name: str, file: str) -> Iterator[bool]:
        """Hold a file's lock; False when somebody else has it, or the file is gone."""
        try:
            descriptor = os.open(self.path(name, file), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError:
            is_held = False
        try:
            yield is_held
        finally:
            os.close(descriptor)

    def _listed(self, prefix: str) -> list[Spooled]:
        """Files whose leaf, with the token, begins with `prefix`."""
        if not self.root.is_dir():
            return []
        matches = (_LEAF.fullmatch(leaf) for leaf in self._storage().list(prefix))
        return [Spooled(match[1], match[2]) for match in matches if match]

    def _storage(self, *, make: bool = False) -> LocalStorage:
        if self._files is None:
            if make:
                make_directory(self.root)
            elif not self.root.is_dir():
                raise FileNotFoundError(self.root)
            self._files = LocalStorage(self.root)
        return self._files
