"""Events over a socket: a BufferedProtocol that fills the connection's own buffers, so bulk bytes are not copied."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from drengine.model.errors import DrengineError
from drengine.transport.errors import PLAIN_REFUSED, TIMED_OUT, UNREACHABLE
from drengine.transport.networks import DataNetworks, is_loopback
from drengine.wire.connection import Connection, Role
from drengine.wire.errors import ProtocolError
from drengine.wire.events import Event

log = logging.getLogger("drengine.transport")

HANDSHAKE_SECONDS = 10.0
SOCKET_BUFFER_BYTES = 4 << 20
WRITE_HIGH_BYTES = 4 << 20
EVENTS_PENDING_MAX = 64


class TrafficObserver(Protocol):
    """Told what travels, for metrics; called on the event loop."""

    def bytes_received(self, network: str, count: int) -> None:
        """So many bytes came from a peer in that data network."""
        ...

    def bytes_sent(self, network: str, count: int) -> None:
        """So many bytes went to a peer in that data network."""
        ...


class FramedStream(asyncio.BufferedProtocol):
    """One session's stream of events over one socket. Used by one task for receiving and one for sending."""

    def __init__(self, role: Role, *, observer: TrafficObserver | None = None) -> None:
        self.connection = Connection(role)
        self.peer = ""
        self.network = ""
        self.peer_certificate: dict[str, object] | None = None
        self._observer = observer
        self._transport: asyncio.Transport | None = None
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._error: Exception | None = None
        self._reading = True

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if name else ""
        self.peer_certificate = transport.get_extra_info("peercert")
        if raw := transport.get_extra_info("socket"):
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def get_buffer(self, _: int) -> memoryview:
        """See asyncio.BufferedProtocol: the connection's own buffer."""
        return self.connection.receive_buffer()

    def buffer_updated(self, count: int) -> None:
        """See asyncio.BufferedProtocol."""
        if self._observer and self.network:
            self._observer.bytes_received(self.network, count)
        try:
            event = self.connection.received(count)
        except ProtocolError as error:
            self._fail(error)
            return
        if event is not None:
            self._events.append(event)
            self._arrived.set()
            if len(self._events) >= EVENTS_PENDING_MAX and self._reading and self._transport:
                self._transport.pause_reading()
                self._reading = False

    def eof_received(self) -> bool:
        """See asyncio.BaseProtocol."""
        try:
            self.connection.receive_eof()
        except ProtocolError as error:
            self._fail(error)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._fail(error or ConnectionResetError("the connection was closed"))
        self._closed.set()

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._writable.set()

    # What sessions call.

    async def receive(self) -> Event:
        """The next event, in order; events that came before an error are delivered first.

        Raises:
            ProtocolError: the peer broke the protocol.
            DrengineError: UNREACHABLE, the connection ended or broke.
        """
        while not self._events:
            if self._error:
                raise self._reported()
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if not self._reading and len(self._events) < EVENTS_PENDING_MAX // 2 and self._transport:
            self._transport.resume_reading()
            self._reading = True
        return event

    async def send(self, event: Event) -> None:
        """Send one event, waiting while the peer takes no more.

        Raises:
            LocalProtocolError: the event is not legal now; nothing was sent.
            DrengineError: UNREACHABLE, the connection ended or broke.
        """
        await self._writable.wait()
        if self._error or self._transport is None or self._transport.is_closing():
            raise self._reported()
        buffers = self.connection.send(event)
        if self._observer:
            self._observer.bytes_sent(self.network, sum(map(len, buffers)))
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        else:
            self._transport.writelines(buffers)

    async def close(self, *, seconds: float = 2.0) -> None:
        """Send what was written, at most for so long, then close; harmless when closed already."""
        if self._transport is None:
            return
        self._transport.close()
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._arrived.set()
        self._writable.set()
        if self._transport is not None and not self._transport.is_closing():
            if isinstance(error, ProtocolError):
                self._transport.pause_reading()
            else:
                self._transport.abort()

    def _reported(self) -> Exception:
        if isinstance(self._error, DrengineError):
            return self._error
        return DrengineError(UNREACHABLE, f"{self.peer or 'the peer'}: {self._error or 'the connection is closed'}")


async def connect(
    host: str,
    port: int,
    *,
    networks: DataNetworks,
    tls: ssl.SSLContext | None,
    allow_plain: bool = False,
    observer: TrafficObserver | None = None,
    handshake_seconds: float = HANDSHAKE_SECONDS,
) -> FramedStream:
    """Connect an agent to a target. The resolved address is checked before a connection is made to it.

    Raises:
        DrengineError: OUTSIDE_DATA_NETWORK, PLAIN_REFUSED, UNREACHABLE, TIMED_OUT.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), handshake_seconds)
    except (OSError, TimeoutError) as error:
        raise DrengineError(UNREACHABLE, f"{host}:{port}: {error}") from error
    address = str(found[0][4][0])
    network = networks.label(address)
    _check_plain(address, tls, allow_plain)
    stream = FramedStream(Role.AGENT, observer=observer)
    try:
        async with asyncio.timeout(handshake_seconds):
            await loop.create_connection(
                lambda: stream, address, port, ssl=tls, server_hostname=host if tls is not None else None
            )
    except TimeoutError as error:
        raise DrengineError(TIMED_OUT, f"{host}:{port} did not answer in {handshake_seconds:g} s") from error
    except (OSError, ssl.SSLError) as error:
        raise DrengineError(UNREACHABLE, f"{host}:{port}: {error}") from error
    stream.network = network
    return stream


async def serve(
    host: str,
    port: int,
    handler: Callable[[FramedStream], Awaitable[None]],
    *,
    networks: DataNetworks,
    tls: ssl.SSLContext | None,
    allow_plain: bool = False,
    observer: TrafficObserver | None = None,
    refused: Callable[[DrengineError], None] | None = None,
    handshake_seconds: float = HANDSHAKE_SECONDS,
) -> asyncio.Server:
    """Listen for agents; each accepted peer inside the data networks gets `handler` in a task of its own.

    `refused` is told of each peer that was turned away before its handler ran.

    Raises:
        DrengineError: UNREACHABLE, the address can't be listened on.
    """
    tasks: set[asyncio.Task[None]] = set()

    class Accepted(FramedStream):
        """A stream that begins its session when its peer has been found allowed."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            try:
                self.network = networks.label(self.peer)
                _check_plain(self.peer, tls, allow_plain)
            except DrengineError as error:
                log.warning("refused %s: %s", self.peer, error)
                if refused:
                    refused(error)
                self.abort()
                return
            task = asyncio.get_running_loop().create_task(_run(self))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _run(stream: FramedStream) -> None:
        try:
            await handler(stream)
        finally:
            await stream.close()

    try:
        return await asyncio.get_running_loop().create_server(
            lambda: Accepted(Role.TARGET, observer=observer),
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=handshake_seconds if tls is not None else None,
        )
    except OSError as error:
        raise DrengineError(UNREACHABLE, f"{host}:{port} can't be listened on: {error.strerror or error}") from error


def _check_plain(address: str, tls: ssl.SSLContext | None, allow_plain: bool) -> None:
    if tls is not None or is_loopback(address):
        return
    if not allow_plain:
        raise DrengineError(PLAIN_REFUSED, f"{address} would be spoken to without TLS")
    log.warning("block data goes to and from %s WITHOUT encryption, because allow_plain is set", address)
