"""Which compression to use: a pure controller that spends CPU when the network is slow and saves it when it isn't.

The sender is either *starved* (it waits for the workers to produce a batch: CPU is the bottleneck) or *blocked*
(it waits for credit, the bandwidth limit or the socket: the network or the target is). Both are measured per window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVELS: tuple[int | None, ...] = (None, -5, -1, 1, 3)
"""From no CPU to most CPU; None sends as it is."""
ADAPTIVE: tuple[int, ...] = (-5, -1, 1, 3)
"""Without sending raw: the replica is stored as it was sent, so saving the last CPU here would cost space there."""
WINDOW_SECONDS = 0.25
_DOMINANT = 0.5


def levels_of(option: str) -> tuple[int | None, ...]:
    """The levels that the option `compression` allows: `adaptive`, `adaptive-raw`, `none` or one level."""
    fixed: dict[str, tuple[int | None, ...]] = {"adaptive": ADAPTIVE, "adaptive-raw": LEVELS, "none": (None,)}
    return fixed[option] if option in fixed else (int(option),)


@dataclass(frozen=True, slots=True)
class Window:
    """What the sender saw during one window, in seconds."""

    elapsed: float
    starved: float
    blocked: float


def next_level(levels: Sequence[int | None], current: int, window: Window) -> int:
    """The index into `levels` to use after this window.

    One step at a time. Blocked for most of the window: one more CPU. Starved for most of it: one less. In
    between the two are in balance and nothing changes, so the level doesn't swing.
    """
    if window.elapsed <= 0 or window.starved + window.blocked < window.elapsed * _DOMINANT:
        return current
    if window.blocked > window.elapsed * _DOMINANT:
        return min(current + 1, len(levels) - 1)
    if window.starved > window.elapsed * _DOMINANT:
        return max(current - 1, 0)
    return current


class CompressionController:
    """Accumulates the sender's waits and keeps the level. One thread writes, workers read `level`."""

    def __init__(self, levels: Sequence[int | None] = LEVELS, *, start: int = 0) -> None:
        self._levels = tuple(levels)
        self._current = min(start, len(self._levels) - 1)
        self._elapsed = self._starved = self._blocked = 0.0

    @property
    def level(self) -> int | None:
        """The zstd level to use now; None: don't compress."""
        return self._levels[self._current]

    def observe(self, *, elapsed: float, starved: float, blocked: float) -> None:
        """Count one send: how long since the last, how long without a batch, how long held up."""
        self._elapsed += elapsed
        self._starved += starved
        self._blocked += blocked
        if self._elapsed >= WINDOW_SECONDS:
            window = Window(self._elapsed, self._starved, self._blocked)
            self._current = next_level(self._levels, self._current, window)
            self._elapsed = self._starved = self._blocked = 0.0
