"""Capture by scanning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from drengine_agent.capture.backing import Volume
from drengine_agent.capture.capture import Capture, Opening
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.scan.tracker import ScanTracker


class ScanCapture(Capture):
    """Tracker `scan`."""

    def __init__(self, tracker: ScanTracker, volumes: Mapping[int, Volume], indexes: HashIndexes) -> None:
        super().__init__(tracker, volumes)
        self._scan = tracker
        self.indexes = self._indexes = indexes

    @classmethod
    def open(cls, opening: Opening) -> Self:
        config, volumes = opening.config, opening.volumes
        indexes = HashIndexes(config.state_directory / "index", [volume.geometry for volume in volumes.values()])
        tracker = ScanTracker(
            volumes,
            indexes,
            opening.clock,
            interval_seconds=config.scan.interval,
            assume_quiescent=config.scan.assume_quiescent,
        )
        return cls(tracker, volumes, indexes)

    def hurry(self) -> None:
        """See Capture: the next round begins at once."""
        self._scan.request_round()

    def let_go(self) -> None:
        self._indexes.close(clean=True)
