"""A proxy before PostgreSQL that knows where one message ends, and does something at a chosen one."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

SYNC = b"S"
READY = b"Z"


class Moment(NamedTuple):
    """When something happens: at message `number` (from 1) since the proxy was armed.

    `answered`: after the server has carried it out, its answer being kept back; otherwise before it is told at all.
    """

    number: int
    answered: bool


class Proxy:
    """Listens on loopback and hands messages on, until it is armed and the moment comes.

    Attributes:
        port: where it listens.
        seen: the types of the messages since it was armed.
    """

    def __init__(self, port: int) -> None:
        """`port`: of the server, on loopback."""
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._guard = threading.Lock()
        self._moment: Moment | None = None
        self._act: Callable[[], None] = lambda: None
        self._is_armed = False
        self._happened = threading.Event()
        self.seen: list[bytes] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.close()
        self.cut()

    def arm(self, moment: Moment | None, act: Callable[[], None] = lambda: None) -> None:
        """From now on count; at the moment do `act`, then cut the connection. Without a moment: only count."""
        with self._guard:
            self._moment, self._act, self._is_armed, self.seen = moment, act, True, []
            self._happened.clear()

    def disarm(self) -> None:
        """Hand on what comes."""
        with self._guard:
            self._is_armed = False

    def cut(self) -> None:
        """Cut all connections."""
        with self._guard:
            opened, self._open = self._open, []
        for each in opened:
            _close(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                _close(client)
                continue
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._guard:
                self._open += [client, server]
            session = _Session(self, client, server)
            threading.Thread(target=session.requests, daemon=True).start()
            threading.Thread(target=session.answers, daemon=True).start()

    def judge(self, kind: bytes) -> Moment | None:
        """Count a message; the moment, if it is its."""
        with self._guard:
            if not self._is_armed:
                return None
            self.seen.append(kind)
            if self._moment is None or len(self.seen) != self._moment.number:
                return None
            self._is_armed = False
            return self._moment

    def happen(self) -> None:
        """The moment has come."""
        self._act()
        self._happened.set()

    def has_happened(self) -> bool:
        """Whether it came, and was acted on, in a time that is enough."""
        return self._happened.wait(30)


class _Session:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._is_kept_back = threading.Event()
        self._answered = threading.Event()

    def requests(self) -> None:
        """From the client to the server."""
        with suppress(OSError, EOFError):
            head = _exactly(self._client, 4)
            self._server.sendall(head + _exactly(self._client, struct.unpack("!I", head)[0] - 4))
            while True:
                kind, message = _message(self._client)
                moment = self._proxy.judge(kind)
                if moment and not moment.answered:
                    self._proxy.happen()
                    break
                if moment:
                    self._is_kept_back.set()
                self._server.sendall(message)
                if moment:
                    if kind == SYNC:
                        self._answered.wait(30)
                    self._proxy.happen()
                    break
        self.close()

    def answers(self) -> None:
        """From the server to the client."""
        with suppress(OSError, EOFError):
            while True:
                kind, message = _message(self._server)
                if self._is_kept_back.is_set():
                    if kind == READY:
                        self._answered.set()
                    continue
                self._client.sendall(message)
        self._answered.set()
        if not self._is_kept_back.is_set():
            self.close()

    def close(self) -> None:
        _close(self._client)
        _close(self._server)


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(source, 1)
    length = _exactly(source, 4)
    return kind, kind + length + _exactly(source, struct.unpack("!I", length)[0] - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = source.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
