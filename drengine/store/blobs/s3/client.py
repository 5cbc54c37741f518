"""What a store asks of an object store, and the wrappers that make it patient and modest.

Keys are written once. A `put` that failed may have happened, or may happen a moment later: whoever tries again takes
another key, and remembers the one that was given up. All other calls may be repeated.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.blobs.s3.errors import OBJECT_DAMAGED, OBJECT_STORE_AWAY, OBJECT_STORE_BUSY
from drengine.store.blobs.storage import Buffer

T = TypeVar("T")

PASSING = (OBJECT_STORE_AWAY, OBJECT_STORE_BUSY, OBJECT_DAMAGED)
"""Kinds that may be over a moment later."""


class ObjectInfo(NamedTuple):
    """An object that a listing found. `changed_ns`: when it was stored, by the object store's clock."""

    key: str
    size: int
    changed_ns: int


class ObjectClient(Protocol):
    """Objects by key. Threads may share it.

    Every call raises DrengineError of the kinds in errors.py, STORE_FULL, or FileNotFoundError where it says so.
    """

    def put(self, key: str, data: Buffer) -> None:
        """Store an object; returns when the object store has said that it holds these very bytes."""
        ...

    def get(self, key: str, offset: int, length: int) -> bytes:
        """Exactly these bytes of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def head(self, key: str) -> int:
        """An object's size in bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix`, by key. It may be out of date."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; it is no error if there are none."""
        ...

    def begin_upload(self, key: str) -> str:
        """Begin an upload in parts; returns its id."""
        ...

    def put_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        """Store part `number` (from 1); returns its tag. A part may be stored again."""
        ...

    def complete_upload(self, key: str, upload: str, tags: Sequence[str], length: int) -> None:
        """Make the object of the parts with these tags; it has `length` bytes."""
        ...

    def abort_upload(self, key: str, upload: str) -> None:
        """Give back what an upload takes up; it is no error if it is gone."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, and how densely, what fails in passing is tried again.

    Attributes:
        first_seconds: the first pause; each one is up to twice as long as the one before, and at most `most_seconds`.
        busy_factor: pauses are so much longer where the object store asks for fewer requests.
        total_seconds: after so long the last failure counts.
        sleep, now: the clock.
    """

    first_seconds: float = 0.05
    most_seconds: float = 5.0
    busy_factor: float = 8.0
    total_seconds: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic

    def run(self, operation: Callable[[], T], passing: Sequence[ErrorKind] = PASSING) -> T:
        """Do it, again where it failed in passing.

        Raises:
            DrengineError: the last failure.
        """
        deadline = self.now() + self.total_seconds
        pause = self.first_seconds
        while True:
            try:
                return operation()
            except DrengineError as error:
                factor = self.busy_factor if error.kind is OBJECT_STORE_BUSY else 1.0
                wait = min(pause * factor, self.most_seconds) * random.uniform(0.5, 1.0)
                if error.kind not in passing or self.now() + wait > deadline:
                    raise
            self.sleep(wait)
            pause = min(pause * 2, self.most_seconds)


class PatientClient:
    """Repeats what may be repeated; see ObjectClient. `put` is not: see there."""

    def __init__(self, inner: ObjectClient, patience: Patience) -> None:
        self._inner = inner
        self._patience = patience

    def put(self, key: str, data: Buffer) -> None:
        """See ObjectClient."""
        self._inner.put(key, data)

    def get(self, key: str, offset: int, length: int) -> bytes:
        """See ObjectClient."""
        return self._patience.run(lambda: self._inner.get(key, offset, length))

    def head(self, key: str) -> int:
        """See ObjectClient."""
        return self._patience.run(lambda: self._inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectClient. The inner client sees to pages that fail."""
        return self._inner.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectClient."""
        self._patience.run(lambda: self._inner.delete(keys))

    def begin_upload(self, key: str) -> str:
        """See ObjectClient. An upload whose id was lost is never completed, so its key is not written."""
        return self._patience.run(lambda: self._inner.begin_upload(key))

    def put_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        """See ObjectClient."""
        return self._patience.run(lambda: self._inner.put_part(key, upload, number, data))

    def complete_upload(self, key: str, upload: str, tags: Sequence[str], length: int) -> None:
        """See ObjectClient. One that failed and happened is known by the object that it made."""
        tried = False

        def complete() -> None:
            nonlocal tried
            if tried:
                try:
                    if self._inner.head(key) == length:
                        return
                except FileNotFoundError:
                    pass
            tried = True
            self._inner.complete_upload(key, upload, tags, length)

        # An upload that is gone, or made something else, is not mended by asking again.
        self._patience.run(complete, (OBJECT_STORE_AWAY, OBJECT_STORE_BUSY))

    def abort_upload(self, key: str, upload: str) -> None:
        """See ObjectClient."""
        self._patience.run(lambda: self._inner.abort_upload(key, upload))


class Rate:
    """At most so many bytes a second, on the average of a second; 0: no limit. Threads may share it."""

    def __init__(
        self,
        bytes_per_second: int,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = bytes_per_second
        self._sleep, self._now = sleep, now
        self._free_at = now()
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Wait until so many bytes may go."""
        if not self._rate:
            return
        with self._lock:
            now = self._now()
            begin = max(self._free_at, now - 1.0)
            self._free_at = begin + size / self._rate
            wait = begin - now
        if wait > 0:
            self._sleep(wait)


class LimitedClient:
    """Keeps requests under way, and bytes a second, within bounds; see ObjectClient.

    Downloads have slots of their own: acknowledgements wait for uploads.
    """

    def __init__(self, inner: ObjectClient, *, concurrency: int, upload: Rate, download: Rate) -> None:
        self._inner = inner
        self._slots = threading.BoundedSemaphore(concurrency)
        self._download_slots = threading.BoundedSemaphore(concurrency)
        self._upload, self._download = upload, download

    def put(self, key: str, data: Buffer) -> None:
        """See ObjectClient."""
        self._upload.take(len(data))
        with self._slots:
            self._inner.put(key, data)

    def get(self, key: str, offset: int, length: int) -> bytes:
        """See ObjectClient."""
        self._download.take(length)
        with self._download_slots:
            return self._inner.get(key, offset, length)

    def head(self, key: str) -> int:
        """See ObjectClient."""
        with self._slots:
            return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectClient. It does not count: whoever reads it may take its time."""
        return self._inner.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectClient."""
        with self._slots:
            self._inner.delete(keys)

    def begin_upload(self, key: str) -> str:
        """See ObjectClient."""
        with self._slots:
            return self._inner.begin_upload(key)

    def put_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        """See ObjectClient."""
        self._upload.take(len(data))
        with self._slots:
            return self._inner.put_part(key, upload, number, data)

    def complete_upload(self, key: str, upload: str, tags: Sequence[str], length: int) -> None:
        """See ObjectClient."""
        with self._slots:
            self._inner.complete_upload(key, upload, tags, length)

    def abort_upload(self, key: str, upload: str) -> None:
        """See ObjectClient."""
        with self._slots:
            self._inner.abort_upload(key, upload)
