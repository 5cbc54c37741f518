"""How much a freeze would have to copy: what is marked, or what file systems have taken in and would write out then.

The page cache does not say how much of it belongs to which disk. So it is estimated from the rate at which blocks were
marked: since the last cut, for settling itself marks many at once; or lately, for a burst may be over.
"""

from __future__ import annotations

import math

from drengine.model.clock import Clock

AVERAGE_SECONDS_MIN = 1.0
RECENT_SECONDS = 2.0
SETTLED_SECONDS = 5.0
"""For so long after file systems wrote out what they held, a freeze finds little left."""
FRESH_SECONDS = 0.5
"""For so long next to nothing is left: what a freeze has to write out takes more of its time than reading it does."""


class Arrivals:
    """Changes as they come, and when file systems were asked to write out. For one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._bytes = 0
        self._recent = 0.0
        self._flipped_at = self._settled_at = float("-inf")

    @property
    def is_settled(self) -> bool:
        """File systems have written out what they held, a moment ago."""
        return self._clock.monotonic() - self._settled_at <= SETTLED_SECONDS

    @property
    def is_fresh(self) -> bool:
        """They have done so just now."""
        return self._clock.monotonic() - self._settled_at <= FRESH_SECONDS

    def settled(self, begun_at: float) -> None:
        """They have written out what they held at that moment; -inf: what they hold is not known any more."""
        self._settled_at = begun_at

    def flipped(self, length: int) -> None:
        """So many bytes had been marked since the last flip."""
        now = self._clock.monotonic()
        seconds = max(now - self._flipped_at, 1e-3)
        self._bytes += length
        self._recent += -math.expm1(-seconds / RECENT_SECONDS) * (length / seconds - self._recent)
        self._flipped_at = now

    def cut(self) -> None:
        """There was a cut: nothing is left."""
        self._bytes, self._since = 0, self._clock.monotonic()

    def left_bytes(self, marked_bytes: int) -> int:
        """How much a freeze would have to copy, while so much is marked."""
        now = self._clock.monotonic()
        average = (self._bytes + marked_bytes) / max(now - self._since, AVERAGE_SECONDS_MIN)
        unwritten = min(average, self._recent) * (now - max(self._settled_at, self._since))
        return max(marked_bytes, int(unwritten))
