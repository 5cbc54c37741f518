"""Serving a hydration on a unix socket while it fills, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drengine.model.errors import DrengineError
from drengine.nbd.hydration import HydratingExport, HydratingProvider, Hydration
from drengine.nbd.server import NbdServer

log = logging.getLogger("drengine.hydration")

THREADS = 6
GRACE_SECONDS = 10.0
LOOK_SECONDS = 0.5
RETRY_SECONDS = 1.0


async def serve_hydration(
    hydration: Hydration,
    socket: Path,
    stopping: asyncio.Event,
    *,
    served: Callable[[], None],
    progress: Callable[[int, int], None],
) -> None:
    """Serve at `socket` and fill behind it; at the end what was written is flushed and everything closed.

    Args:
        hydration: an open one; it is closed here.
        socket: where clients connect.
        stopping: set by whoever has enough.
        served: called once when clients may connect.
        progress: called twice a second with bytes that are here and bytes in all, until it is complete.

    Raises:
        DrengineError: the socket can't be listened on.
    """
    ended = threading.Event()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hydrate") as pool:
        server = NbdServer(HydratingProvider(HydratingExport(socket.stem, hydration, pool)))
        try:
            await server.start_unix(socket)
            served()
            filling = asyncio.get_running_loop().run_in_executor(pool, _fill, hydration, ended)
            while not (stopping.is_set() or filling.done()):
                progress(hydration.hydrated_bytes, hydration.size_bytes)
                waiting = asyncio.ensure_future(stopping.wait())
                either: list[asyncio.Future[Any]] = [filling, waiting]
                await asyncio.wait(either, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            progress(hydration.hydrated_bytes, hydration.size_bytes)
            await stopping.wait()
        finally:
            ended.set()
            await server.close(GRACE_SECONDS)
            await asyncio.to_thread(_close, hydration)


def _fill(hydration: Hydration, ended: threading.Event) -> None:
    """Fill; while the remote disk does not answer, try again."""
    while not (ended.is_set() or hydration.complete):
        try:
            hydration.fill(ended)
        except (OSError, DrengineError) as error:
            log.warning("hydration waits for the remote disk: %s", error)
            ended.wait(RETRY_SECONDS)


def _close(hydration: Hydration) -> None:
    try:
        hydration.flush()
    except (OSError, DrengineError) as error:
        log.warning("the last writes may not be durable: %s", error)
    hydration.close()
