"""The files of an audit log: their names, their first lines, and the entries in them.

| file | holds |
|---|---|
| `NUMBER.log` | first a line: `drengine-audit 1`, id of the log, NUMBER, number of its first entry, hash before it |
| `head` | id of the log, number and hash of the newest acknowledged entry, where it ends; writers lock it |

Files are numbered without a gap: 1, 2, 3...
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drengine.audit.entry import LINE_BYTES_MAX, Entry, genesis, read_line

HEAD_FILE = "head"
_NAME = re.compile(r"(\d{12})\.log", re.ASCII)
_FIRST_LINE = re.compile(rb"drengine-audit 1 ([0-9a-f]{32}) (\d{12}) (\d{16}) ([0-9a-f]{64})\n")
HEAD_BYTES = 145
_HEAD = re.compile(rb"([0-9a-f]{32}) (\d{16}) ([0-9a-f]{64}) (\d{12}) (\d{16})\n")


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends.

    Attributes:
        log: id of the log: 32 hexadecimal digits, made up when it was begun.
        number, hash: of the newest entry; before the first 0 and `genesis`.
        file: number of the file that it goes on in.
        end: how long that file is, in bytes.
    """

    log: str
    number: int
    hash: str
    file: int
    end: int

    @staticmethod
    def begin(log: str) -> Head:
        """Of a log that has no file yet."""
        return Head(log, 0, genesis(log), 0, 0)

    def encode(self) -> bytes:
        """As the file `head` holds it; always of one length, so that it is overwritten in place."""
        return f"{self.log} {self.number:016d} {self.hash} {self.file:012d} {self.end:016d}\n".encode()

    @staticmethod
    def decode(content: bytes) -> Head | None:
        """What `encode` has written; None if it is anything else."""
        match = _HEAD.fullmatch(content)
        if match is None:
            return None
        return Head(match[1].decode(), int(match[2]), match[3].decode(), int(match[4]), int(match[5]))


@dataclass(frozen=True, slots=True)
class Line:
    """An entry, and where it ends."""

    entry: Entry
    head: Head


@dataclass(frozen=True, slots=True)
class Rest:
    """What is behind the newest entry of a file, and is none.

    Attributes:
        size: in bytes.
        sha256: of it.
        is_torn: it may be the beginning of an entry that a crash kept from being written whole.
    """

    size: int
    sha256: str
    is_torn: bool

    def told(self) -> dict[str, Any]:
        """As the entry tells of it that begins the next file."""
        return {"bytes": self.size, "sha256": self.sha256}


def file_path(directory: Path, file: int) -> Path:
    """Where the file of this number is."""
    return directory / f"{file:012d}.log"


def first_line(head: Head, file: int) -> bytes:
    """What the file of this number begins with, if it follows `head`."""
    return f"drengine-audit 1 {head.log} {file:012d} {head.number + 1:016d} {head.hash}\n".encode()


def files(directory: Path) -> list[int]:
    """The numbers of the log's files, in order.

    Raises:
        OSError: the directory can't be read.
    """
    found = (_NAME.fullmatch(each.name) for each in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


class Reader:
    """Reads one file, as long as each entry fits the one before.

    Attributes:
        start: what its entries follow; None if its first line can't be read.
        head: where the newest entry ends that was read; None as `start` is.
        damage: why the rest could not be read; empty when all of it was.
    """

    def __init__(self, directory: Path, file: int, *, behind: Head | None = None) -> None:
        """Begin at the file's first entry, or behind one of which it is known where it ends.

        Raises:
            OSError: it can't be read.
        """
        self._path = file_path(directory, file)
        self.start = behind or self._read_start(file)
        self.head = self.start
        self.damage = "" if self.start else "the file does not begin as an audit log's does"

    def entries(self) -> Iterator[Line]:
        """The entries in order.

        Raises:
            OSError: it can't be read.
        """
        if self.head is None:
            return
        with self._path.open("rb") as file:
            file.seek(self.head.end)
            while line := file.readline(LINE_BYTES_MAX):
                try:
                    hashed, entry = read_line(self.head.hash, self.head.number + 1, line)
                except ValueError as error:
                    self.damage = str(error)
                    return
                self.head = replace(self.head, number=entry.number, hash=hashed, end=self.head.end + len(line))
                yield Line(entry, self.head)

    def _read_start(self, file: int) -> Head | None:
        with self._path.open("rb") as opened:
            line = opened.readline(LINE_BYTES_MAX)
        match = _FIRST_LINE.fullmatch(line)
        if match is None or int(match[2]) != file or not int(match[3]):
            return None
        return Head(match[1].decode(), int(match[3]) - 1, match[4].decode(), file, len(line))

    def rest(self) -> Rest:
        """What is behind the newest entry that was read.

        Raises:
            OSError: it can't be read.
        """
        with self._path.open("rb") as file:
            end = self.head.end if self.head else 0
            file.seek(end)
            begin = file.read(LINE_BYTES_MAX + 1)
            file.seek(end)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Rest(file.tell() - end, digest, len(begin) <= LINE_BYTES_MAX and b"\n" not in begin)
