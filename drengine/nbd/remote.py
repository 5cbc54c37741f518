"""A disk on an NBD server that may be restarted while the disk is used.

A server keeps writes in memory until FLUSH. One that is killed loses those, and a client that just connects again gets
its next FLUSH granted by a server that never saw them. So every change is kept here too, until a FLUSH has covered it.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient

RECONNECT_SECONDS = 30.0
"""How long a server may be gone until requests fail; those that come later fail at once, until it is back."""

UNFLUSHED_BYTES_MAX = 32 << 20
_CHANGE_COST_BYTES = 200
_RETRY_SECONDS = 0.1

T = TypeVar("T")


@dataclass(slots=True)
class _Change:
    """A write, or zeros or a discard when there is no data."""

    offset: int
    length: int
    data: bytes | memoryview | None = None
    discard: bool = False
    answered: bool = False

    @property
    def cost_bytes(self) -> int:
        return _CHANGE_COST_BYTES + (self.length if self.data is not None else 0)

    def send(self, client: NbdClient) -> None:
        if self.data is not None:
            client.write(self.offset, self.data)
        elif self.discard:
            client.trim(self.offset, self.length)
        else:
            client.zero(self.offset, self.length)


@dataclass(slots=True)
class _Unflushed:
    """Changes by number, oldest first, that no FLUSH has covered."""

    changes: dict[int, _Change] = field(default_factory=dict)
    next: int = 0
    cost_bytes: int = 0

    def add(self, change: _Change) -> int:
        number, self.next = self.next, self.next + 1
        self.changes[number] = change
        self.cost_bytes += change.cost_bytes
        return number

    def remove(self, number: int) -> None:
        if (change := self.changes.pop(number, None)) is not None:
            self.cost_bytes -= change.cost_bytes

    def answered(self) -> list[int]:
        return [number for number, change in self.changes.items() if change.answered]


class RemoteDisk:
    """Threads may share it, but changes of one range must come one after the other.

    Invariant: a read shows every change that had returned before, and when `flush` returns, each of those is durable;
    whatever servers died meanwhile. It holds because a connection that is made anew is used for neither before all
    unflushed changes were sent again, to that server or to one after it.
    """

    def __init__(self, connect: Callable[[], NbdClient], connections: int) -> None:
        """Connect so many times.

        Raises:
            DrengineError, OSError: the disk can't be opened.
        """
        self._connect = connect
        self._pool: queue.SimpleQueue[NbdClient | None] = queue.SimpleQueue()
        """Connections; None after a failure, until the next use."""
        self._closing = threading.Event()
        self._gone_since = math.inf
        """When the server was first found gone (monotonic); requests wait as from then."""
        self._unflushed = _Unflushed()
        self._gate = threading.Condition()
        """Guards what follows, and `_unflushed`."""
        self._changing = 0
        self._resending = False
        self._in_doubt = False
        """A connection was made anew since the unflushed changes were last sent again."""
        try:
            for _ in range(connections):
                client = connect()
                self._pool.put(client)
        except BaseException:
            self.close()
            raise
        self.size_bytes = client.size_bytes
        self.sector_bytes = client.block_bytes_min

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Bytes as they are now.

        Raises:
            OSError, DrengineError: they can't be read.
        """
        return self._ask(lambda client: client.read(offset, length))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write; durable after `flush`. The buffer belongs to this disk until then.

        Raises:
            OSError, DrengineError: what the disk holds there is unknown.
        """
        self._change(_Change(offset, len(data), data))

    def zero(self, offset: int, length: int, *, discard: bool) -> None:
        """Zeros or a discard; raises as `write`."""
        self._change(_Change(offset, length, discard=discard))

    def flush(self) -> None:
        """See the invariant.

        Raises:
            OSError, DrengineError: it may not be durable.
        """
        with self._gate:
            covered = self._unflushed.answered()
        self._ask(lambda client: client.flush())
        with self._gate:
            for number in covered:
                self._unflushed.remove(number)

    def stop_waiting(self) -> None:
        """Requests that wait for a server fail from now on."""
        self._closing.set()

    def close(self) -> None:
        """Close all connections; nobody uses the disk any more."""
        while not self._pool.empty():
            if (client := self._pool.get()) is not None:
                client.close()

    def _change(self, change: _Change) -> None:
        with self._gate:
            self._gate.wait_for(lambda: not self._resending)
            self._changing += 1
            number = self._unflushed.add(change)
        try:
            self._ask(change.send, resent=False)
        except BaseException:
            with self._gate:
                self._unflushed.remove(number)
            raise
        finally:
            with self._gate:
                self._changing -= 1
                if not self._changing:
                    self._gate.notify_all()
        change.answered = True
        if self._unflushed.cost_bytes > UNFLUSHED_BYTES_MAX:
            self.flush()

    def _ask(self, action: Callable[[NbdClient], T], *, resent: bool = True) -> T:
        """Do something over a connection; while the server is gone, again and again for a while.

        Args:
            action: what to do.
            resent: it needs a server that has all unflushed changes.
        """
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                if resent and self._in_doubt:
                    self._resend()
                with self._connection() as client:
                    if not resent or not self._in_doubt:
                        return action(client)
            except OSError:
                if self._closing.is_set() or time.monotonic() > min(deadline, self._gone_since + RECONNECT_SECONDS):
                    raise
                self._closing.wait(_RETRY_SECONDS)

    def _resend(self) -> None:
        """Bring the server what one before it may have lost, in order, while nothing else is changed.

        No connection is held while this waits for changes, which need one.
        """
        with self._gate:
            self._gate.wait_for(lambda: not self._resending)
            if not self._in_doubt:
                return
            self._resending = True
        try:
            with self._gate:
                self._gate.wait_for(lambda: not self._changing)
                self._in_doubt = False
                held = list(self._unflushed.changes.values())
            with self._connection(anew=False) as client:
                for change in held:
                    change.send(client)
        except BaseException:
            self._in_doubt = True
            raise
        finally:
            with self._gate:
                self._resending = False
                self._gate.notify_all()

    def _reconnected(self) -> NbdClient:
        try:
            client = self._connect()
        except OSError:
            self._gone_since = min(self._gone_since, time.monotonic())
            raise
        self._gone_since = math.inf
        return client

    @contextmanager
    def _connection(self, *, anew: bool = True) -> Iterator[NbdClient]:
        """One of the pool's; connected again if it had failed, which raises doubt if `anew`."""
        client = self._pool.get()
        try:
            if client is None:
                client = self._reconnected()
                if anew:
                    self._in_doubt = True
            yield client
        except (OSError, DrengineError):
            if client is not None:
                client.close()
            client = None
            raise
        finally:
            self._pool.put(client)
