"""Making sessions: an agent connects, a target listens. Addresses are judged before a byte of data is exchanged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.telemetry.accepting import accepted
from drengine.transport.errors import (
    PLAIN_REFUSED,
    TIMED_OUT,
    TLS_FAILED,
    UNREACHABLE,
    TransportError,
    broken,
    reason_of,
)
from drengine.transport.framed import FramedStream, StreamLimits, TrafficObserver
from drengine.transport.networks import DataNetworks, is_loopback
from drengine.transport.tls import alert_of
from drengine.wire.connection import Role

log = logging.getLogger("drengine.transport")

CONNECTIONS_MAX = 256
STRANGERS_MAX = 64
"""Connections that have not said HELLO yet, beside those that have."""
REACH_SECONDS = 3.0
ALERT_SECONDS = 1.0
"""How long a peer may take to close after it was told why its handshake failed."""

Handler = Callable[[FramedStream], Awaitable[None]]


async def connect(
    host: str,
    port: int,
    *,
    networks: DataNetworks,
    tls: ssl.SSLContext | None,
    allow_plain: bool = False,
    observer: TrafficObserver | None = None,
    limits: StreamLimits | None = None,
    clock: Clock | None = None,
) -> FramedStream:
    """Connect an agent to a target: to the first address of `host` that lies in the data networks and answers.

    Raises:
        TransportError: OUTSIDE_DATA_NETWORK, PLAIN_REFUSED, UNREACHABLE, TIMED_OUT.
    """
    limits = limits or StreamLimits()
    try:
        async with asyncio.timeout(limits.opening_seconds):
            async with asyncio.timeout(limits.connecting_seconds):
                sock, network = await _connect_inside(
                    host, port, networks, lambda peer: _check_plain(peer, tls is not None, allow_plain)
                )
            with closing_on_error(sock):
                async with _alerting(sock, tls):
                    _, stream = await asyncio.get_running_loop().create_connection(
                        lambda: FramedStream(
                            Role.AGENT, network=network, observer=observer, limits=limits, clock=clock
                        ),
                        sock=sock,
                        ssl=tls,
                        server_hostname=host if tls is not None else None,
                    )
    except TimeoutError as error:
        message = f"{host}:{port} did not answer in time"
        raise TransportError(TIMED_OUT, "opening-timeout", message) from error
    except OSError as error:
        raise broken(f"{host}:{port}", error, handshake=tls is not None) from error
    return stream


async def reach(host: str, port: int, networks: DataNetworks) -> None:
    """Make a connection to an allowed address and close it: nothing is said over it.

    Raises:
        TransportError: OUTSIDE_DATA_NETWORK, UNREACHABLE, TIMED_OUT.
    """
    try:
        async with asyncio.timeout(REACH_SECONDS):
            sock, _ = await _connect_inside(host, port, networks, lambda _: None)
    except TimeoutError as error:
        message = f"{host}:{port} did not answer in {REACH_SECONDS:g} s"
        raise TransportError(TIMED_OUT, "opening-timeout", message) from error
    sock.close()


async def _connect_inside(
    host: str, port: int, networks: DataNetworks, check: Callable[[str], None]
) -> tuple[socket.socket, str]:
    """A connected socket to an allowed address that passes the check, and that address's network."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TransportError(UNREACHABLE, "unreachable", f"{host}: {error.strerror or error}") from error
    failure = TransportError(UNREACHABLE, "unreachable", f"{host} has no address")
    for family, kind, protocol, _, address in found:
        peer = str(address[0])
        try:
            network = networks.label(peer)
            check(peer)
        except TransportError as error:
            failure = error
            continue
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            with closing_on_error(sock):
                await loop.sock_connect(sock, address)
        except OSError as error:
            failure = TransportError(UNREACHABLE, "unreachable", f"{peer}:{port}: {error.strerror or error}")
            continue
        return sock, network
    raise failure


