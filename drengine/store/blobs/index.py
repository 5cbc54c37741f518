"""What exists in an object store is said by rows of the catalogue; these are the rows, and what is asked of it.

A file is a sequence of objects, its parts. Each written file has a random token, and each object of it another one, so
that no key is ever written twice. An object's key is ``NAME/FILE TOKEN/BEGIN-OBJECT TOKEN``, which is all that a
rebuild needs to know about it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

_KEY = re.compile(r"(.+)/([0-9a-f]{16})/([0-9a-f]{12})-([0-9a-f]{8})", re.ASCII)


class PartRow(NamedTuple):
    """Bytes of a file that are one object. Rows of a file have one file token.

    Attributes:
        source: whose file it is (names.source_of); empty for the store's own.
        name, begin: which bytes.
        length: how many; 0: none yet, and the row says only which file counts and who has it.
        file, object: tokens; `object` is empty where `length` is 0.
        digest: xxh3-128 of the bytes.
        holder: the host that wrote the file, which may have more of it than the object store.
    """

    source: str
    name: str
    begin: int
    length: int
    file: str
    object: str
    digest: bytes
    holder: str

    @property
    def key(self) -> str:
        """Of the object, below the store's prefix."""
        return f"{self.name}/{self.file}/{self.begin:012x}-{self.object}"

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.begin + self.length


class ObjectRemovalRow(NamedTuple):
    """A decision to delete an object, or all of a file's (`key` ends with '/'). It goes after they are gone."""

    source: str
    key: str
    decided_ns: int


class Changes(NamedTuple):
    """Rows that the caller's own transaction removes and then puts, because they are true with it and not before."""

    put: tuple[PartRow | ObjectRemovalRow, ...] = ()
    remove: tuple[PartRow, ...] = ()


NO_CHANGES = Changes()


class Index(Protocol):
    """The catalogue, as far as a storage needs it. Threads may share it."""

    def another(self) -> Index:
        """Another connection to the same catalogue."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...

    def parts(self, source: str, name: str) -> list[PartRow]:
        """A file's rows, by `begin`."""
        ...

    def all_parts(self) -> list[PartRow]:
        """The rows of all files."""
        ...

    def part_names(self, source: str | None, prefix: str) -> list[str]:
        """Names of files that begin with `prefix`, sorted; None: of every source."""
        ...

    def transaction(self, source: str | None = None, /) -> AbstractContextManager[None]:
        """All of the block or nothing."""
        ...

    def put(self, *rows: Any) -> None:
        """Insert or replace rows, inside a transaction."""
        ...

    def remove(self, *rows: Any) -> None:
        """Delete rows by their keys, inside a transaction."""
        ...


def new_file_token() -> str:
    """Of a file that is begun."""
    return secrets.token_hex(8)


def new_object_token() -> str:
    """Of an object that is about to be stored."""
    return secrets.token_hex(4)


def file_key(name: str, file: str) -> str:
    """What the keys of all objects of a file begin with."""
    return f"{name}/{file}/"


class FoundObject(NamedTuple):
    """What an object's key says."""

    name: str
    file: str
    begin: int
    object: str


def parse_key(key: str) -> FoundObject | None:
    """What a key says; None when it is not one of a file's object."""
    match = _KEY.fullmatch(key)
    return FoundObject(match[1], match[2], int(match[3], 16), match[4]) if match else None


def contiguous(rows: Iterable[PartRow]) -> list[PartRow]:
    """The rows of which a file consists, from its beginning to the first byte that none has."""
    chosen: list[PartRow] = []
    end = 0
    for row in sorted(rows, key=lambda row: (row.begin, -row.length)):
        if row.begin > end:
            break
        if row.end > end:
            chosen.append(row)
            end = row.end
    return chosen


def end_of(rows: Iterable[PartRow]) -> int:
    """Where the bytes that follow each other from a file's beginning end."""
    return max((row.end for row in contiguous(rows)), default=0)
