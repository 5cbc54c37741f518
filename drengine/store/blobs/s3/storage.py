"""The storage `s3`: files are immutable objects, written to the local spool first and read through a local cache.

What exists is said by the catalogue's rows (blobs/index.py), never by a listing, which serves a rebuild only. The
catalogue is given after the storage is made: `use_index`.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.store.blobs.index import (
    NO_CHANGES,
    Changes,
    Index,
    ObjectRemovalRow,
    PartRow,
    end_of,
    new_file_token,
    parse_key,
)
from drengine.store.blobs.local import LocalAppender, LocalReader
from drengine.store.blobs.memory import MemoryReader
from drengine.store.blobs.s3.boto import BotoClient
from drengine.store.blobs.s3.cache import Cache
from drengine.store.blobs.s3.claim import claim, identities, require_claimed
from drengine.store.blobs.s3.client import LimitedClient, ObjectClient, Patience, PatientClient, Rate
from drengine.store.blobs.s3.errors import OBJECT_MISSING
from drengine.store.blobs.s3.listing import ListedIndex
from drengine.store.blobs.s3.options import ACK_LOCAL, S3Options
from drengine.store.blobs.s3.place import S3Place
from drengine.store.blobs.s3.reader import DistrustedReader, Fetcher, ObjectReader, holds
from drengine.store.blobs.s3.spool import Spool, Spooled
from drengine.store.blobs.s3.upload import Piece, Uploader, Uploads, deletion, next_tail, swap
from drengine.store.blobs.storage import Abilities, Backlog, Buffer, Reader, name_parts
from drengine.store.errors import NOT_UPLOADED
from drengine.store.names import parse_segment_name, source_of

Rows = list[PartRow]
_COPY_BYTES = 1 << 20
_FETCHED_SECONDS = 60.0
"""Copies so young are not forgotten again: damage that they show is the object's."""


