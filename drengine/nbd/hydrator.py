"""Serving a hydration on a unix socket while it fills, until told to stop.

    python -m drengine.nbd.hydrator URI COPY SOCKET REPORT

is the process behind a hydrated workload: it says `serving` when clients may connect and keeps its progress in REPORT.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.nbd.errors import HYDRATION_FAILED
from drengine.nbd.hydrating import HydratingExport, HydratingProvider
from drengine.nbd.hydration import Hydration
from drengine.nbd.server import NbdServer
from drengine.process.signals import signalled

log = logging.getLogger("drengine.hydration")

THREADS = 6
GRACE_SECONDS = 5.0
LOOK_SECONDS = 0.2
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


class Progress(msgspec.Struct, frozen=True):
    """How far a hydration is.

    Attributes:
        hydrated_bytes, size_bytes: what is here, and the disk's size.
        given_up: why there is no copy any more; the disk is served from afar then.
    """

    hydrated_bytes: int
    size_bytes: int
    given_up: str = ""


async def serve_until_signalled(
    hydration: Hydration, socket: Path, *, served: Callable[[], None], progress: Callable[[Progress], None]
) -> None:
    """`serve_hydration` until SIGTERM, SIGINT or SIGHUP."""
    await serve_hydration(hydration, socket, signalled(), served=served, progress=progress)


async def serve_hydration(
    hydration: Hydration,
    socket: Path,
    stopping: asyncio.Event,
    *,
    served: Callable[[], None],
    progress: Callable[[Progress], None],
) -> None:
    """Serve at `socket` and fill behind it; at the end what was written is flushed and everything closed.

    Args:
        hydration: an open one; it is closed here.
        socket: where clients connect.
        stopping: ends it when set.
        served: called once when clients may connect.
        progress: called at first, and when there is news, looked for twice a second.

    Raises:
        DrengineError: the socket can't be listened on.
    """
    ended = threading.Event()
    filling = threading.Thread(target=_keep_filled, args=(hydration, ended), name="hydrate-fill")
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hydrate") as pool:
        server = NbdServer(HydratingProvider(HydratingExport(socket.stem, hydration, pool), hydration))
        try:
            await server.start_unix(socket)
            served()
            filling.start()
            told = None
            while not stopping.is_set():
                now = Progress(hydration.hydrated_bytes, hydration.size_bytes, hydration.given_up)
                if now != told:
                    progress(now)
                    told = now
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        finally:
            ended.set()
            await server.close(GRACE_SECONDS)
            hydration.stop_waiting()
            await asyncio.to_thread(_close, hydration, filling)


def _keep_filled(hydration: Hydration, ended: threading.Event) -> None:
    """Fill; while the remote disk does not answer, try again; and again what a failed write has spoiled."""
    while not ended.is_set():
        try:
            if not hydration.complete:
                hydration.fill(ended)
        except (OSError, DrengineError) as error:
            log.warning("hydration waits for the remote disk: %s", error)
        ended.wait(RETRY_SECONDS)


def _close(hydration: Hydration, filling: threading.Thread) -> None:
    if filling.ident is not None:
        filling.join()
    try:
        hydration.flush()
    except (OSError, DrengineError) as error:
        log.warning("the last writes may not be durable: %s", error)
    hydration.close()


def keep_progress(report: Path, now: Progress) -> None:
    """Replace a report of the progress, whole."""
    fresh = report.with_name(report.name + ".new")
    fresh.write_bytes(msgspec.json.encode(now))
    fresh.replace(report)


def read_progress(report: Path) -> Progress | None:
    """What `keep_progress` wrote; None: nothing yet."""
    try:
        return msgspec.json.decode(report.read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return None


def main(uri: str, copy: str, socket: str, report: str) -> int:
    """See the module; an empty COPY means none."""
    try:
        asyncio.run(
            serve_until_signalled(
                open_hydration(uri, Path(copy) if copy else None),
                Path(socket),
                served=lambda: print("serving", flush=True),
                progress=lambda now: keep_progress(Path(report), now),
            )
        )
    except DrengineError as error:
        print(error, file=sys.stderr)
        return error.kind.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
