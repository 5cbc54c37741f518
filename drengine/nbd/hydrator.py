"""Serving a hydration on a unix socket while it fills, until told to stop.

    python -m drengine.nbd.hydrator URI COPY SOCKET REPORT

is the process behind a hydrated workload: it says `serving` when clients may connect and keeps its progress in REPORT.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.nbd.errors import HYDRATION_FAILED
from drengine.nbd.hydration import HydratingExport, HydratingProvider, Hydration
from drengine.nbd.server import NbdServer
from drengine.process.signals import signalled

log = logging.getLogger("drengine.hydration")

THREADS = 6
GRACE_SECONDS = 10.0
LOOK_SECONDS = 0.5
RETRY_SECONDS = 1.0


def open_hydration(uri: str, copy: Path | None) -> Hydration:
    """A hydration of the disk at an NBD URI; without a copy it only passes on.

    Raises:
        DrengineError: HYDRATION_FAILED, or the server's refusal.
    """
    try:
        return Hydration(lambda: NbdClient.of(uri), copy)
    except OSError as error:
        raise DrengineError(HYDRATION_FAILED, f"{uri} to {copy}: {error}") from error


async def serve_until_signalled(
    hydration: Hydration, socket: Path, *, served: Callable[[], None], progress: Callable[[int, int], None]
) -> None:
    """`serve_hydration` until SIGTERM, SIGINT or SIGHUP."""
    await serve_hydration(hydration, socket, signalled(), served=served, progress=progress)


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
        stopping: ends it when set.
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


def keep_progress(report: Path, done: int, total: int) -> None:
    """Replace a report of the progress, whole."""
    fresh = report.with_name(report.name + ".new")
    fresh.write_text(json.dumps({"hydrated_bytes": done, "size_bytes": total}))
    fresh.replace(report)


def main(uri: str, copy: str, socket: str, report: str) -> int:
    """See the module; an empty COPY means none."""
    try:
        asyncio.run(
            serve_until_signalled(
                open_hydration(uri, Path(copy) if copy else None),
                Path(socket),
                served=lambda: print("serving", flush=True),
                progress=lambda done, total: keep_progress(Path(report), done, total),
            )
        )
    except DrengineError as error:
        print(error, file=sys.stderr)
        return error.kind.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
