"""Serving the REST API beside the orchestrator, in its loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from drengine.config import Address
from drengine.console.api import make_app
from drengine.console.errors import BAD_REQUEST
from drengine.console.sockets import PEER, listen_unix, peer_of
from drengine.failover.daemon import Orchestrator
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.passwords import network_of
from drengine.telemetry.accepting import accepted
from drengine.transport.credentials import Credentials
from drengine.transport.endpoints import closing_on_error
from drengine.transport.files import TlsFiles
from drengine.transport.tls import public_context

CONNECTIONS_MAX = 64
"""Connections that are open; a new one beyond takes the place of the one that is idle for longest."""
PEER_CONNECTIONS_MAX = CONNECTIONS_MAX * 3 // 4
"""Of one address, or one user of this host: a quarter is for others, whatever one does. One request at a time is
answered on each."""
STRANGERS_MAX = 64
"""Connections in the TLS handshake; one beyond takes the place of the oldest one of the address that has most."""
HANDSHAKE_SECONDS = 10.0
END_SECONDS = 3
KEEP_SECONDS = 60
"""An idle connection is kept so long; it makes way for another one before."""
log = logging.getLogger("drengine.console")


@asynccontextmanager
async def serve_rest(orchestrator: Orchestrator) -> AsyncIterator[int]:
    """Serve at the configured address until left; gives the port.

    Raises:
        DrengineError: BAD_REQUEST when it can't listen there.
    """
    options = orchestrator.engine.config
    listening = [_listen(options.rest), listen_unix(options.socket_path, CONNECTIONS_MAX)]
    files = options.rest_tls.files("[rest_tls]")
    app = make_app(orchestrator)
    # One server for each: they share no connections, and TLS is for the network.
    servers = [_server(app, _tls(files, orchestrator) if files else None), _server(app, None)]
    pairs = zip(servers, listening, strict=True)
    serving = [asyncio.create_task(server.serve([each])) for server, each in pairs]
    port: int = listening[0].getsockname()[1]
    log.info("REST is served", extra={"port": port, "socket": str(options.socket_path)})
    try:
        yield port
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)
        for each in listening:
            each.close()
        options.socket_path.unlink(missing_ok=True)


def _server(app: FastAPI, context: ssl.SSLContext | None) -> _Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is what the kernel says: a header said that it was root
        lifespan="off",
        ws="none",
        http=_Connection,
        limit_concurrency=2 * CONNECTIONS_MAX,  # those that are being closed count as well
        backlog=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=64 << 10,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    config.load()
    config.ssl = context
    return _Server(config)


def _tls(files: TlsFiles, orchestrator: Orchestrator) -> ssl.SSLContext:
    """A context that looks for renewed files at each handshake.

    Raises:
        DrengineError: BAD_TLS_FILES.
    """
    credentials = Credentials(files, public_context, role="rest", clock=orchestrator.engine.site.clock)
    orchestrator.credentials.append(credentials)

    def choose(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        connection.context = credentials.context()

    chosen = public_context(files)
    chosen.sni_callback = choose
    return chosen


class _Connection(H11Protocol):
    """Whoever opens connections and says nothing keeps nobody out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room: of a peer that has its share, by closing its own; otherwise, the idle one used least recently."""
        living = [each for each in self.connections if isinstance(each, _Connection) and each.is_living]
        self.used_at = time.monotonic()
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            self.client, self.server = (peer_of(connection), 0), (PEER, 0)
        self.peer = network_of(self.client[0]) if self.client else ""
        own = [each for each in living if each.peer == self.peer]
        idle = [each for each in living if each.is_idle]
        if len(own) >= PEER_CONNECTIONS_MAX:
            min(own, key=lambda each: (not each.is_idle, each.used_at)).transport.abort()
        elif len(living) >= CONNECTIONS_MAX and idle:
            min(idle, key=lambda each: each.used_at).transport.abort()  # waits for no answer to TLS's goodbye

    def data_received(self, data: bytes) -> None:
        """Bytes alone are no use: what counts is a request that is being answered."""
        super().data_received(data)
        if not self.is_idle:
            self.used_at = time.monotonic()

    @property
    def is_living(self) -> bool:
        """It is not being closed."""
        return not self.transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """No request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete


class _Server(uvicorn.Server):
    """Leaves signals to the daemon. With TLS it accepts by itself: asyncio bounds no handshakes."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._accepting: list[asyncio.Task[None]] = []
        self._strangers: dict[asyncio.Task[None], str] = {}

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        own = sockets or [] if self.config.ssl else []
        await super().startup([each for each in sockets or [] if each not in own])
        self._accepting = [asyncio.create_task(self._accept(each)) for each in own]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and end what is open."""
        for task in (*self._accepting, *self._strangers):
            task.cancel()
        await asyncio.gather(*self._accepting, *self._strangers, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listening: socket.socket) -> None:
        async for sock, peer in accepted(listening, SystemClock()):
            if len(self._strangers) >= STRANGERS_MAX:
                counts = Counter(self._strangers.values())
                oldest = max(self._strangers, key=lambda task: counts[self._strangers[task]])
                del self._strangers[oldest]  # at once: it ends only when this loop has a rest
                oldest.cancel()
            task = asyncio.create_task(self._open(sock))
            self._strangers[task] = network_of(peer)
            task.add_done_callback(lambda task: self._strangers.pop(task, None))

    async def _open(self, sock: socket.socket) -> None:
        """TLS, and then it is a connection like others."""
        with contextlib.suppress(OSError), closing_on_error(sock):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self.config, self.server_state, self.lifespan.state),
                sock,
                ssl=self.config.ssl,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(CONNECTIONS_MAX)
    except OSError as error:
        listening.close()
        told = f"REST can't listen on {address}: {error.strerror or error}"
        raise DrengineError(BAD_REQUEST, told, hint="Choose another `rest` address.") from error
    return listening
