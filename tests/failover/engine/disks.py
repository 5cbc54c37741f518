"""A store's exports on a unix socket, as a target serves them, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from drengine.nbd.server import NbdServer
from drengine.store.store import Store
from drengine.target.exports import StoreExports


@contextmanager
def disks_served(store: Path, socket: Path) -> Iterator[None]:
    """Serve every point and branch there until left."""
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        with Store.open(store) as opened, ThreadPoolExecutor(2) as pool:
            exports = StoreExports(opened, pool)
            server = NbdServer(exports)
            await server.start_unix(socket)
            ready.set()
            await asyncio.to_thread(stop.wait)
            await server.close(1.0)
            await exports.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        stop.set()
        thread.join()
