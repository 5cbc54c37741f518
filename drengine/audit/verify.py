"""Whether a log is as it was written: each entry is compared with the one before, and with what anchors received."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drengine.audit.entry import genesis
from drengine.audit.files import HEAD_BYTES, HEAD_FILE, Head, Line, Reader, Rest, file_path, files
from drengine.audit.log import LOST, MENDED, OURSELVES, REMOVED, unusable

_NO_ENTRY = "the file ends in what is no entry"
_TRIES = 5
_ANCHOR = re.compile(
    r"\blog\W{1,4}([0-9a-f]{32})\b.{0,200}?\bnumber\W{1,4}(\d{1,16})\b.{0,200}?\bhash\W{1,4}([0-9a-f]{64})\b"
)
_NOTHING = Head("", 0, "", 0, 0)
"""Stands for the end of what was read, before any file was."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The hash of an entry, as it was kept elsewhere.

    Attributes:
        hash: of it.
        number: its number; 0: not known.
        log: id of its log; empty: not known, so it is the one that is compared.
    """

    hash: str
    number: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What verifying found.

    Attributes:
        log: the log's id.
        first, last: numbers of the entries that are there and fit; 0 where there is none.
        hash: of the last.
        removed: so many entries at the beginning went by retention.
        mended: how often a crash left part of a line, which the next writer told of.
        unfinished_bytes: of an entry that a crash kept from being written; the next writer tells of it.
        anchors: how many anchors agree; those of other logs don't count.
        not_compared: how many anchors are of entries that retention removed.
        broken: what is wrong first; empty: nothing.
        broken_number: the first entry that is wrong or missing; 0: none.
        broken_file: the file in which it is, or should be.
    """

    log: str
    first: int
    last: int
    hash: str
    removed: int
    mended: int
    unfinished_bytes: int
    anchors: int
    not_compared: int
    broken: str = ""
    broken_number: int = 0
    broken_file: str = ""


class _BrokenError(Exception):
    def __init__(self, message: str, number: int, file: int) -> None:
        super().__init__(message)
        self.message, self.number, self.file = message, number, file


def verify(directory: Path, anchors: Iterable[Anchor] = ()) -> Checked:
    """Check a log against itself, and against hashes that were kept elsewhere; writers go on meanwhile.

    Raises:
        DrengineError: AUDIT_UNUSABLE: it can't be read.
    """
    kept = frozenset(anchors)
    for tries_left in reversed(range(_TRIES)):
        walk = _Walk(directory, kept)
        try:
            return walk.answer()
        except FileNotFoundError as error:  # retention removed it meanwhile
            if not tries_left or not directory.is_dir():
                raise unusable(directory, error) from error
        except OSError as error:
            raise unusable(directory, error) from error
    raise AssertionError("unreachable")


def read_entries(directory: Path) -> Iterator[Line]:
    """The entries of a log, oldest first; of each file up to the first that does not fit. Takes no lock.

    Raises:
        DrengineError: AUDIT_UNUSABLE.
    """
    try:
        for file in files(directory):
            with contextlib.suppress(FileNotFoundError):  # retention removed it meanwhile
                yield from Reader(directory, file).entries()
    except OSError as error:
        raise unusable(directory, error) from error


