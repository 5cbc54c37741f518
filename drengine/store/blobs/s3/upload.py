"""Bytes of files become objects: by a writer that waits for it, or behind the acknowledgements.

A file that is being written is uploaded by its tails, small objects that follow each other. A new tail swallows
neighbours that are not larger than itself, up to TAIL_BYTES_MAX, so that a file has few objects however small its
commits are. A closed file is uploaded whole, unless few tails make it up, and its row replaces theirs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.blobs.index import (
    Changes,
    Index,
    ObjectRemovalRow,
    PartRow,
    contiguous,
    end_of,
    file_key,
    new_object_token,
)
from drengine.store.blobs.local import LocalReader
from drengine.store.blobs.s3.cache import Cache
from drengine.store.blobs.s3.client import ObjectClient, Patience
from drengine.store.blobs.s3.errors import OBJECT_DAMAGED, OBJECT_STORE_AWAY, NeverSent
from drengine.store.blobs.s3.reader import holds
from drengine.store.blobs.s3.spool import Spool, Spooled
from drengine.store.blobs.storage import Backlog, Buffer
from drengine.store.names import source_of

TAIL_BYTES_MAX = 256 << 10
FEW_PARTS = 8
"""A closed file of so few objects is left as it is."""
_THREADS = 2
_RETRY_SECONDS_MIN, _RETRY_SECONDS_MAX = 1.0, 60.0
_DRAIN_SECONDS = 60.0
_log = logging.getLogger(__name__)

Read = Callable[[int, int], Buffer]
"""Bytes of a local file: offset and length."""


class Piece(NamedTuple):
    """Bytes of a file that are to be one object."""

    name: str
    file: str
    begin: int
    length: int

    def row(self, object: str, digest: bytes, holder: str) -> PartRow:
        """Of the object that holds them."""
        return PartRow(source_of(self.name), self.name, self.begin, self.length, self.file, object, digest, holder)


class Uploads:
    """Stores pieces of files under keys that were never used. Threads may share it."""

    def __init__(
        self,
        client: ObjectClient,
        patience: Patience,
        pool: ThreadPoolExecutor,
        *,
        part_bytes: int,
        holder: str,
        clock: Clock,
    ) -> None:
        self._client, self._patience, self._pool = client, patience, pool
        self._part_bytes = part_bytes
        self.holder = holder
        self.clock = clock
        self._given_up: list[PartRow] = []
        self._lock = threading.Lock()

    def store(self, piece: Piece, read: Read) -> PartRow:
        """Upload a piece; returns the row that names it.

        Raises:
            DrengineError: see errors.py.
        """
        if piece.length <= self._part_bytes:
            data = _exactly(read, piece.begin, piece.length)
            digest = xxhash.xxh3_128_digest(data)
            return self._persistently(piece, digest, lambda key: self._client.put(key, data))
        hasher = xxhash.xxh3_128()
        for begin in range(piece.begin, piece.begin + piece.length, self._part_bytes):
            hasher.update(_exactly(read, begin, min(self._part_bytes, piece.begin + piece.length - begin)))
        return self._persistently(piece, hasher.digest(), lambda key: self._in_parts(key, piece, read))

    def removal(self, row: PartRow) -> ObjectRemovalRow:
        """The decision to delete an object, made now."""
        return ObjectRemovalRow(row.source, row.key, self.clock.now_ns())

    def given_up(self, source: str) -> list[ObjectRemovalRow]:
        """Decisions to delete what failed uploads of a source may have left; each is returned once."""
        with self._lock:
            mine = [row for row in self._given_up if row.source == source]
            self._given_up = [row for row in self._given_up if row.source != source]
        return [self.removal(row) for row in mine]

    def _persistently(self, piece: Piece, digest: bytes, put: Callable[[str], None]) -> PartRow:
        def attempt() -> PartRow:
            row = piece.row(new_object_token(), digest, self.holder)
            try:
                put(row.key)
            except DrengineError as error:
                if not isinstance(error, NeverSent):
                    with self._lock:
                        self._given_up.append(row)
                raise
            return row

        return self._patience.run(attempt)

    def _in_parts(self, key: str, piece: Piece, read: Read) -> None:
        client, end = self._client, piece.begin + piece.length
        upload = client.begin_upload(key)
        try:

            def part(numbered: tuple[int, int]) -> str:
                number, begin = numbered
                data = _exactly(read, begin, min(self._part_bytes, end - begin))
                return client.put_part(key, upload, number, data)

            tags = list(self._pool.map(part, enumerate(range(piece.begin, end, self._part_bytes), 1)))
            client.complete_upload(key, upload, tags, piece.length)
        except DrengineError:
            self._abort(key, upload)
            raise

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._client.abort_upload(key, upload)
        except DrengineError as error:
            _log.warning("a failed upload takes up space", extra={"key": key, "why": str(error)})


def next_tail(rows: list[PartRow], length: int, bytes_max: int = TAIL_BYTES_MAX) -> tuple[int, list[PartRow]]:
    """Where the next tail of a file that is `length` bytes long begins, and the rows that it swallows."""
    rows = contiguous(rows)
    begin = end_of(rows)
    swallowed: list[PartRow] = []
    while rows and rows[-1].length <= length - begin and length - rows[-1].begin <= bytes_max:
        swallowed.append(rows.pop())
        begin = swallowed[-1].begin
    return begin, swallowed


@dataclass
class _Job:
    """A file whose bytes are to be uploaded.

    Attributes:
        length: what is durable locally.
        available: what the object store had of it when it was last looked at.
        since_ns: since when it has not had all of it.
        closed: nothing more comes.
        due: by the monotonic clock.
        pause: before the next try, in seconds; 0 while nothing fails.
    """

    length: int = 0
    available: int = 0
    since_ns: int = 0
    closed: bool = False
    due: float = 0.0
    pause: float = 0.0


class Uploader:
    """Uploads behind the acknowledgements, on threads of its own that begin with the first file."""

    def __init__(self, uploads: Uploads, index: Index, spool: Spool, cache: Cache, *, interval_seconds: float) -> None:
        self._uploads, self._index, self._spool, self._cache = uploads, index, spool, cache
        self._interval = interval_seconds
        self._jobs: dict[Spooled, _Job] = {}
        self._running: set[Spooled] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._is_stopping = False
        self._failing: DrengineError | None = None

    def synced(self, file: Spooled, length: int) -> None:
        """More of a file is durable locally, and acknowledged before it is uploaded."""
        with self._changed:
            job = self._jobs.get(file)
            if job is None:
                job = self._jobs[file] = _Job(due=time.monotonic() + self._interval)
            if job.available >= job.length:
                job.since_ns = self._uploads.clock.now_ns()
            job.length = length
            self._begin()

    def closed(self, file: Spooled, length: int, available: int) -> None:
        """Nothing more comes, and what is durable is committed."""
        with self._changed:
            job = self._jobs.setdefault(file, _Job(available=available, since_ns=self._uploads.clock.now_ns()))
            job.length, job.closed, job.due = max(job.length, length), True, time.monotonic()
            self._begin()

    def forget(self, file: Spooled) -> None:
        """The file is deleted, or written on: leave it alone from now on."""
        with self._changed:
            self._jobs.pop(file, None)
            while file in self._running:
                self._changed.wait()
            self._jobs.pop(file, None)

    def adopt(self) -> int:
        """Take on files that other processes left in the spool; how many there are."""
        count = 0
        for file in self._spool.files(""):
            with self._changed:
                if file in self._jobs:
                    continue
            rows = self._index.parts(source_of(file.name), file.name)
            with self._spool.held(*file) as is_held:
                if not is_held or not rows or rows[0].file != file.file:
                    continue
                length = self._spool.path(*file).stat().st_size
            self.closed(file, length, end_of(rows))
            count += 1
        return count

    def backlog(self) -> Backlog:
        """What waits."""
        with self._changed:
            behind = [job for job in self._jobs.values() if job.available < job.length]
            oldest = min((job.since_ns for job in behind), default=0)
            return Backlog(sum(job.length - job.available for job in behind), len(behind), oldest, self._failing)

    def drain(self, seconds: float = _DRAIN_SECONDS) -> bool:
        """Wait until nothing is left to do, or a try fails; whether nothing is left."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._failing = None
            for job in self._jobs.values():
                job.due = 0.0
            self._changed.notify_all()
            while (self._jobs or self._running) and self._failing is None and self._threads:
                if not self._changed.wait(deadline - time.monotonic()):
                    break
            return not self._jobs and not self._running

    def stop(self) -> None:
        """End the threads; what is left waits in the spool for `adopt`."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _begin(self) -> None:
        if not self._threads and not self._is_stopping:
            self._threads = [
                threading.Thread(target=self._work, name=f"uploads-{number}", daemon=True) for number in range(_THREADS)
            ]
            for thread in self._threads:
                thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                file = self._next()
                while file is None:
                    if self._is_stopping:
                        return
                    self._changed.wait(self._seconds_to_next())
                    file = self._next()
                self._running.add(file)
                job = self._jobs[file]
            try:
                is_done, failed = self._upload(file, job), None
            except DrengineError as error:
                is_done, failed = False, error
            except OSError as error:
                is_done, failed = False, DrengineError(OBJECT_STORE_AWAY, f"uploading {file.name}: {error}")
            with self._changed:
                self._running.discard(file)
                self._settle(file, job, is_done=is_done, failed=failed)
                self._changed.notify_all()

    def _settle(self, file: Spooled, job: _Job, *, is_done: bool, failed: DrengineError | None) -> None:
        if failed and not self._failing:
            _log.warning("uploading fails", extra={"file": file.name, "why": str(failed)})
        self._failing = failed
        if is_done:
            self._jobs.pop(file, None)
            return
        if failed:
            job.pause = min(max(job.pause * 2, _RETRY_SECONDS_MIN), _RETRY_SECONDS_MAX)
            job.due = time.monotonic() + job.pause
        else:
            job.pause = 0.0
            job.due = 0.0 if job.closed else time.monotonic() + self._interval

    def _next(self) -> Spooled | None:
        """What is due, closed files last: they free space, tails close a gap."""
        now = time.monotonic()
        due = [
            (job.closed and job.available >= job.length, job.due, file)
            for file, job in self._jobs.items()
            if job.due <= now and file not in self._running and not self._is_stopping
        ]
        return min(due)[2] if due else None

    def _seconds_to_next(self) -> float | None:
        dues = [job.due for file, job in self._jobs.items() if file not in self._running]
        return max(0.01, min(dues) - time.monotonic()) if dues else None

    def _upload(self, file: Spooled, job: _Job) -> bool:
        """Do what can be done now; whether nothing is left to do."""
        is_closed, length = job.closed, job.length
        rows = self._index.parts(source_of(file.name), file.name)
        if not rows or rows[0].file != file.file:
            return is_closed  # nothing of it was committed (yet)
        reader = self._spool.open(*file)
        if reader is None:
            return True
        try:
            if end_of(rows) < length:
                self._tail(file, rows, reader, length, job)
                return False
            job.available = end_of(rows)
            if not is_closed:
                return True
            if not holds(reader, rows):
                _log.warning("a local file has rotted; the object store has all of it", extra={"file": file.name})
                self._spool.delete(*file)
                return True
            if len(contiguous(rows)) > FEW_PARTS and not self._whole(file, rows, reader, length):
                return True
        finally:
            reader.close()
        self._cache.take_over(self._spool.path(*file), *file)
        return True

    def _tail(self, file: Spooled, rows: list[PartRow], reader: LocalReader, length: int, job: _Job) -> None:
        begin, swallowed = next_tail(rows, length)
        row = self._uploads.store(Piece(*file, begin, length - begin), reader.read_at)
        if self._record(file, rows, row, swallowed):
            with self._changed:
                job.available = length
                job.since_ns = self._uploads.clock.now_ns()

    def _whole(self, file: Spooled, rows: list[PartRow], reader: LocalReader, length: int) -> bool:
        """Replace the tails by one object."""
        row = self._uploads.store(Piece(*file, 0, length), reader.read_at)
        return self._record(file, rows, row, rows)

    def _record(self, file: Spooled, seen: list[PartRow], row: PartRow, replaced: list[PartRow]) -> bool:
        """Have the catalogue name an object, unless it names others by now; whether it does."""
        with self._index.transaction(row.source):
            found = self._index.parts(row.source, file.name)
            given_up = self._uploads.given_up(row.source)
            if found != seen:
                self._index.put(self._uploads.removal(row), *given_up)
                return False
            changes = swap(self._uploads, row, replaced)
            self._index.remove(*changes.remove)
            self._index.put(*changes.put, *given_up)
        return True


def swap(uploads: Uploads, row: PartRow, replaced: list[PartRow]) -> Changes:
    """One row in place of others, whose objects are decided on."""
    gone = [uploads.removal(old) for old in replaced if old.object]
    return Changes((row, *gone), tuple(old for old in replaced if old.begin != row.begin))


def deletion(index: Index, clock: Clock, name: str, local: list[Spooled]) -> None:
    """Take a file out of the catalogue, and decide on all of its objects, known and unknown."""
    source = source_of(name)
    with index.transaction(source):
        rows = index.parts(source, name)
        files = {row.file for row in rows} or {each.file for each in local}
        index.remove(*rows)
        index.put(*(ObjectRemovalRow(source, file_key(name, file), clock.now_ns()) for file in sorted(files)))


def _exactly(read: Read, begin: int, length: int) -> Buffer:
    data = read(begin, length)
    if len(data) != length:
        raise DrengineError(OBJECT_DAMAGED, f"the local file ends at {begin + len(data)}, not at {begin + length}")
    return data
