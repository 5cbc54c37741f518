"""What the store asks of storage. Failures are OSError with an errno; the store gives them their kind and hint.

Durability: `Appender.sync` makes the bytes durable, `Storage.sync_dir` the names; `put` and `delete` are durable
when they return. A call that failed may have happened or not: all of them can be repeated.
Storage that can't append (an object store) says so in its abilities: the store then seals a segment at each commit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

from drengine.model.errors import DrengineError
from drengine.store.blobs.index import Changes, Index, ObjectRemovalRow, PartRow
from drengine.store.errors import DAMAGED

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a storage can do.

    Attributes:
        append: bytes appended after a `sync` may follow in the same file. Without it, an appender takes exactly one
            `sync`, after its last append, and the file appears under its name with that sync.
    """

    append: bool


class Appender(Protocol):
    """A file being written, from its beginning, by one thread at a time."""

    def append(self, *parts: Buffer) -> None:
        """Add bytes at the end, all of them or an error; after an error part of them may be there."""
        ...

    def sync(self) -> Changes:
        """Make all appended bytes durable. After an error nothing may be assumed about any of them.

        Returns:
            What the transaction that commits these bytes must change in the catalogue, where storage keeps rows there:
            each of them, in the order of the calls.
        """
        ...

    def close(self) -> None:
        """Let go of it, once what its syncs returned is committed; what was not synced may be lost. Harmless twice."""
        ...


class Reader(Protocol):
    """A file being read; it stays readable after `delete`."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end."""
        ...

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """As `read_at`, or None when the bytes cannot be had without waiting for a device or a network."""
        ...

    def size(self) -> int:
        """Bytes in it now."""
        ...

    def map(self) -> mmap | bytes:
        """Its whole content, mapped where the storage can; valid after `close`. Only for files that are complete."""
        ...

    def close(self) -> None:
        """Let go of it. Harmless when done twice."""
        ...


class Storage(Protocol):
    """A tree of files by relative name with '/' between levels. Threads and processes may share it."""

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

    def resume(self, name: str, length: int) -> Appender:
        """Go on with a file that was begun, cut to its first `length` bytes. Only where the storage can append.

        Raises:
            FileNotFoundError: there is none.
            OSError: EINVAL when it is shorter.
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
        """Names that begin with `prefix` (plain text, not a folder), sorted; unfinished `put`s are left out.

        It may be out of date where storage is shared: the catalogue decides what is there.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a file, durably; it is no error if there is none."""
        ...

    def sync_dir(self, prefix: str) -> None:
        """Make the names in a folder durable, and the folder's own up to the root."""
        ...

    def sweep(self) -> int:
        """Remove what interrupted `put`s of the dead left behind; how many there were."""
        ...

    def free_bytes(self) -> int | None:
        """Room left, or None where there is no such limit."""
        ...

    def available_length(self, name: str) -> int:
        """Bytes of a file, from its beginning, that are still there when this host is lost; on a local disk all."""
        ...

    def close(self) -> None:
        """Let go of everything; uploads behind the acknowledgements are waited for, within bounds."""
        ...


class Backlog(NamedTuple):
    """What is acknowledged and not yet in the object store.

    Attributes:
        bytes, files: how much.
        oldest_ns: since when the oldest of it waits; 0: nothing does.
        failing: why the newest try failed; None when it did not.
    """

    bytes: int = 0
    files: int = 0
    oldest_ns: int = 0
    failing: DrengineError | None = None


class Trial(NamedTuple):
    """One thing that was tried.

    Attributes:
        name: what.
        detail: what was found, or measured.
        error: why it failed; None when it did not.
    """

    name: str
    detail: str
    error: DrengineError | None = None

    @property
    def is_passed(self) -> bool:
        """Whether it went well."""
        return self.error is None


@runtime_checkable
class ObjectStorage(Storage, Protocol):
    """Storage that several hosts may reach, and whose files the catalogue names (index.py)."""

    def use_index(self, index: Index) -> None:
        """Take the catalogue that says what exists, before anything is asked; without one it goes by what it finds."""
        ...

    def claim(self, identity: bytes) -> None:
        """Take the place for a store that is being made.

        Raises:
            DrengineError: OBJECT_STORE_TAKEN: something is there.
        """
        ...

    def identities(self) -> list[bytes]:
        """The stores that have claimed the place; one, unless something went wrong."""
        ...

    def found_parts(self) -> list[PartRow]:
        """The rows of all files, as its index has them: for a catalogue that is made anew."""
        ...

    def require_claimed(self, identity: bytes) -> None:
        """Return when the place is this store's and no other's, or does not answer.

        Raises:
            DrengineError: OBJECT_STORE_TAKEN, OBJECT_MISSING, and what is wrong with place or credentials.
        """
        ...

    @property
    def delete_delay_seconds(self) -> float:
        """How old a decision to delete objects is before it is carried out."""
        ...

    def delete_objects(self, removals: Sequence[ObjectRemovalRow]) -> int:
        """Carry out decisions; how many objects are gone. The caller has seen to it that nobody reads them."""
        ...

    def objects(self) -> dict[str, int]:
        """The objects of files that a listing finds, by key, and their sizes."""
        ...

    def size_of(self, key: str) -> int | None:
        """An object's size; None when it is not there."""
        ...

    def reachable_length(self, name: str) -> int:
        """Bytes of a file, from its beginning, that this host can read: from its own disk or the object store."""
        ...

    def forget_copies(self, name: str) -> None:
        """Read what the object store has of a file from there the next time, whatever this host has of it."""
        ...

    def backlog(self) -> Backlog:
        """What this host has acknowledged or taken on, and not uploaded yet."""
        ...

    def aside(self) -> Iterator[tuple[str, str]]:
        """Local files, by name and token, that count no more, because another host has written that name since."""
        ...


def name_parts(name: str) -> list[str]:
    """A name's levels.

    Raises:
        OSError: EINVAL, for a name that could lead out of the store or mean another one.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise OSError(errno.EINVAL, f"{name[:80]!r} is no name inside a store")
    return parts


def past_copies(storage: Storage, name: str, read: Callable[[], T]) -> T:
    """What `read` makes of a file; once more where it finds damage that may be a local copy's, and not the object's.

    Raises:
        DrengineError: DAMAGED: so is the file itself; and whatever `read` raises.
    """
    try:
        return read()
    except DrengineError as error:
        if error.kind is not DAMAGED or not has_copies(storage):
            raise
        storage.forget_copies(name)
        return read()


def has_copies(storage: Storage) -> TypeGuard[ObjectStorage]:
    """Whether what is read may come from copies that can be forgotten."""
    return isinstance(storage, ObjectStorage)


def content(storage: Storage, name: str) -> bytes | None:
    """All of a small file; None when there is none."""
    try:
        reader = storage.open(name)
    except FileNotFoundError:
        return None
    try:
        return reader.read_at(0, reader.size())
    finally:
        reader.close()
