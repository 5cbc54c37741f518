"""What the store asks of storage. Failures are OSError with an errno; the store gives them their kind and hint.

Durability: `Appender.sync` makes the bytes durable, `Storage.sync_dir` the names; `put` and `delete`
are durable when they return.
Storage that can't append (an object store) says so in its abilities: the store then seals a segment at each commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import mmap
from typing import Protocol

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a storage can do.

    Attributes:
        append: bytes appended after a `sync` may follow in the same file. Without it, an appender takes exactly one
            `sync`, after its last append.
    """

    append: bool


class Appender(Protocol):
    """A file being written, from its beginning."""

    def append(self, data: Buffer) -> None:
        """Add bytes at the end, all of them or an error."""
        ...

    def sync(self) -> None:
        """Make all appended bytes durable. After an error nothing may be assumed about any of them."""
        ...

    def close(self) -> None:
        """Let go of it; what was not synced may be lost."""
        ...


class Reader(Protocol):
    """A file being read; it stays readable after `delete`."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end."""
        ...

    def size(self) -> int:
        """Bytes in it now."""
        ...

    def map(self) -> mmap | bytes:
        """Its whole content, mapped where the storage can; valid after `close`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Storage(Protocol):
    """A tree of files by relative name with '/' between levels."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""
        ...

    def create(self, name: str) -> Appender:
        """Begin a new file.

        Raises:
            FileExistsError: the name is taken.
        """
        ...

    def open(self, name: str) -> Reader:
        """Open for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def put(self, name: str, data: Buffer) -> None:
        """Store a whole file under `name`, replacing what was there, atomically and durably."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Names of the files below the folder `prefix`, at any depth, sorted; unfinished `put`s are left out."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file; it is no error if there is none."""
        ...

    def sync_dir(self, prefix: str) -> None:
        """Make the names in a folder durable, and the folder's own."""
        ...

    def free_bytes(self) -> int | None:
        """Room left, or None where there is no such limit."""
        ...
