"""Capture by serving the volumes over NBD."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from drengine_agent.capture.backing import Volume
from drengine_agent.capture.capture import Capture, Opening
from drengine_agent.capture.tap.figures import TapFigures
from drengine_agent.capture.tap.server import TapServer
from drengine_agent.capture.tap.tracker import Tap, TapOptions
from drengine_agent.config import NbdOptions

_SYNC_GATHER_SECONDS = 0.001
"""With protocol `sync` each write waits until it was shipped."""


class TapCapture(Capture):
    """Tracker `nbd`."""

    writable = True
    serves = True
    idle_seconds = 1.0  # it calls; by the clock it only hands out again what could not be read
    figures_class = TapFigures

    def __init__(self, tap: Tap, volumes: Mapping[int, Volume], options: NbdOptions) -> None:
        super().__init__(tap, volumes)
        self._tap = tap
        self._options = options
        self.call_on_change = tap.call_on_change
        if options.protocol == "sync":
            self.gather_seconds = _SYNC_GATHER_SECONDS
        self.server: TapServer | None = None
        """What serves the volumes now."""

    @classmethod
    def open(cls, opening: Opening) -> Self:
        """See Capture.

        Raises:
            DrengineError: VOLUME_REPLACED, JOURNAL_UNUSABLE.
        """
        config, volumes = opening.config, opening.volumes
        options = TapOptions(journal_bytes=config.nbd.journal)
        tap = Tap(list(volumes.values()), config.state_directory / "tap", options, opening.clock)
        tap.open([volume.geometry for volume in volumes.values()])
        return cls(tap, volumes, config.nbd)

    def check(self) -> None:
        """See Capture; a size that changed while the volume was served is an error (VOLUME_RESIZED)."""
        self._tap.check()

    def figures(self) -> TapFigures:
        """See Capture."""
        status, server = self._tap.status(), self.server
        return TapFigures(
            journal_used_bytes=status.journal_used_bytes,
            journal_capacity_bytes=status.journal_capacity_bytes,
            journaling=status.journaling,
            captured_bytes=status.captured_bytes,
            nbd=_shown(server.address) if server else "",
            nbd_protocol=server.protocol_state if server else "",
        )

    @property
    def is_serving(self) -> bool:
        """See Capture."""
        return self.server is not None and self.server.is_admitting

    def serve(self, *, held: bool = False) -> None:
        """See Capture."""
        if self.server is not None:
            return
        options = self._options
        server = TapServer(
            self._tap,
            options.listen.path or (options.listen.host, options.listen.port),
            sync=options.protocol == "sync",
            sync_fallback_seconds=options.sync_fallback,
            held=held,
        )
        server.start()
        self.server = server

    def admit(self) -> None:
        """See Capture."""
        if self.server is not None:
            self.server.admit()

    def stop_serving(self, *, cut: bool) -> None:
        """See Capture."""
        server, self.server = self.server, None
        if server is not None:
            if cut:
                server.cut()
            else:
                server.stop()


def _shown(address: str | Path | tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else f"unix:{address}"
