"""Events over a socket: a BufferedProtocol that fills the connection's own buffers, so bulk bytes are not copied."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Protocol

from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.errors import TIMED_OUT, UNREACHABLE, TransportError, broken, reason_of
from drengine.wire.connection import Connection, Role, State
from drengine.wire.errors import LocalProtocolError, ProtocolError
from drengine.wire.events import Event, Refuse
from drengine.wire.frames import Buffer

JOINED_BYTES_MAX = 16384
"""Smaller payloads are copied behind their header: one system call is cheaper than two."""

LINGER_SECONDS = 2.0
"""How long the side that spoke last waits for the peer to take it: closing the socket earlier could destroy it."""


class TrafficObserver(Protocol):
    """Told what travels (frame bytes, before TLS), for metrics; called on the event loop."""

    def bytes_received(self, network: str, count: int) -> None:
        """So many bytes came from a peer in that data network."""
        ...

    def bytes_sent(self, network: str, count: int) -> None:
        """So many bytes went to a peer in that data network."""
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What a stream puts up with.

    Attributes:
        connecting_seconds: until there is a connection, TLS not included.
        opening_seconds: from the connection (TLS included) to WELCOME, together.
        idle_seconds: without a byte from the peer, or without it taking any; sessions PING more often than this.
        events_pending_max: received and not yet taken; reading pauses above it.
        write_pending_bytes: written and not yet taken by the kernel; sending waits above it.
    """

    connecting_seconds: float = 15.0
    opening_seconds: float = 15.0
    idle_seconds: float = 20.0
    events_pending_max: int = 64
    write_pending_bytes: int = 1 << 20