def read_head(directory: Path) -> Head | None:
    """The newest acknowledged entry; None where there is none, or a power cut has left no word of it.

    Raises:
        OSError: it can't be read.
    """
    descriptor = os.open(directory / HEAD_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return Head.decode(os.read(descriptor, HEAD_BYTES))
    finally:
        os.close(descriptor)


def read_anchors(text: str) -> list[Anchor]:
    """The anchors in what was received: lines of JSON or of syslog.

    Raises:
        ValueError: there is none.
    """
    found = [Anchor(match[3], int(match[2]), match[1]) for match in _ANCHOR.finditer(text)]
    if not found:
        raise ValueError("there is no anchor in it: a line of one has log, number and hash")
    return found


class _Walk:
    """Goes through a log once; `_go` again goes on where it ended."""

    def __init__(self, directory: Path, anchors: frozenset[Anchor]) -> None:
        self._directory = directory
        self._given = anchors
        self._anchors = frozenset[Anchor]()
        self._agreed = set[Anchor]()
        self._wanted: dict[int, set[str]] = {}
        self._start: Head | None = None
        self._head = _NOTHING
        self._rest: Rest | None = None
        self._vouched = set[tuple[int, str]]()
        self._mended = 0

    def answer(self) -> Checked:
        """Go through all of it.

        Raises:
            OSError: it can't be read.
        """
        broken: _BrokenError | None = None
        try:
            noted = read_head(self._directory)
            if noted is not None:
                self._wanted[noted.number] = {noted.hash}
            self._go()
            with _quiet(self._directory) as newest:
                self._go()
                self._end(newest)
        except _BrokenError as error:
            broken = error
        start = self._start or _NOTHING
        return Checked(
            log=start.log,
            first=start.number + 1 if self._head.number > start.number else 0,
            last=self._head.number,
            hash=self._head.hash,
            removed=start.number,
            mended=self._mended,
            unfinished_bytes=self._rest.size if self._rest else 0,
            anchors=len(self._agreed),
            not_compared=sum(0 < each.number < start.number for each in self._anchors),
            broken=broken.message if broken else "",
            broken_number=broken.number if broken else 0,
            broken_file=file_path(self._directory, broken.file).name if broken else "",
        )

    def _go(self) -> None:
        """Read all that is there by now.

        Raises:
            OSError: it can't be read.
            _BrokenError: it is not as it was written.
        """
        for file in files(self._directory):
            if file < self._head.file:
                continue
            torn: Rest | None = None
            if file == self._head.file:  # what looked torn may have been an entry that was just being written
                reader = Reader(self._directory, file, behind=self._head)
            else:
                reader = Reader(self._directory, file)
                self._enter(reader, file)
                torn = self._rest
            for line in reader.entries():
                self._head = line.head
                self._see(line, torn)
                torn = None
            if torn is not None:
                raise self._broken(_NO_ENTRY, file=file - 1)
            self._rest = reader.rest() if reader.damage else None
            if self._rest is not None and not self._rest.is_torn:
                raise self._broken(reader.damage)

    def _enter(self, reader: Reader, file: int) -> None:
        """Begin another file: it has to go on where the one before ended."""
        if self._start is not None and file != self._head.file + 1:
            raise self._broken("the file is missing", file=self._head.file + 1)
        if reader.start is None:
            raise self._broken(reader.damage, file=file)
        if self._start is None:
            self._begin(reader.start)
        elif reader.start.log != self._head.log:
            raise self._broken("the file is of another log", file=file)
        elif reader.start.number > self._head.number:
            ends = "ends in what is no entry" if self._rest else "ends too early"
            raise self._broken(f"the file {ends}: the next one follows entry {reader.start.number}")
        elif (reader.start.number, reader.start.hash) != (self._head.number, self._head.hash):
            raise self._broken("the file does not follow the one before", file=file)
        self._head = reader.start

    def _begin(self, start: Head) -> None:
        """Begin with the first file: whose anchors count is known now."""
        self._start = start
        self._anchors = frozenset(each for each in self._given if each.log in ("", start.log))
        for each in self._anchors:
            self._wanted.setdefault(each.number, set()).add(each.hash)
        self._head = start
        self._compare(start.number, start.hash)

    def _see(self, line: Line, torn: Rest | None) -> None:
        """Look at an entry that fits the one before; `torn` is left of an unfinished one in the file before."""
        entry = line.entry
        before = file_path(self._directory, line.head.file - 1).name
        if torn is not None:
            if (entry.who, entry.did, entry.on, entry.details) != (OURSELVES, MENDED, before, torn.told()):
                raise self._broken(_NO_ENTRY, file=line.head.file - 1)
            self._mended += 1
        self._compare(entry.number, line.head.hash)
        if entry.who == OURSELVES and entry.did == LOST:
            raise self._broken(f"acknowledged entries were lost from {entry.on}", number=entry.number)
        if entry.who == OURSELVES and entry.did == REMOVED:
            self._vouched.add((entry.details.get("through", 0), entry.details.get("hash", "")))

    def _compare(self, number: int, hashed: str) -> None:
        """Compare an entry with what is known of it elsewhere."""
        if number and self._wanted.get(number, {hashed}) != {hashed}:
            raise self._broken("it is another entry than the one that was acknowledged or anchored", number=number)
        if number in self._wanted or hashed in self._wanted.get(0, ()):
            self._agreed |= {each for each in self._anchors if each.hash == hashed and each.number in (0, number)}

    def _end(self, newest: Head | None) -> None:
        """Look at the log as a whole; nobody writes it now."""
        start = self._start or _NOTHING
        if (start.number, start.hash) not in {(0, genesis(start.log)), (0, ""), *self._vouched}:
            raise self._broken("the entries before it were removed, and not by retention", number=start.number + 1)
        if newest is not None and newest.log != start.log:
            raise self._broken("the head is of another log", number=0)
        known = max((each.number for each in self._anchors), default=0)
        if newest is not None and newest.number > known:
            known = newest.number
        if known > self._head.number:
            raise self._broken(f"the log ends here, and entry {known} was acknowledged or anchored")
        unknown = {each for each in self._anchors if not each.number} - self._agreed
        if unknown:
            raise self._broken(f"no entry has the hash {min(each.hash for each in unknown)}", number=0)
        if self._given and not self._anchors:
            raise self._broken(f"no anchor is of this log, {start.log}", number=0)

    def _broken(self, message: str, *, number: int | None = None, file: int = 0) -> _BrokenError:
        """By default the next entry is the one that is wrong, or missing."""
        return _BrokenError(message, self._head.number + 1 if number is None else number, file or self._head.file or 1)


@contextlib.contextmanager
def _quiet(directory: Path) -> Iterator[Head | None]:
    """The newest acknowledged entry, while nobody writes."""
    descriptor = os.open(directory / HEAD_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield Head.decode(os.read(descriptor, HEAD_BYTES))
    finally:
        os.close(descriptor)
