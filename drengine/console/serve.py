"""Serving the REST API beside the orchestrator, in its loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from drengine.config import Address
from drengine.console.api import make_app
from drengine.console.errors import BAD_REQUEST
from drengine.failover.daemon import Orchestrator
from drengine.model.errors import DrengineError

CONNECTIONS_MAX = 64
END_SECONDS = 3
log = logging.getLogger("drengine.console")


@asynccontextmanager
async def serve_rest(orchestrator: Orchestrator) -> AsyncIterator[int]:
    """Serve at the configured address until left; gives the port.

    Raises:
        DrengineError: BAD_REQUEST when it can't listen there.
    """
    listening = _listen(orchestrator.engine.config.rest)
    config = uvicorn.Config(
        make_app(orchestrator),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=CONNECTIONS_MAX,
        backlog=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=64 << 10,
        timeout_graceful_shutdown=END_SECONDS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    port: int = listening.getsockname()[1]
    log.info("REST is served", extra={"port": port})
    try:
        yield port
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listening.close()


class _Server(uvicorn.Server):
    """Leaves signals to the daemon."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield


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
