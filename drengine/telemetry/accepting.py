"""Connections that cannot be accepted, because descriptors or memory are used up.

The listening socket stays readable meanwhile, so the accepting side has to wait before it tries again, and must not
write a line each time. Clients wait in the socket's queue.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from drengine.model.clock import Clock

log = logging.getLogger("drengine.telemetry")

RETRY_SECONDS = 1.0
"""How long to wait before accepting again; asyncio's own servers do, too."""
REPEAT_SECONDS = 60.0
_OF_ASYNCIO = "socket.accept() out of system resource"


class AcceptFailures:
    """One line in the log when it begins, and one a minute while it lasts. For one thread or loop."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._logged_at: float | None = None

    def note(self, error: object) -> None:
        """A connection could not be accepted."""
        now = self._monotonic()
        if self._logged_at is None or now - self._logged_at >= REPEAT_SECONDS:
            self._logged_at = now
            log.warning("connections can't be accepted, trying again each %g s: %s", RETRY_SECONDS, error)


async def accepted(listening: socket.socket, clock: Clock) -> AsyncIterator[tuple[socket.socket, str]]:
    """Each connection that comes, with its peer's address, until the caller is cancelled."""
    loop, failures = asyncio.get_running_loop(), AcceptFailures(clock.monotonic)
    listening.setblocking(False)
    while True:
        try:
            sock, address = await loop.sock_accept(listening)
        except OSError as error:
            failures.note(error)
            await clock.sleep(RETRY_SECONDS)
        else:
            yield sock, str(address[0])


def quiet_accept_failures(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's own servers (`loop.create_server`) tell failed accepts as `AcceptFailures` does.

    Python 3.11 and 3.12 tell one failure as often as the socket's backlog is long, each with a traceback.
    """
    failures = AcceptFailures()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") == _OF_ASYNCIO:
            failures.note(context.get("exception"))
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
