"""Lag: seconds since the source was last fully represented by a durable recovery point.

Everything is kept on the monotonic clock, so a wall clock that jumps changes nothing (fault 61). Only the time
between two runs of the agent has to be taken from the wall clock; it is clamped to be never negative.
"""

from __future__ import annotations

from collections import deque

from drengine.model.clock import Clock

WAITING_CUTS_MAX = 4096


class LagMeter:
    """Follows cuts from capture to acknowledgement."""

    def __init__(self, clock: Clock, *, represented_ns: int = 0) -> None:
        """`represented_ns` is the wall clock saved by an earlier run; 0 when there was none."""
        self._clock = clock
        elapsed = max(0.0, (clock.now_ns() - represented_ns) / 1e9) if represented_ns else 0.0
        self._represented_at = clock.monotonic() - elapsed
        self._waiting: deque[tuple[int, float]] = deque(maxlen=WAITING_CUTS_MAX)
        self.has_point = represented_ns != 0

    def cut_sent(self, sequence: int, captured_at: float) -> None:
        """A cut that shows the source at monotonic moment `captured_at` was sent."""
        self._waiting.append((sequence, captured_at))

    def acknowledged(self, sequence: int) -> None:
        """Everything up to `sequence` is durable."""
        while self._waiting and self._waiting[0][0] <= sequence:
            self._represent(self._waiting.popleft()[1])

    def unchanged(self, at: float) -> None:
        """At monotonic moment `at` the newest durable point still equalled the source, and the target is there."""
        self._represent(at)

    def disconnected(self) -> None:
        """What was sent and not acknowledged is forgotten; lag goes on growing."""
        self._waiting.clear()

    @property
    def represented_ns(self) -> int:
        """Wall clock of the moment last represented, to be saved for the next run; 0 if there was never a point."""
        if not self.has_point:
            return 0
        return self._clock.now_ns() - int(self.lag_seconds * 1e9)

    @property
    def lag_seconds(self) -> float:
        """The lag now; never negative. Before the first point: seconds since protection began."""
        return max(0.0, self._clock.monotonic() - self._represented_at)

    def _represent(self, moment: float) -> None:
        self._represented_at = max(self._represented_at, moment) if self.has_point else moment
        self.has_point = True
