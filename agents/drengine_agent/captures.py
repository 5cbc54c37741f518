"""Opening a source's volumes with a tracker, and closing them again: the one place that knows which trackers exist."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.nbd.export import Export, Peer
from drengine.nbd.server import NbdServer
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.scan import ScanTracker
from drengine_agent.capture.tap import Tap, TapOptions
from drengine_agent.capture.tap_export import SyncGate, TapExport
from drengine_agent.capture.tracker import Tracker
from drengine_agent.config import AgentConfig
from drengine_agent.state import AgentState, KnownVolume


@dataclass(slots=True)
class Capture:
    """Open volumes and their tracker.

    Attributes:
        request_round: begin a round of scanning now; None for trackers that are live.
        check: look whether the volumes are still what they were.
        details: figures of this tracker for `status` and metrics.
        listening: where clients reach the volumes; empty if they are not served.
    """

    tracker: Tracker
    volumes: Mapping[int, Volume]
    indexes: HashIndexes | None
    check: Callable[[], None]
    details: Callable[[], dict[str, object]]
    request_round: Callable[[], None] | None = None
    server: NbdThread | None = None

    @property
    def geometry(self) -> tuple[VolumeGeometry, ...]:
        """The volumes as they are declared."""
        return tuple(volume.geometry for volume in self.volumes.values())

    def close(self) -> None:
        """Serve nobody any more, stop tracking cleanly, let go of the volumes."""
        if self.server is not None:
            self.server.close()
        self.tracker.close()
        if self.indexes is not None:
            self.indexes.close(clean=True)
        for volume in self.volumes.values():
            volume.close()


def open_capture(config: AgentConfig, state: AgentState, clock: Clock) -> Capture:
    """Open everything; notes the volumes' numbers and identities in `state`.

    Raises:
        DrengineError: a volume is missing, replaced, in use or unsupported; the journal or the address can't be used.
    """
    opened: list[Volume] = []
    try:
        for wanted in config.volumes:
            known = state.volumes.get(wanted.name)
            volume = Volume.open(
                state.number_of(wanted.name),
                wanted.name,
                wanted.path,
                writable=config.tracker == "nbd",
                identity=known.identity if known else "",
            )
            opened.append(volume)
            state.volumes[wanted.name] = KnownVolume(volume.volume, volume.identity)
        volumes = {volume.volume: volume for volume in opened}
        return _open_tap(config, volumes, clock) if config.tracker == "nbd" else _open_scan(config, volumes, clock)
    except BaseException:
        for volume in opened:
            volume.close()
        raise


class VolumeResizedError(Exception):
    """A scanned volume has another size: open everything again and declare it."""


def _open_scan(config: AgentConfig, volumes: dict[int, Volume], clock: Clock) -> Capture:
    indexes = HashIndexes(config.state_directory / "index", [volume.geometry for volume in volumes.values()])
    tracker = ScanTracker(
        volumes,
        indexes,
        clock,
        interval_seconds=config.scan_interval_seconds,
        assume_quiescent=config.assume_quiescent,
    )

    def check() -> None:
        for volume in volumes.values():
            if volume.check() != volume.size_bytes:
                raise VolumeResizedError(volume.name)

    return Capture(tracker, volumes, indexes, check, dict, tracker.request_round)


def _open_tap(config: AgentConfig, volumes: dict[int, Volume], clock: Clock) -> Capture:
    tap = Tap(
        list(volumes.values()), config.state_directory / "tap", TapOptions(journal_bytes=config.journal_bytes), clock
    )
    tap.open([volume.geometry for volume in volumes.values()])
    try:
        server = NbdThread(tap, config)
    except BaseException:
        tap.close()
        raise

    def details() -> dict[str, object]:
        status = tap.status()
        return {
            "journal_used_bytes": status.journal_used_bytes,
            "journal_capacity_bytes": status.journal_capacity_bytes,
            "journaling": status.journaling,
            "captured_bytes": status.captured_bytes,
            "nbd": server.address,
            "nbd_protocol": server.protocol,
        }

    return Capture(tap, volumes, None, tap.check, details, server=server)


class NbdThread:
    """The NBD server of a tap, on a thread and event loop of its own, so that clients don't wait for the pipeline."""

    def __init__(self, tap: Tap, config: AgentConfig) -> None:
        """Start serving.

        Raises:
            DrengineError: the address can't be used.
        """
        self._loop = asyncio.new_event_loop()
        self._syncs = ThreadPoolExecutor(2, thread_name_prefix="tap-sync")
        self._gate = SyncGate(
            tap,
            self._loop,
            sync=config.nbd_protocol == "sync",
            fallback_seconds=config.nbd_sync_fallback_seconds,
        )
        exports = {volume.name: TapExport(tap, volume, self._gate, self._syncs) for volume in tap.volumes.values()}
        self._server = NbdServer(_TapExports(exports))
        self._thread = threading.Thread(target=self._loop.run_forever, name="nbd", daemon=True)
        self._thread.start()
        try:
            self.address = asyncio.run_coroutine_threadsafe(self._listen(config.nbd_listen), self._loop).result()
        except BaseException:
            self._stop()
            raise

    @property
    def protocol(self) -> str:
        """Whether writes wait for the target now: `async`, `sync` or `sync-suspended`."""
        return self._gate.state

    def close(self) -> None:
        """Finish what is in flight and stop."""
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result()
        self._stop()

    async def _listen(self, listen: str) -> str:
        if listen.startswith("unix:"):
            return f"unix:{await self._server.start_unix(Path(listen.removeprefix('unix:')))}"
        host, _, port = listen.rpartition(":")
        address, got = await self._server.start_tcp(host.strip("[]"), int(port))
        return f"{address}:{got}"

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._syncs.shutdown()


class _TapExports:
    """The volumes by name; the only one also without a name."""

    def __init__(self, exports: dict[str, TapExport]) -> None:
        self._exports = exports

    async def names(self) -> list[str]:
        return list(self._exports)

    async def open(self, name: str, peer: Peer) -> Export:
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports[name]


def volume_reason(error: DrengineError) -> str | None:
    """The state's reason for a volume's failure; None if the error is about something else."""
    return {
        "volume-missing": "volume-missing",
        "volume-replaced": "volume-replaced",
        "volume-resized": "geometry-changed",
    }.get(error.kind.id)
