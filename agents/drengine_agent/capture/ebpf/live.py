"""Reading a volume that others are using: straight from the device, never through the page cache, at a set pace.

A mounted file system writes past the device's own page cache, so what a buffered read finds there may be old. And what
we read must not push out what production has there.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from typing import Final

from drengine_agent.bandwidth import LOOK_SECONDS, TokenBucket
from drengine_agent.capture.backing import Volume

ALIGN_BYTES: Final = 4096
_BOUNCE_BYTES: Final = 1 << 20
_REMEMBERED_BYTES: Final = 64 << 20


class ReadLimit:
    """How fast volumes are read, all of a source's together. For any number of threads."""

    def __init__(self, bucket: TokenBucket) -> None:
        """`bucket` says how long each read has to wait."""
        self._bucket = bucket
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.read_bytes = 0
        self.waited_seconds = 0.0

    def take(self, length: int) -> None:
        """Wait for one's turn to read so many bytes."""
        with self._lock:
            wait = self._bucket.reserve(length)
            self.read_bytes += length
        while wait > 0 and not self._released.wait(min(wait, LOOK_SECONDS)):
            with self._lock:
                self.waited_seconds += min(wait, LOOK_SECONDS)
                wait = self._bucket.reserve(0)

    def release(self) -> None:
        """Nobody waits any more: everything ends."""
        self._released.set()


class ReadSpeed:
    """How fast blocks are read, of those that the disk was asked for lately. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = self._seconds = 0.0

    def note(self, length: int, seconds: float) -> None:
        """So many bytes took so long; what was seen before counts less and less."""
        with self._lock:
            kept = max(0.0, 1.0 - length / _REMEMBERED_BYTES)
            self._bytes = self._bytes * kept + length
            self._seconds = self._seconds * kept + seconds

    @property
    def bytes_per_second(self) -> float:
        """0 while nothing was read."""
        return self._bytes / self._seconds if self._seconds else 0.0


class LiveVolume:
    """A volume's device as the sweep reads it. Safe to use from several threads."""

    def __init__(self, volume: Volume, limit: ReadLimit, speed: ReadSpeed) -> None:
        """Open the device of an open volume a second time, for direct reads.

        Raises:
            OSError: it can't be read directly.
        """
        self.volume = volume
        self._limit = limit
        self._speed = speed
        self._fd = os.open(volume.descriptor_path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, at the pace that is allowed.

        Raises:
            OSError: the device failed, or it ends early (EIO): nothing is made up for what can't be read.
        """
        self._limit.take(len(buffer))
        begun = time.monotonic()
        self.read_now(offset, buffer)
        self._speed.note(len(buffer), time.monotonic() - begun)

    def read_now(self, offset: int, buffer: memoryview) -> None:
        """The same without waiting: writers are being held up.

        Raises:
            OSError: as `read_into`.
        """
        view = buffer
        try:
            while view:
                done = os.preadv(self._fd, [view], offset)
                if not done:
                    raise OSError(errno.EIO, f"volume {self.volume.name} ends at byte {offset}")  # noqa: TRY301
                offset, view = offset + done, view[done:]
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._read_unaligned(offset, view)

    def data_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """A device is all data."""
        return self.volume.data_extents(offset, length)

    def close(self) -> None:
        """Let go of the device."""
        os.close(self._fd)

    def _read_unaligned(self, offset: int, view: memoryview) -> None:
        """By way of an aligned buffer: the device takes whole sectors only, at addresses to its liking."""
        bounce = mmap.mmap(-1, _BOUNCE_BYTES)
        while view:
            start = offset - offset % ALIGN_BYTES
            skipped = offset - start
            got = os.preadv(self._fd, [bounce], start)
            part = min(got - skipped, len(view))
            if part <= 0:
                raise OSError(errno.EIO, f"volume {self.volume.name} ends at byte {offset}")
            view[:part] = bounce[skipped : skipped + part]
            offset, view = offset + part, view[part:]