class FramedStream(asyncio.BufferedProtocol):
    """One session's stream of events over one socket.

    One task receives; any number may send. Made by `endpoints.connect` and `endpoints.serve`.

    Attributes:
        connection: the protocol of this session.
        peer: the peer's address.
        network: the data network that holds it, a bounded label.
        has_greeted: the peer has said HELLO.
        peer_certificate: what it has proved to be (DER); None without TLS.
        ends: our address and the peer's, with their ports.
        is_proved: whoever made the connection knows the peer to be who it should be, and not only its address.
    """

    def __init__(
        self,
        role: Role,
        *,
        network: str,
        observer: TrafficObserver | None = None,
        limits: StreamLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.connection = Connection(role)
        self.peer = "the peer"
        self.network = network
        self.has_greeted = False
        self.peer_certificate: bytes | None = None
        self.ends: tuple[tuple[str, int], tuple[str, int]] = ("", 0), ("", 0)
        self.is_proved = False
        self._observer = observer
        self._limits = limits or StreamLimits()
        self._clock = clock or SystemClock()
        self._transport: asyncio.Transport | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._error: DrengineError | None = None
        self._reading = True
        self._said_last = False
        self._heard_at = self._opened_at = self._clock.monotonic()
        self._stuck_at = 0.0
        self._stuck_bytes = 0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._limits.write_pending_bytes)
        self.peer = str((transport.get_extra_info("peername") or (self.peer,))[0])
        own, peer = (transport.get_extra_info(name) or ("", 0) for name in ("sockname", "peername"))
        self.ends = own[:2], peer[:2]
        if tls := transport.get_extra_info("ssl_object"):
            self.peer_certificate = tls.getpeercert(binary_form=True)
        raw = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._watchdog = asyncio.get_running_loop().create_task(self._watch())

    def get_buffer(self, _: int) -> memoryview:
        """See asyncio.BufferedProtocol: the connection's own buffer."""
        return self.connection.receive_buffer()

    def buffer_updated(self, count: int) -> None:
        """See asyncio.BufferedProtocol."""
        self._heard_at = self._clock.monotonic()
        if self._observer:
            self._observer.bytes_received(self.network, count)
        try:
            self.connection.received(count)
        except ProtocolError as error:
            self._fail(error)
        self.has_greeted = self.has_greeted or self.connection.state in (State.GREETED, State.OPEN)
        if self.connection.events:
            self._arrived.set()
            if len(self.connection.events) >= self._limits.events_pending_max:
                self._set_reading(False)

    def eof_received(self) -> bool:
        """See asyncio.BaseProtocol."""
        try:
            self.connection.receive_eof()
        except ProtocolError as error:
            truncated = error.reason == "truncated"
            cut = TransportError(UNREACHABLE, "truncated", f"{self.peer}: {error.message}")
            self._fail(cut if truncated else error)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._fail(broken(self.peer, error))
        if self._watchdog:
            self._watchdog.cancel()
        self._closed.set()

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._writable.clear()
        self._stuck_at = self._clock.monotonic()
        self._stuck_bytes = self._unsent()

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._writable.set()

    # What sessions call.

    async def receive(self) -> Event:
        """The next event, in order; events that came before an error are delivered first.

        Raises:
            RemoteProtocolError: the peer broke the protocol.
            TransportError: TIMED_OUT or UNREACHABLE, the connection ended or broke.
        """
        while not self.connection.events:
            if self._error:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self.connection.events.popleft()
        if len(self.connection.events) <= self._limits.events_pending_max // 2:
            self._set_reading(True)
        return event

    async def send(self, event: Event) -> None:
        """Send one event, waiting while the peer takes no more.

        What is said to a peer that has said GOODBYE or REFUSE goes nowhere: it ignores it, and whoever receives
        here may still be busy with what came before that.

        Raises:
            LocalProtocolError: the event is not legal now; nothing was sent.
            RemoteProtocolError, TransportError: as `receive`.
        """
        while not self._writable.is_set():
            await self._writable.wait()
        if self.connection.state is State.CLOSED and not self._said_last:
            return
        if self._error:
            raise self._error
        self._write(self.connection.send(event))
        self._said_last = self.connection.state is State.CLOSED

    def give_up(self, error: DrengineError) -> None:
        """End it at once for this reason, which `receive` raises."""
        self._fail(error)

    async def refuse(self, error: DrengineError) -> None:
        """Tell the peer why the session ends, if it still listens, and close."""
        with contextlib.suppress(LocalProtocolError):
            self._write(self.connection.send(Refuse(reason_of(error), error.message, not error.kind.final)))
            self._said_last = True
        await self.close()

    async def close(self) -> None:
        """Close in peace if the peer lets us, in LINGER_SECONDS at most; harmless when closed already."""
        if self._transport is None or self._closed.is_set():
            return
        if self._said_last:
            self._set_reading(True)
            if self._transport.can_write_eof():
                with contextlib.suppress(OSError):  # it reset the connection, and the loop has not heard yet
                    self._transport.write_eof()
        else:
            self._transport.close()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), LINGER_SECONDS)
        finally:
            self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, buffers: list[Buffer]) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        count = sum(map(len, buffers))
        if self._observer:
            self._observer.bytes_sent(self.network, count)
        for buffer in buffers if count > JOINED_BYTES_MAX else (b"".join(buffers),):
            self._transport.write(buffer)

    def _fail(self, error: DrengineError) -> None:
        """The first error counts. After a broken protocol the socket stays, so that the peer can be told."""
        if self._error is not None:
            return
        self._error = error
        self._arrived.set()
        self._writable.set()
        if self._transport is not None and not isinstance(error, ProtocolError):
            self._transport.abort()

    def _set_reading(self, reading: bool) -> None:
        if reading is self._reading or self._transport is None or self._transport.is_closing():
            return
        self._reading = reading
        self._heard_at = self._clock.monotonic()
        (self._transport.resume_reading if reading else self._transport.pause_reading)()

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    async def _watch(self) -> None:
        """A peer that is silent, or takes nothing, is gone, whatever TCP believes (faults 34 and 38)."""
        limits = self._limits
        while self._error is None:
            await self._clock.sleep(min(limits.opening_seconds, limits.idle_seconds) / 4)
            now = self._clock.monotonic()
            if self._unsent() < self._stuck_bytes or self._writable.is_set():
                self._stuck_at, self._stuck_bytes = now, self._unsent()
            if self.connection.state in (State.OPENING, State.GREETED):
                if now - self._opened_at >= limits.opening_seconds:
                    self._give_up("opening-timeout", limits.opening_seconds)
            elif self._reading and now - self._heard_at >= limits.idle_seconds:
                self._give_up("silent", limits.idle_seconds)
            elif now - self._stuck_at >= limits.idle_seconds:
                self._give_up("stalled", limits.idle_seconds)

    def _give_up(self, reason: str, seconds: float) -> None:
        self._fail(TransportError(TIMED_OUT, reason, f"{self.peer}: {reason} after {seconds:g} s"))