class S3Storage:
    """Objects at a place. See Storage."""

    abilities = Abilities(append=True)

    def __init__(
        self,
        directory: Path,
        place: str,
        options: S3Options | None = None,
        *,
        client: ObjectClient | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make no request yet.

        Args:
            directory: of the store on this host: its spool and cache lie there.
            place: see S3Place.
            options: [s3].
            client: in place of the SDK's (for tests).
            clock: of decisions to delete.

        Raises:
            DrengineError: OBJECT_STORE_PLACE, OBJECT_STORE_KEYS.
        """
        self.options = options = options or S3Options()
        self.place = S3Place.parse(place)
        self.holder = socket.gethostname()
        self._clock = clock or SystemClock()
        patience = Patience(total_seconds=options.patience)
        limited = LimitedClient(
            client or BotoClient(self.place, options, patience),
            concurrency=options.concurrency,
            upload=Rate(options.upload_rate),
            download=Rate(options.download_rate),
        )
        self.client: ObjectClient = PatientClient(limited, patience)
        self._impatient = limited
        self._pool = ThreadPoolExecutor(options.concurrency, thread_name_prefix="objects")
        self._syncs = ThreadPoolExecutor(options.concurrency, thread_name_prefix="syncs")
        self._spool, self._cache = Spool(directory), Cache(directory, options.cache)
        self._fetcher = Fetcher(self.client, self._cache, self._pool)
        self._uploads = Uploads(
            self.client,
            patience,
            self._pool,
            part_bytes=options.part_size,
            holder=self.holder,
            clock=self._clock,
        )
        self._lock = threading.RLock()
        self._index: Index | None = None
        self._writing: Index | None = None
        self._uploader: Uploader | None = None
        self._forgotten: dict[Spooled, float] = {}
        """Whose copies were forgotten, and when; what the spool has of them is not believed from then on."""

    def use_index(self, index: Index) -> None:
        """Take the catalogue that says what exists. Writing has a connection of its own, made when it is needed."""
        self._index = index

    def found_parts(self) -> Rows:
        """See ObjectStorage."""
        return self.index.all_parts()

    def identities(self) -> list[bytes]:
        """See ObjectStorage."""
        return [bytes.fromhex(each) for each in identities(self.client)]

    def claim(self, identity: bytes) -> None:
        """See ObjectStorage."""
        claim(self.client, str(self.place), identity)

    def require_claimed(self, identity: bytes) -> None:
        """See ObjectStorage. It does not wait for a place that does not answer."""
        require_claimed(self._impatient, str(self.place), identity)

    @property
    def index(self) -> Index:
        """The catalogue, for reading; without one, what a listing finds: that knows no digests, so no copy counts."""
        if self._index is None:
            self._cache.clear()
            self._index = ListedIndex(self.client, self._spool, self.holder)
        return self._index

    @property
    def uploader(self) -> Uploader:
        """What uploads behind the acknowledgements."""
        with self._lock:
            if self._uploader is None:
                self._uploader = Uploader(
                    self._uploads,
                    self._own_index(),
                    self._spool,
                    self._cache,
                    interval_seconds=self.options.upload_interval,
                )
            return self._uploader

    def create(self, name: str) -> S3Appender:
        """See Storage: begun in the spool."""
        name_parts(name)
        if self.index.parts(source_of(name), name) or self._spool.of_name(name):
            raise FileExistsError(errno.EEXIST, "the name is taken", name)
        file = Spooled(name, new_file_token())
        local = self._spool.create(*file)
        reader = self._spool.open(*file)
        assert reader is not None
        return S3Appender(self, file, local, reader)

    def resume(self, name: str, length: int) -> S3Appender:
        """See Storage: another file with the same beginning, which takes the old one's place with its first sync."""
        name_parts(name)
        old = self._parts(name)
        spooled = [each for each in self._spool.of_name(name) if old and each.file == old[0].file]  # others are aside
        reader = self.open(name)
        if isinstance(reader, LocalReader) and not holds(reader, old):
            reader.close()
            self.forget_copies(name)
            reader = self.open(name)
        try:
            if reader.size() < length:
                raise OSError(errno.EINVAL, f"{name} is shorter than {length} bytes")
            file = Spooled(name, new_file_token())
            local = self._spool.create(*file)
            for at in range(0, length, _COPY_BYTES):
                local.append(reader.read_at(at, min(_COPY_BYTES, length - at)))
        finally:
            reader.close()
        mine = self._spool.open(*file)
        assert mine is not None
        return S3Appender(self, file, local, mine, length=length, instead_of=(old, spooled))

    def open(self, name: str) -> Reader:
        """See Storage: the local file, a copy of it, or its objects."""
        name_parts(name)
        rows = self._parts(name)
        if not rows:
            return self._unnamed(name)
        file = rows[0].file
        is_segment = parse_segment_name(name) is not None
        objects = ObjectReader(self._fetcher, lambda: self._parts(name), rows)
        for _ in range(2):  # it may become a copy in between
            if local := self._spool.open(name, file):
                return DistrustedReader(objects, local) if (name, file) in self._forgotten else local
            if copy := self._cache.open_whole(name, file):
                if is_segment or holds(copy, rows):  # of segments only what is used is checked, by whoever uses it
                    return copy
                copy.close()
        if not any(row.object for row in rows):
            raise DrengineError(NOT_UPLOADED, f"only {rows[0].holder} has {name}, and did not upload it yet")
        return objects if is_segment else self._whole(name, rows)

    def put(self, name: str, data: Buffer) -> None:
        """See Storage."""
        name_parts(name)
        source, data = source_of(name), bytes(data)
        piece = Piece(name, new_file_token(), 0, len(data))
        row = self._uploads.store(piece, lambda begin, length: data[begin : begin + length])
        index = self._own_index()
        with index.transaction(source):
            old = index.parts(source, name)
            changes = swap(self._uploads, row, old)
            index.remove(*changes.remove)
            index.put(*changes.put, *self._uploads.given_up(source))
        for file in {each.file for each in old}:
            self._cache.forget(name, file)
        self._cache.keep_whole(name, piece.file, data)

    def list(self, prefix: str) -> list[str]:
        """See Storage: what the catalogue names, and what lies in the spool."""
        if above := prefix.rpartition("/")[0]:
            name_parts(above)
        folder, _, rest = prefix.partition("/")
        source = rest.partition("/")[0] if folder == "segments" and "/" in rest else None
        named = self.index.part_names(source, prefix)
        return sorted({*named, *(each.name for each in self._spool.files(prefix))})

    def delete(self, name: str) -> None:
        """See Storage: decided at once; the objects go later, see `delete_objects`."""
        name_parts(name)
        rows, local = self._parts(name), self._spool.of_name(name)
        if not rows and (not local or self.options.ack == ACK_LOCAL):
            return  # under `local` it may be what a takeover cut back: acknowledged, and here only
        deletion(self._own_index(), self._clock, name, local)
        files = {row.file for row in rows} or {each.file for each in local}
        for file in files:
            self.uploader.forget(Spooled(name, file))
            self._spool.delete(name, file)
            self._cache.forget(name, file)

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""
        name_parts(prefix)
        self._spool.sync_dir(prefix)

    def sweep(self) -> int:
        """See Storage; and take on what other processes of this host left to be uploaded."""
        self.uploader.adopt()
        return self._cache.sweep()

    def free_bytes(self) -> int | None:
        """See Storage: of the spool's disk."""
        return self._spool.free_bytes()

    def available_length(self, name: str) -> int:
        """See Storage."""
        return end_of(self._parts(name))

    def reachable_length(self, name: str) -> int:
        """See ObjectStorage."""
        rows = self._parts(name)
        if not rows or (reader := self._spool.open(name, rows[0].file)) is None:
            return end_of(rows)
        try:
            return max(reader.size(), end_of(rows))
        finally:
            reader.close()

    def forget_copies(self, name: str) -> None:
        """See ObjectStorage. What was fetched since it was last asked to is what the object store has."""
        rows = self._parts(name)
        if not rows:
            return
        file, now = Spooled(name, rows[0].file), time.monotonic()
        with self._lock:
            if now > self._forgotten.get(file, -_FETCHED_SECONDS) + _FETCHED_SECONDS:
                self._cache.forget(*file)
                self._forgotten[file] = now

    def backlog(self) -> Backlog:
        """See ObjectStorage."""
        return self.uploader.backlog() if self._uploader else Backlog()

    def aside(self) -> Iterator[tuple[str, str]]:
        """See ObjectStorage."""
        for each in self._spool.files(""):
            rows = self._parts(each.name)
            if rows and rows[0].file != each.file:
                yield each

    @property
    def delete_delay_seconds(self) -> float:
        """See ObjectStorage."""
        return self.options.delete_delay

    def delete_objects(self, removals: Sequence[ObjectRemovalRow]) -> int:
        """See ObjectStorage."""
        keys = [row.key for row in removals if not row.key.endswith("/")]
        for row in removals:
            if row.key.endswith("/"):
                keys += [found.key for found in self.client.list(row.key)]
        if keys:
            self.client.delete(keys)
        return len(keys)

    def objects(self) -> dict[str, int]:
        """See ObjectStorage."""
        return {found.key: found.size for found in self.client.list("") if parse_key(found.key)}

    def size_of(self, key: str) -> int | None:
        """See ObjectStorage."""
        try:
            return self.client.head(key)
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """See Storage."""
        if self._uploader is not None:
            self._uploader.drain()
            self._uploader.stop()
        if self._writing is not None:
            self._writing.close()
            self._writing = None
        for pool in (self._pool, self._syncs):
            pool.shutdown(wait=True, cancel_futures=True)

    def forget(self, spooled: Iterable[Spooled]) -> None:
        """Remove local files that others have taken the place of."""
        for file in spooled:
            self.uploader.forget(file)
            self._spool.delete(*file)
            self._cache.forget(*file)

    def taken_over(self, changes: Changes, old: Rows) -> Changes:
        """The changes of a file's first sync, when it takes the place of another of its name."""
        row = next(row for row in changes.put if isinstance(row, PartRow))
        gone = swap(self._uploads, row, old)
        return Changes((*changes.put, *gone.put[1:]), (*changes.remove, *gone.remove))

    def store_tail(self, file: Spooled, rows: Rows, length: int, reader: LocalReader) -> Changes:
        """Upload what the object store does not have of a file; what its next transaction must say."""
        begin, swallowed = next_tail(rows, length)
        row = self._uploads.store(Piece(*file, begin, length - begin), reader.read_at)
        changes = swap(self._uploads, row, swallowed)
        return changes._replace(put=(*changes.put, *self._uploads.given_up(row.source)))

    @contextmanager
    def syncing(self, local: LocalAppender) -> Iterator[None]:
        """Sync a local file while the caller does something else."""
        future = self._syncs.submit(local.sync)
        try:
            yield
        finally:
            future.result()

    def _own_index(self) -> Index:
        with self._lock:
            if self._writing is None:
                self._writing = self.index.another()
            return self._writing

    def _parts(self, name: str) -> Rows:
        return self.index.parts(source_of(name), name)

    def _unnamed(self, name: str) -> Reader:
        """A file that nothing committed names: the newest one of this host."""
        local = sorted(self._spool.of_name(name), key=lambda each: self._spool.path(*each).stat().st_mtime_ns)
        reader = self._spool.open(*local[-1]) if local else None
        if reader is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return reader

    def _whole(self, name: str, rows: Rows) -> Reader:
        try:
            data = self._fetcher.whole(rows)
        except FileNotFoundError:
            again = self._parts(name)
            if again == rows:
                raise DrengineError(OBJECT_MISSING, f"an object of {name} is not there") from None
            if not again:
                raise
            rows, data = again, self._fetcher.whole(again)
        self._cache.keep_whole(name, rows[0].file, data)
        return self._cache.open_whole(name, rows[0].file) or MemoryReader(bytearray(data))


class S3Appender:
    """A file in the spool whose tails become objects. See Appender."""

    def __init__(
        self,
        storage: S3Storage,
        file: Spooled,
        local: LocalAppender,
        reader: LocalReader,
        *,
        length: int = 0,
        instead_of: tuple[Rows, list[Spooled]] = ([], []),
    ) -> None:
        """`length` of it is there already; it takes the place of another file, with those rows and local files."""
        self._storage = storage
        self._file = file
        self._local, self._reader = local, reader
        self._length, self._synced = length, 0
        self._old_rows, self._old_files = instead_of
        self._rows: Rows = []
        self._is_closed = False

    def append(self, *parts: Buffer) -> None:
        """See Appender."""
        self._local.append(*parts)
        self._length += sum(map(len, parts))

    def sync(self) -> Changes:
        """See Appender."""
        is_first = not self._synced and not self._rows
        if not is_first:
            self._forget_old()
        if self._storage.options.ack == ACK_LOCAL:
            self._local.sync()
            changes = self._named()
            self._storage.uploader.synced(self._file, self._length)
        else:
            with self._storage.syncing(self._local):
                changes = self._uploaded()
        self._synced = self._length
        return self._storage.taken_over(changes, self._old_rows) if is_first and self._old_rows else changes

    def _forget_old(self) -> None:
        """What this file has taken the place of is committed to be gone."""
        self._storage.forget(self._old_files)
        self._old_files = []

    def close(self) -> None:
        """See Appender."""
        if self._is_closed:
            return
        self._is_closed = True
        self._reader.close()
        self._local.close()
        if self._rows:
            self._forget_old()
            self._storage.uploader.closed(self._file, self._synced, end_of(self._rows))

    def _named(self) -> Changes:
        """The row that says which file counts, once."""
        if self._rows:
            return NO_CHANGES
        source, name, file = source_of(self._file.name), self._file.name, self._file.file
        self._rows = [PartRow(source, name, 0, 0, file, "", b"", self._storage.holder)]
        return Changes(tuple(self._rows))

    def _uploaded(self) -> Changes:
        if self._length == end_of(self._rows):
            return self._named()
        changes = self._storage.store_tail(self._file, self._rows, self._length, self._reader)
        put = [row for row in changes.put if isinstance(row, PartRow)]
        kept = [row for row in self._rows if row not in changes.remove and row.begin < put[0].begin]
        self._rows = [*kept, *put]
        return changes
