"""Disks in files, served over NBD from a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drengine.failover.drivers.driver import Disk
from drengine.nbd.file_export import FileProvider
from drengine.nbd.server import NbdServer


@contextmanager
def served(socket: Path, files: dict[str, Path]) -> Iterator[tuple[Disk, ...]]:
    """The disks, as a launch is given them."""
    loop, ready, stopping = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = NbdServer(FileProvider(files))
        await server.start_unix(socket)
        ready.set()
        await stopping.wait()
        await server.close(1.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield tuple(
            Disk(name, file.stat().st_size, f"nbd+unix:///{name}?socket={socket}") for name, file in files.items()
        )
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
