"""Files as NBD exports, served from a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drengine.nbd.export import ExportProvider
from drengine.nbd.file_export import FileProvider
from drengine.nbd.server import NbdServer


@contextmanager
def served(provider: ExportProvider, socket: Path, name: str = "disk") -> Iterator[str]:
    """The URI of its export `name`."""
    loop, ready, stopping = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = NbdServer(provider)
        await server.start_unix(socket)
        ready.set()
        await stopping.wait()
        await server.close(1.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield f"nbd+unix:///{name}?socket={socket}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


@contextmanager
def file_served(file: Path, socket: Path) -> Iterator[str]:
    """A file as a writable disk."""
    with served(FileProvider({"disk": file}), socket) as uri:
        yield uri
