"""A small HTTPS server for strangers: one request a connection, and everything that it may use is bounded.

Whoever has proved no identity shares a few connections with others of that kind, and fewer with those of its own
address. So strangers keep nobody out for longer than a request takes, and no one whose request is being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import h11

from drengine.identity.errors import EnrolmentError
from drengine.identity.names import Identity
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.telemetry.accepting import accepted
from drengine.transport.endpoints import closing_on_error
from drengine.transport.errors import UNREACHABLE, TransportError

log = logging.getLogger("drengine.enrolment")

REQUEST_BYTES_MAX = 32 << 10
REQUEST_SECONDS = 5.0
"""For the TLS handshake, and again for the request."""
ANSWER_SECONDS = 30.0
FILE_SECONDS = 600.0
"""For a file of some ten megabytes to a host on a slow line."""
FILE_PART_BYTES = 256 << 10
CONNECTIONS_MAX = 1024
STRANGERS_MAX = 128
STRANGERS_EACH_MAX = 64
"""Connections of one address whose request has not come, or proves nobody."""
PARTY_MAX = 8
"""Connections of one identity."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks.

    Attributes:
        method, target: as in the request line.
        headers: names in lower case.
        body: whole.
        peer: the address it comes from.
        server: our own certificate on this connection, in DER.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    peer: str
    server: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """What the target asks for.

        Raises:
            ValueError: too much.
        """
        return dict(parse_qsl(urlsplit(self.target).query, max_num_fields=8))


@dataclass(frozen=True, slots=True)
class Answer:
    """What it is told: JSON, or a file as it is."""

    status: int
    body: bytes
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as proved: an identity, by the certificate of this serial number (in hexadecimal)."""

    identity: Identity
    serial: str


class Door(Protocol):
    """What answers."""

    def caller(self, request: Request) -> Caller | None:
        """Who asks; None for whoever proves nothing.

        Raises:
            EnrolmentError: a proof that is none.
        """
        ...

    async def answer(self, request: Request, caller: Caller | EnrolmentError | None) -> Answer:
        """Answer it."""
        ...


Tls = Callable[[], tuple[ssl.SSLContext, bytes]]
"""The context for a connection, with the certificate (DER) that it shows."""


class _TooMuchError(Exception):
    """A request is no HTTP, or larger than any that is meant."""


class HttpsServer:
    """Listens, and gives each request to a door.

    Attributes:
        turned_away: connections that were closed to make room, since the start.
    """

    def __init__(self, door: Door, tls: Tls, clock: Clock) -> None:
        self.turned_away = 0
        self._strangers: dict[asyncio.Task[None], str] = {}
        self._parties: dict[asyncio.Task[None], str] = {}
        self._door = door
        self._tls = tls
        self._clock = clock
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            TransportError: UNREACHABLE.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            told = f"{host}:{port} can't be listened on: {error.strerror or error}"
            raise TransportError(UNREACHABLE, "unreachable", told) from error
        sock.setblocking(False)
        self._listening.append(sock)
        self._accepting.append(asyncio.get_running_loop().create_task(self._accept(sock)))
        return int(sock.getsockname()[1])

    async def close(self) -> None:
        """Accept no more, and end all connections."""
        for sock in self._listening:
            sock.close()
        tasks = [*self._accepting, *self._strangers, *self._parties]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        async for sock, peer in accepted(listening, self._clock):
            self._make_room(peer)
            task = asyncio.create_task(self._run(sock, peer))
            self._strangers[task] = peer
            task.add_done_callback(self._leave)

    def _make_room(self, newcomer: str) -> None:
        """Strangers make way for one another: the oldest one of the address that has most of them goes."""
        counts = Counter(self._strangers.values())
        if len(self._strangers) >= STRANGERS_MAX:
            crowded = counts.most_common(1)[0][0]
        elif counts[newcomer] >= STRANGERS_EACH_MAX:
            crowded = newcomer
        else:
            return
        oldest = next(task for task, peer in self._strangers.items() if peer == crowded)
        del self._strangers[oldest]
        oldest.cancel()
        self.turned_away += 1

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._strangers.pop(task, None)
        self._parties.pop(task, None)

    async def _run(self, sock: socket.socket, peer: str) -> None:
        try:
            with closing_on_error(sock):
                context, server = self._tls()
                reader, writer = await _open(sock, context)
        except (OSError, TimeoutError, DrengineError) as error:
            log.debug("%s: no TLS: %s", peer, error)
            return
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await _read(reader, peer, server)
            await _write(writer, await self._answer(request))
        except (OSError, TimeoutError, _TooMuchError, h11.ProtocolError) as error:
            log.debug("%s: %s", peer, error)
        except Exception:
            log.exception("a request of %s failed", peer)
        finally:
            writer.transport.abort()

    async def _answer(self, request: Request) -> Answer:
        try:
            caller = self._door.caller(request)
        except EnrolmentError as error:
            return await self._door.answer(request, error)
        if caller is not None:
            self._admit(str(caller.identity))
        return await self._door.answer(request, caller)

    def _admit(self, party: str) -> None:
        """The connection that we are in is a stranger's no more."""
        if len(self._parties) >= CONNECTIONS_MAX or Counter(self._parties.values())[party] >= PARTY_MAX:
            self.turned_away += 1
            raise _TooMuchError(f"{party} has {PARTY_MAX} connections already, or everybody together too many")
        task = asyncio.current_task()
        assert task is not None
        self._strangers.pop(task, None)
        self._parties[task] = party


async def _open(sock: socket.socket, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=REQUEST_BYTES_MAX)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=context, ssl_handshake_timeout=REQUEST_SECONDS
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(answer.file.open("rb")) if answer.file else None
        size = os.fstat(file.fileno()).st_size if file else len(answer.body)
        kind = "application/octet-stream" if file else "application/json"
        head = (
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {size}\r\nConnection: close\r\n\r\n"
        )
        async with asyncio.timeout(FILE_SECONDS if file else ANSWER_SECONDS):
            writer.write(head.encode() + answer.body)
            while file and (part := await asyncio.to_thread(file.read, FILE_PART_BYTES)):
                writer.write(part)
                await writer.drain()  # so that no more than a part waits for a slow reader
            await writer.drain()
            writer.close()
            with contextlib.suppress(ssl.SSLError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, peer: str, server: bytes) -> Request:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
    head, body = None, b""
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                connection.receive_data(await reader.read(4096))
            case h11.Request():
                head = event
            case h11.Data():
                body += event.data
                if len(body) > REQUEST_BYTES_MAX:
                    raise _TooMuchError(f"the body has more than {REQUEST_BYTES_MAX} bytes")
            case h11.EndOfMessage():
                assert head is not None
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
                return Request(head.method.decode(), head.target.decode("ascii"), headers, body, peer, server)
            case _:
                raise _TooMuchError("no request came")
