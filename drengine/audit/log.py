"""The audit log: who did what, each entry chained by its hash to all before it.

Any number of processes may record in one directory: a lock on `head` lets one append at a time. `record` returns when
its entry is on stable storage.

| a crash after | leaves | the next writer |
|---|---|---|
| part of a line | bytes behind the head that are no entry | leaves them, and begins a new file by saying so |
| the line, before `head` | an entry behind the head, acknowledged to nobody | goes on behind it |
| making a new file, before `head` | a file with no entry | goes on in it |
| recording a removal, before the file goes | a file that was to go | removes it when the next file is full |

`head` is not synced: after a power cut it may be older than the log, never newer. Nothing of a log is ever cut or
overwritten. A file that ends before the head has lost acknowledged entries; recording goes on in a new file, which says
so in its first entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drengine.audit.entry import Entry, Outcome, bounded, cut, line_of
from drengine.audit.errors import AUDIT_UNUSABLE
from drengine.audit.files import HEAD_BYTES, HEAD_FILE, Head, Reader, file_path, files, first_line
from drengine.durable import replace_durably, sync_directory
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory, open_owned

OURSELVES = "drengine"
"""Who records what the log itself does."""
MENDED, LOST, REMOVED = "audit.mended", "audit.lost", "audit.removed"
FILE_BYTES = 4 << 20
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of a log is kept: all of it, where nobody says otherwise.

    Attributes:
        bytes_max: the oldest files go when all are larger.
        seconds: a file goes when all its entries are older.
        file_bytes: a new file is begun when one is larger.
    """

    bytes_max: int = sys.maxsize
    seconds: float = 1e9
    file_bytes: int = FILE_BYTES


class AuditLog:
    """An audit log in a directory of its own. Threads and processes may share it."""

    def __init__(self, directory: Path, *, keep: Keep | None = None, clock: Clock | None = None) -> None:
        self.directory = directory
        self._keep = keep or Keep()
        self._clock = clock or SystemClock()
        self._turn = threading.Lock()

    @staticmethod
    def open(directory: Path, *, keep: Keep | None = None, clock: Clock | None = None) -> AuditLog:
        """The log in a directory, which is made where it is missing.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        try:
            make_directory(directory)
        except OSError as error:
            raise unusable(directory, error) from error
        log = AuditLog(directory, keep=keep, clock=clock)
        with log._locked():
            return log

    def record(
        self,
        *,
        who: str,
        did: str,
        on: str = "",
        outcome: Outcome = Outcome.DONE,
        proved: str = "",
        error: str = "",
        times: int = 1,
        details: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Add an entry; it is on stable storage when this returns. Texts are bounded, and secrets left out.

        Record an order before it is carried out, so that nothing is done that no entry tells of. The arguments are
        those of `Entry`.

        Raises:
            DrengineError: AUDIT_UNUSABLE: it is not recorded.
        """
        facts = (cut(who), cut(proved), cut(did), cut(on), outcome, cut(error), times, bounded(details or {}))
        with self._locked() as locked:
            return locked.append(*facts)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_Locked]:
        """The log, while nobody else writes it."""
        descriptor = -1
        try:
            with self._turn:
                descriptor = open_owned(self.directory / HEAD_FILE, _FLAGS, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    yield _Locked(self.directory, descriptor, self._keep, self._clock)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise unusable(self.directory, error) from error


def unusable(directory: Path, error: OSError) -> DrengineError:
    """A log that can't be read or written, as an error."""
    return DrengineError(AUDIT_UNUSABLE, f"{error.filename or directory}: {error.strerror or error}")


class _Locked:
    """The end of a log whose lock is held."""

    def __init__(self, directory: Path, descriptor: int, keep: Keep, clock: Clock) -> None:
        self._directory = directory
        self._descriptor = descriptor
        self._keep = keep
        self._clock = clock
        self._head = self._find()

    def append(self, *facts: Any) -> Entry:
        """Add an entry, in a new file where the newest is full."""
        if self._head.end >= self._keep.file_bytes:
            self._head = self._begin_file(self._head)
            self._retire()
        return self._write(*facts)

    def _find(self) -> Head:
        """Find where the log ends. What a crash, or somebody else, left behind that stays, and a new file says so."""
        noted = Head.decode(os.pread(self._descriptor, HEAD_BYTES, 0))
        newest = max(files(self._directory), default=0)
        if noted is not None and newest <= noted.file:
            size = file_path(self._directory, noted.file).stat().st_size if newest == noted.file else 0
            if size < noted.end:
                lost = {"through": noted.number, "bytes": noted.end - size}
                return self._go_on(noted, LOST, Outcome.FAILED, lost)
        elif newest == 0:
            return self._begin_file(Head.begin(secrets.token_hex(16)))
        behind = noted if noted is not None and noted.file == newest else None
        reader = Reader(self._directory, newest, behind=behind)
        for _ in reader.entries():
            pass
        if reader.head is None:
            raise OSError(f"{file_path(self._directory, newest)}: {reader.damage}")
        if reader.damage:
            return self._go_on(reader.head, MENDED, Outcome.DONE, reader.rest().told())
        return reader.head

    def _go_on(self, head: Head, did: str, outcome: Outcome, details: dict[str, Any]) -> Head:
        """Begin a new file, of which the first entry says how the one before ended."""
        before = file_path(self._directory, head.file).name
        return self._begin_file(head, OURSELVES, "", did, before, outcome, "", 1, details)

    def _begin_file(self, head: Head, *facts: Any) -> Head:
        """Begin a new file behind `head`, perhaps with an entry; it is there whole or not at all."""
        content = first_line(head, head.file + 1)
        if facts:
            entry = self._entry(head, *facts)
            hashed, line = line_of(head.hash, entry)
            content += line
            head = replace(head, number=entry.number, hash=hashed)
        replace_durably(file_path(self._directory, head.file + 1), content)
        return self._note(replace(head, file=head.file + 1, end=len(content)))

    def _entry(self, head: Head, *facts: Any) -> Entry:
        return Entry(head.number + 1, self._clock.now_ns(), *facts)

    def _write(self, *facts: Any) -> Entry:
        entry = self._entry(self._head, *facts)
        hashed, line = line_of(self._head.hash, entry)
        path = file_path(self._directory, self._head.file)
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.pwrite(descriptor, line, self._head.end) != len(line):
                raise OSError(f"{path} could not be written whole")  # noqa: TRY301
            os.fdatasync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._head.end)  # it is acknowledged to nobody
            raise
        finally:
            os.close(descriptor)
        self._head = self._note(replace(self._head, number=entry.number, hash=hashed, end=self._head.end + len(line)))
        return entry

    def _note(self, head: Head) -> Head:
        os.pwrite(self._descriptor, head.encode(), 0)
        return head

    def _retire(self) -> None:
        """Remove the oldest files that need not be kept; an entry vouches for each, with the hash that it ended in."""
        present = files(self._directory)
        held = sum(file_path(self._directory, each).stat().st_size for each in present)
        oldest_ns = self._clock.now_ns() - int(self._keep.seconds * 1e9)
        for file, following in itertools.pairwise(present):
            reader = Reader(self._directory, following)
            first = next(reader.entries(), None)
            is_old = first is not None and first.entry.at_ns < oldest_ns
            if reader.start is None or not (is_old or held > self._keep.bytes_max):
                return
            path = file_path(self._directory, file)
            held -= path.stat().st_size
            last = {"through": reader.start.number, "hash": reader.start.hash}
            self._write(OURSELVES, "", REMOVED, path.name, Outcome.DONE, "", 1, last)
            path.unlink()
            sync_directory(self._directory)
