"""Small documents that are replaced whole, each by one process at a time: a file, or a row that several hosts share."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drengine.durable import replace_durably
from drengine.ownership import make_directory, open_owned


@dataclass(slots=True)
class Draft:
    """A document while it is changed: what it holds, None if there is none; what it is to hold."""

    content: bytes | None


class Document(Protocol):
    """See the module. Threads may share it."""

    where: str
    """For people."""

    def read(self) -> bytes | None:
        """What it holds now; None if there is none."""
        ...

    def changing(self) -> AbstractContextManager[Draft]:
        """A draft, while nobody else changes it; what it holds in the end is durable, unless something is raised."""
        ...


class Nothing:
    """A document that is not there, where it can't be asked for."""

    def __init__(self, where: str) -> None:
        self.where = where

    def read(self) -> bytes | None:
        """See Document."""
        return None

    def changing(self) -> AbstractContextManager[Draft]:
        """See Document; raises OSError."""
        raise OSError(errno.EROFS, "it can't be changed now")


class FileDocument:
    """In a file, with a lock beside it. It is read again only when it is another one.

    Reading and changing raise OSError.
    """

    def __init__(self, path: Path, check: Callable[[os.stat_result], None] = lambda _: None) -> None:
        """`check` raises for a file that is not to be believed."""
        self.where = str(path)
        self._path, self._check = path, check
        self._seen: tuple[tuple[int, ...], bytes] | None = None

    def read(self) -> bytes | None:
        """See Document."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        stamp = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        seen = self._seen
        if seen is None or seen[0] != stamp:
            self._check(found)
            seen = self._seen = stamp, self._path.read_bytes()
        return seen[1]

    @contextmanager
    def changing(self) -> Iterator[Draft]:
        """See Document."""
        make_directory(self._path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = open_owned(self._path.with_suffix(".lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            draft = Draft(self.read())
            before = draft.content
            yield draft
            if draft.content is not None and draft.content != before:
                replace_durably(self._path, draft.content)
        finally:
            os.close(lock)
