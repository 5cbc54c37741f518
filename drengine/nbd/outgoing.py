"""What a connection has to send. Long replies go from where they lie to the socket; asyncio would copy them first."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from itertools import islice

from drengine.nbd.export import Buffer

WAITING_BYTES_MAX = 1 << 20
"""Beyond this the client is asked for nothing more."""

_BUFFERS_MAX = 256
"""In one call; the system takes 1024."""

_LEFT_BYTES = 4096
"""So much is left to the transport to wait with until the client takes more; it copies what it waits with."""


_TLS_BYTES = 256 << 10
"""In one call; while the client does not take it, the rest waits here."""


class Outgoing:
    """Buffers in order, for one transport. Its owner passes on what the transport says: `pause`, `resume`.

    Attributes:
        waiting_bytes: not yet given to the transport.
        taken_bytes: that were, ever.
    """

    def __init__(self, transport: asyncio.Transport, *, is_plain: bool) -> None:
        """Take over what a transport sends; `is_plain`: what is sent goes to its socket as it is."""
        self._transport = transport
        self._waiting: deque[Buffer] = deque()
        self.waiting_bytes = 0
        self.taken_bytes = 0
        self._is_paused = False
        self._is_closing = False
        self._descriptor = transport.get_extra_info("socket").fileno() if is_plain else -1
        # A plain transport says at once when it holds anything, and when it does no more.
        transport.set_write_buffer_limits(high=0 if is_plain else None)

    @property
    def is_full(self) -> bool:
        """The client does not take what there is."""
        return self._is_paused and (self._descriptor < 0 or self.waiting_bytes > WAITING_BYTES_MAX)

    @property
    def is_closing(self) -> bool:
        """Nothing that comes now will be answered."""
        return self._is_closing or self._transport.is_closing()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send; what the client does not take yet waits."""
        for buffer in buffers:
            if len(buffer):
                self._waiting.append(buffer)
                self.waiting_bytes += len(buffer)
        self._go_on()

    def pause(self) -> None:
        """The transport holds something that its client does not take."""
        self._is_paused = True

    def resume(self) -> None:
        """It does no more."""
        self._is_paused = False
        self._go_on()

    def close(self) -> None:
        """Close the transport when everything has left."""
        self._is_closing = True
        self._go_on()

    def _go_on(self) -> None:
        transport, waiting = self._transport, self._waiting
        while waiting and not transport.is_closing():
            if self._is_paused:
                return
            if self._descriptor < 0:
                first = memoryview(waiting[0])[:_TLS_BYTES]
                self._advance(len(first))
                transport.write(first)
                continue
            try:
                self._advance(os.writev(self._descriptor, [*islice(waiting, _BUFFERS_MAX)]))
            except BlockingIOError:
                first = memoryview(waiting[0])[:_LEFT_BYTES]
                self._advance(len(first))
                transport.write(first)
            except OSError:
                transport.abort()
        if self._is_closing:
            transport.close()

    def _advance(self, length: int) -> None:
        """So many bytes have left."""
        self.waiting_bytes -= length
        self.taken_bytes += length
        while length:
            first = self._waiting.popleft()
            if len(first) > length:
                self._waiting.appendleft(memoryview(first)[length:])
                return
            length -= len(first)
