"""A way to capture that is none of the product's: the one who writes a volume notes what was changed.

Beside the volume lies a file of notes, one line ``OFFSET LENGTH`` for each change, appended once the change is on the
volume. It is known to the agent by an entry point alone (test_plugged.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from drengine.config import SIZE, option, parse
from drengine.model.clock import Clock
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.capture import Capture, Opening
from drengine_agent.capture.figures import Figures, counter, gauge
from drengine_agent.capture.tracker import Abilities, Changes, Range


def notes_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.notes")


@dataclass(frozen=True, kw_only=True)
class NotedFigures(Figures):
    notes_read: int = counter("agent_notes_read_total", "Notes of changes that were read.")
    noted_bytes: int = gauge("agent_noted_bytes", "Bytes noted and not durable.")
    sizes: Mapping[str, int] = counter("agent_notes_by_size_total", "Notes, by size.", by=("size", ("small", "large")))
    hurries: int


@dataclass(frozen=True)
class NotedOptions:
    large: int = option(SIZE, default=4096, help="Notes of more are large.")


class NotedTracker:
    """Counts notes: a mark's position is how many were handed out. Whoever knows another epoch is compared with."""

    abilities = Abilities("noted", ordered=False, live=True, point_kinds=(PointKind.QUIET,))

    def __init__(self, volumes: Mapping[int, Volume], clock: Clock) -> None:
        self._volumes = volumes
        self._clock = clock
        self._mark = Mark(os.urandom(16), 0)
        self._doubt = "untracked"
        self.seen: list[Range] = []
        self.durable = 0

    def open(self, volumes: Sequence[VolumeGeometry]) -> None:
        """See Tracker."""

    def changes(self, since: Mark, *, bytes_max: int) -> Changes:
        now_ns = self._clock.now_ns()
        self.seen = [note for volume in self._volumes.values() for note in _notes(volume)]
        mark = Mark(self._mark.epoch, len(self.seen))
        if since.epoch != mark.epoch:
            return Changes(mark, rescan_reason=self._doubt, more=True)
        self._doubt = "none"
        if since == mark:
            return Changes(mark, cut_ok=True, cut_kind=PointKind.QUIET, cut_time_ns=now_ns)
        return Changes(mark, ranges=self.seen[since.position :], more=True)

    def acknowledge(self, mark: Mark) -> None:
        if mark.epoch == self._mark.epoch:
            self.durable = mark.position

    def mark_dirty(self, ranges: Sequence[Range], *, reason: str = "read-error") -> None:
        self.request_rescan(reason)

    def request_rescan(self, reason: str) -> None:
        self._mark, self._doubt = Mark(os.urandom(16), 0), reason

    @property
    def reason(self) -> str:
        return self._doubt

    def backlog_bytes(self) -> int:
        return sum(each.length for each in self.seen[self.durable :])

    def behind_since_ns(self) -> int:
        return self._clock.now_ns() if self.backlog_bytes() else 0

    def close(self) -> None:
        """See Tracker."""


def _notes(volume: Volume) -> list[Range]:
    lines = notes_of(volume.path).read_text().splitlines()
    return [Range(volume.volume, *map(int, line.split())) for line in lines]


class NotedCapture(Capture):
    """Tracker `noted`."""

    figures_class = NotedFigures
    options_class = NotedOptions

    def __init__(self, tracker: NotedTracker, volumes: Mapping[int, Volume], options: NotedOptions) -> None:
        super().__init__(tracker, volumes)
        self._options = options
        self._noted = tracker
        self._hurries = 0

    @classmethod
    def open(cls, opening: Opening) -> Self:
        options = parse(NotedOptions, opening.config.tracker_options)
        return cls(NotedTracker(opening.volumes, opening.clock), opening.volumes, options)

    def hurry(self) -> None:
        self._hurries += 1

    def figures(self) -> NotedFigures:
        notes = self._noted.seen
        large = sum(note.length > self._options.large for note in notes)
        return NotedFigures(
            notes_read=len(notes),
            noted_bytes=self._noted.backlog_bytes(),
            sizes={"large": large, "small": len(notes) - large} if notes else {},
            hurries=self._hurries,
        )
