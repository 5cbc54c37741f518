"""Readers that go forward through a disk, as copies do: they are answered from whole windows, prepared before they ask.

A window costs little more to prepare than a few of the reads that lie in it, above all where it was written at random.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

from drengine.nbd.export import Reply, Request
from drengine.store.views.view import View
from drengine.store.views.windows import WINDOW_BYTES

FORWARD_AFTER = 2
"""Reads that came soon behind the one before them, until their reader is taken to go on so."""

SKIPPED_BYTES_MAX = 1 << 20
"""So much a reader may leave out, which knows of zeros for example, and still go forward."""

PREPARED_AT_ONCE = 2
NEAR_MAX = 2
"""Prepared windows that one connection keeps near, beside those that it has passed: it is sent them at once."""


class Forward:
    """Notices whether reads go forward.

    Attributes:
        next: where the last read ended.
        is_seen: they do.
    """

    def __init__(self) -> None:
        self.next = -1
        self.is_seen = False
        self._in_order = 0

    def note(self, offset: int, length: int) -> None:
        """A read came."""
        follows = 0 <= offset - self.next <= SKIPPED_BYTES_MAX and self.next >= 0
        self._in_order = self._in_order + 1 if follows else 0
        self.is_seen = self._in_order >= FORWARD_AFTER
        self.next = offset + length


class WindowReads:
    """The reads of one connection that wait for windows. For the loop's thread.

    Args:
        answer: the reply to a read whose windows are near.
        complete: takes late replies.
        fall_back: serves a read that a window did not help.
    """

    def __init__(
        self,
        view: View,
        volume: int,
        pool: Executor,
        answer: Callable[[Request], Reply | None],
        complete: Callable[[list[Reply]], None],
        fall_back: Callable[[Request], None],
    ) -> None:
        self._view = view
        self._volume = volume
        self._size = view.geometry[volume].size_bytes
        self._pool = pool
        self._answer = answer
        self._complete = complete
        self._fall_back = fall_back
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, list[Request]] = {}
        self._queue: deque[int] = deque()
        self._asked: set[int] = set()
        self._busy = 0
        self._near: dict[int, None] = {}
        """Prepared windows, oldest first."""
        self._reached = 0

    def wait(self, request: Request, *, behind: int = -1) -> None:
        """Answer a read of at most a window's length when the first window that it lacks is near; one that lacks none
        behind window number `behind` is served otherwise.
        """
        first, last = request.offset // WINDOW_BYTES, (request.offset + request.length - 1) // WINDOW_BYTES
        for number in range(first, last + 1):
            if not self._view.is_prepared(self._volume, number * WINDOW_BYTES):
                break
        else:
            number = -1
        if number <= behind:
            self._fall_back(request)
            return
        self._near.pop(number, None)
        self._waiting.setdefault(number, []).append(request)
        self._want(number)

    def ahead(self, offset: int) -> None:
        """A reader has come to an offset: prepare the next window."""
        self._reached = offset
        self._want(offset // WINDOW_BYTES + 1)

    def _want(self, number: int) -> None:
        """Prepare a window, if it is not near."""
        if number not in self._asked and number not in self._near and number * WINDOW_BYTES < self._size:
            self._asked.add(number)
            self._queue.append(number)
            self._go_on()

    def _go_on(self) -> None:
        while self._queue and self._busy < PREPARED_AT_ONCE:
            self._busy += 1
            self._pool.submit(self._prepare, self._queue.popleft())

    def _prepare(self, number: int) -> None:
        with suppress(Exception):  # whoever reads it hears what is wrong
            self._view.prepare(self._volume, number * WINDOW_BYTES)
        self._loop.call_soon_threadsafe(self._arrived, number)

    def _arrived(self, number: int) -> None:
        self._busy -= 1
        self._asked.discard(number)
        replies = []
        for request in self._waiting.pop(number, ()):
            reply = self._answer(request)
            if reply is not None:
                replies.append(reply)
            else:
                self.wait(request, behind=number)
        if replies:
            self._complete(replies)
        self._keep(number)
        self._go_on()

    def _keep(self, number: int) -> None:
        """Keep a window near while its reader may still want it: memory that is used again soon is the quickest."""
        self._near[number] = None
        is_passed = (number + 1) * WINDOW_BYTES <= self._reached
        if is_passed or len(self._near) > NEAR_MAX:
            dropped = number if is_passed else next(iter(self._near))
            del self._near[dropped]
            self._view.let_go(self._volume, dropped * WINDOW_BYTES)