@dataclass(eq=False, slots=True)
class _Guest:
    """An accepted connection; `stream` comes with the end of the TLS handshake."""

    peer: str
    stream: FramedStream | None = None
    task: asyncio.Task[None] | None = None

    @property
    def is_stranger(self) -> bool:
        return self.stream is None or not self.stream.has_greeted

    def send_away(self) -> None:
        error = TransportError(UNREACHABLE, "too-many-connections", f"{self.peer} said nothing, and others came")
        if self.stream is not None:
            self.stream.give_up(error)
        elif self.task is not None:
            self.task.cancel()


class Listener:
    """Accepts agents, each in a task of its own: what goes wrong in one session stays in it.

    Attributes:
        sockets: listened on.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        handler: Handler,
        *,
        networks: DataNetworks,
        tls: Callable[[], ssl.SSLContext] | None,
        allow_plain: bool,
        observer: TrafficObserver | None,
        failed: Callable[[DrengineError], None],
        limits: StreamLimits,
        clock: Clock,
        connections_max: int,
    ) -> None:
        self.sockets = tuple(sockets)
        self._handler = handler
        self._networks = networks
        self._tls = tls
        self._allow_plain = allow_plain
        self._observer = observer
        self._failed = failed
        self._limits = limits
        self._clock = clock
        self._connections_max = connections_max
        self._sessions: set[asyncio.Task[None]] = set()
        self._guests: dict[_Guest, None] = {}
        self._acceptors = [asyncio.create_task(self._accept(sock)) for sock in self.sockets]
        for sock, acceptor in zip(self.sockets, self._acceptors, strict=True):
            acceptor.add_done_callback(partial(_close, sock))

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more; sessions go on until their handlers end."""
        for acceptor in self._acceptors:
            acceptor.cancel()

    async def wait_closed(self) -> None:
        """Return when every session has ended."""
        await asyncio.gather(*self._acceptors, *self._sessions, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        async for sock, peer in accepted(listening, self._clock):
            guest = _Guest(peer)
            self._make_room(guest)
            self._guests[guest] = None
            session = guest.task = asyncio.create_task(self._run(sock, guest))
            self._sessions.add(session)
            session.add_done_callback(partial(self._left, guest))

    def _left(self, guest: _Guest, session: asyncio.Task[None]) -> None:
        self._sessions.discard(session)
        self._guests.pop(guest, None)

    def _make_room(self, newcomer: _Guest) -> None:
        """Strangers make way for one another: the oldest one of the address that has most of them goes.

        So silent connections keep nobody out who says HELLO soon, least of all from another address.
        """
        strangers = [guest for guest in self._guests if guest.is_stranger]
        if len(strangers) >= STRANGERS_MAX:
            counts = Counter(guest.peer for guest in (newcomer, *strangers))
            oldest = max(strangers, key=lambda guest: counts[guest.peer])
            del self._guests[oldest]
            oldest.send_away()

    async def _run(self, sock: socket.socket, guest: _Guest) -> None:
        peer = guest.peer
        try:
            with closing_on_error(sock):
                stream = guest.stream = await self._open(sock, peer)
        except TransportError as error:
            self._report(peer, error)
            return
        try:
            await self._handler(stream)
        except DrengineError as error:
            self._report(peer, error)
            await stream.refuse(error)
        except Exception:
            log.exception("the session of %s failed", peer)
        finally:
            await stream.close()

    async def _open(self, sock: socket.socket, peer: str) -> FramedStream:
        """The stream of an accepted peer.

        Raises:
            TransportError: it was turned away, or failed TLS.
        """
        network = self._networks.label(peer)
        _check_plain(peer, self._tls is not None, self._allow_plain)
        if sum(not guest.is_stranger for guest in self._guests) >= self._connections_max:
            message = f"{peer} is one too many, {self._connections_max} are connected"
            raise TransportError(UNREACHABLE, "too-many-connections", message)
        tls = self._tls() if self._tls else None
        try:
            async with _alerting(sock, tls):
                _, stream = await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: FramedStream(
                        Role.TARGET,
                        network=network,
                        observer=self._observer,
                        limits=self._limits,
                        clock=self._clock,
                    ),
                    sock,
                    ssl=tls,
                    ssl_handshake_timeout=self._limits.opening_seconds if tls else None,
                )
        except ConnectionAbortedError as error:  # asyncio's word for a TLS handshake that takes too long
            raise TransportError(TIMED_OUT, "opening-timeout", f"{peer}: {error}") from error
        except OSError as error:
            raise broken(peer, error, handshake=tls is not None) from error
        return stream

    def _report(self, peer: str, error: DrengineError) -> None:
        hint = f"; {error.hint}" if error.kind is TLS_FAILED else ""
        log.warning("connection of %s ended, %s: %s%s", peer, reason_of(error), error.message, hint)
        self._failed(error)


