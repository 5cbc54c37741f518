"""The tap's NBD server in a thread of its own, so that clients never wait for the pipeline's work."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from drengine.nbd.export import Export, Peer
from drengine.nbd.limits import NbdLimits
from drengine.nbd.server import NbdServer
from drengine.nbd.session import ServerStats
from drengine_agent.capture.tap.export import SyncGate, TapExport
from drengine_agent.capture.tap.tracker import Tap

_SYNC_THREADS = 4
_READ_THREADS = 4
_T = TypeVar("_T")


class TapServer:
    """Serves every volume of an open tap by name; the only volume of a tap also by the empty name."""

    def __init__(
        self,
        tap: Tap,
        address: str | Path | tuple[str, int],
        *,
        sync: bool = False,
        sync_fallback_seconds: float | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        tls_required: bool = False,
        allow: Callable[[Peer], bool] | None = None,
        limits: NbdLimits | None = None,
        held: bool = False,
    ) -> None:
        """Prepare it; `start` serves.

        Args:
            tap: already open.
            address: a unix socket's path, or host and port (0 lets the system choose).
            sync: complete writes only when the target has acknowledged them (see SyncGate).
            sync_fallback_seconds: see SyncGate.
            tls, tls_required, allow, limits: see NbdServer.
            held: clients wait until `admit`.
        """
        self._tap = tap
        self.address = address
        self._sync = sync
        self._fallback_seconds = sync_fallback_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="drengine-tap", daemon=True)
        self._executor = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="drengine-tap-sync")
        self._readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="drengine-tap-read")
        self._admitted = asyncio.Event()
        if not held:
            self._admitted.set()
        self._gate = SyncGate(tap, self._loop, sync=sync, fallback_seconds=sync_fallback_seconds)
        self._server = NbdServer(
            _Volumes(tap, self._gate, self._executor, self._readers, self._admitted),
            limits=limits,
            tls=tls,
            tls_required=tls_required,
            allow=allow,
        )

    @property
    def is_admitting(self) -> bool:
        """Whether clients are served, and not held back."""
        return self._admitted.is_set()

    @property
    def protocol_state(self) -> str:
        """See SyncGate.state."""
        return self._gate.state

    @property
    def stats(self) -> ServerStats:
        """The NBD server's counters."""
        return self._server.stats

    def start(self) -> None:
        """Listen and serve; `address` then holds the port that was got.

        Raises:
            DrengineError: NBD_LISTEN.
        """
        self._thread.start()
        try:
            if isinstance(self.address, tuple):
                self.address = self._call(self._server.start_tcp(*self.address))
            else:
                self._call(self._server.start_unix(self.address))
        except BaseException:
            self.stop()
            raise

    def admit(self) -> None:
        """Hold clients back no longer; from any thread."""
        self._loop.call_soon_threadsafe(self._admitted.set)

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Finish what is in flight, end the connections and the thread. The tap stays open."""
        self._end(self._stop(grace_seconds))

    def cut(self) -> None:
        """End the connections at once: who waits for the target's word (SyncGate) never hears that a write is done."""
        self._end(self._server.close(0))

    def _end(self, ending: Coroutine[Any, Any, None]) -> None:
        if not self._thread.is_alive():
            ending.close()
        else:
            self._call(ending)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._executor.shutdown()
        self._readers.shutdown()
        if not self._loop.is_closed():
            self._loop.close()

    async def _stop(self, grace_seconds: float) -> None:
        self._gate.open()
        await self._server.close(grace_seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Volumes:
    """Finds a tap's volumes by name."""

    def __init__(
        self, tap: Tap, gate: SyncGate, executor: Executor, readers: Executor, admitted: asyncio.Event
    ) -> None:
        self._admitted = admitted
        self._exports = {
            volume.name: TapExport(tap, volume, gate, executor, readers) for volume in tap.volumes.values()
        }

    async def names(self, peer: Peer) -> list[str]:
        """See export.ExportProvider.names."""
        return sorted(self._exports)

    async def open(self, name: str, peer: Peer) -> Export:
        """See export.ExportProvider.open; waits until clients are admitted."""
        await self._admitted.wait()
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports[name]
