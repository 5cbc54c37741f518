"""From the capture thread to the sender: a queue whose every place is a permit, and what is under way beyond it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

PERMITS = 8
_T = TypeVar("_T")


class Stopped(Exception):
    """The session ends: nothing is handed over any more."""


class Handover(Generic[_T]):
    """Made on the event loop. `get` and `sent` belong to it, the other methods to any thread."""

    def __init__(self, in_flight: Callable[[], bool]) -> None:
        """`in_flight`: whether something that was sent is not acknowledged yet."""
        self._in_flight = in_flight
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[_T | None] = asyncio.Queue()
        self._permits = threading.Semaphore(PERMITS)
        self._drained = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._queued = self._settling = 0

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def is_idle(self) -> bool:
        """All that was handed over is durable, and what follows from that is done."""
        with self._lock:
            return not (self._queued or self._settling or self._in_flight())

    def acquire(self) -> None:
        """Wait for a place.

        Raises:
            Stopped: there will be none.
        """
        self._permits.acquire()
        if self.is_stopping:
            self._permits.release()  # for whoever waits as well
            raise Stopped

    def put(self, item: _T | None, *, permit: bool = True) -> None:
        """Hand over; None is the end. Unless a permit is wanted, the caller has acquired one.

        Raises:
            Stopped: see `acquire`.
        """
        if item is not None:
            if permit:
                self.acquire()
            with self._lock:
                self._queued += 1
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> _T | None:
        """The next item, in order."""
        return await self._queue.get()

    def sent(self) -> None:
        """The item that was got last was sent: its place is free."""
        self._permits.release()
        with self._lock:
            self._queued -= 1
        self._note_drained()

    def begin_settling(self) -> None:
        """An acknowledgement came; what it means is being seen to until `end_settling`."""
        with self._lock:
            self._settling += 1

    def end_settling(self) -> None:
        """See `begin_settling`."""
        with self._lock:
            self._settling -= 1
        self._note_drained()

    def wait_idle(self) -> None:
        """Return when it is idle.

        Raises:
            Stopped: see `acquire`.
        """
        while not self.is_stopping:
            self._drained.clear()
            if self.is_idle:
                return
            self._drained.wait()
        raise Stopped

    def stop(self) -> None:
        """Let nobody wait any more."""
        self._stopping.set()
        self._permits.release()
        self._drained.set()

    def _note_drained(self) -> None:
        if self.is_idle:
            self._drained.set()