async def serve(
    host: str,
    port: int,
    handler: Handler,
    *,
    networks: DataNetworks,
    tls: Callable[[], ssl.SSLContext] | None,
    allow_plain: bool = False,
    observer: TrafficObserver | None = None,
    failed: Callable[[DrengineError], None] = lambda _: None,
    limits: StreamLimits | None = None,
    clock: Clock | None = None,
    connections_max: int = CONNECTIONS_MAX,
) -> Listener:
    """Listen for agents; each accepted peer inside the data networks gets `handler` in a task of its own.

    When `handler` raises a DrengineError the peer is told by REFUSE; in any case the stream is closed after it.
    `tls` gives the context for each connection (`Credentials.context`), so that renewed certificates count at once.
    `failed` is told of each connection that was turned away or ended by an error (`errors.reason_of` gives its label).

    Raises:
        TransportError: UNREACHABLE, the address can't be listened on.
    """
    sockets: list[socket.socket] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(_listen(family, address))
    except OSError as error:
        for sock in sockets:
            sock.close()
        message = f"{host}:{port} can't be listened on: {error.strerror or error}"
        raise TransportError(UNREACHABLE, "unreachable", message) from error
    return Listener(
        sockets,
        handler,
        networks=networks,
        tls=tls,
        allow_plain=allow_plain,
        observer=observer,
        failed=failed,
        limits=limits or StreamLimits(),
        clock=clock or SystemClock(),
        connections_max=connections_max,
    )


def _listen(family: int, address: Any) -> socket.socket:
    sock = socket.create_server(address[:2], family=family, backlog=128)
    sock.setblocking(False)
    return sock


def _close(sock: socket.socket, _: object) -> None:
    sock.close()


@contextlib.contextmanager
def closing_on_error(sock: socket.socket) -> Iterator[None]:
    """Whatever goes wrong inside, the socket does not stay open."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


@contextlib.asynccontextmanager
async def _alerting(sock: socket.socket, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Tell the peer why the TLS handshake inside failed. asyncio closes the socket then, but not its duplicate."""
    spare = None
    with contextlib.suppress(OSError):  # out of descriptors: then the peer is left to guess
        spare = sock.dup() if tls is not None else None
    try:
        yield
    except ssl.SSLError as error:
        if spare is not None and (alert := alert_of(error)):
            await _say_last(spare, alert)
        raise
    finally:
        if spare is not None:
            spare.close()


async def _say_last(sock: socket.socket, data: bytes) -> None:
    """Send it, and wait for the peer to close: closing with unread bytes would take it back."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(ALERT_SECONDS):
            await loop.sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(sock, 65536):
                pass


def _check_plain(peer: str, secured: bool, allow_plain: bool) -> None:
    if secured or is_loopback(peer):
        return
    if not allow_plain:
        raise TransportError(PLAIN_REFUSED, "plain-refused", f"{peer} would be spoken to without TLS")
    log.warning("block data goes to and from %s WITHOUT encryption, because allow_plain is set", peer)
