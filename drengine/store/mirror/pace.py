"""How fast a mirror may copy, and that it ends soon when it is told to."""

from __future__ import annotations

import threading

from drengine.model.clock import Clock

_BURST_SECONDS = 0.25
"""What was not used is kept for no longer than this."""


class Stopped(Exception):
    """The mirror is told to end. What was copied and not committed is gone on with the next time."""


class Pace:
    """Lets bytes pass at a bounded rate.

    Attributes:
        bytes_per_second: the bound; 0: none. It may be changed at any time.
    """

    def __init__(self, clock: Clock, bytes_per_second: int = 0, stop: threading.Event | None = None) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._stop = stop or threading.Event()
        self._free_at = clock.monotonic()

    def passed(self, count: int) -> None:
        """So many bytes are about to pass: wait until they may.

        Raises:
            Stopped: the mirror is to end.
        """
        if self.bytes_per_second:
            now = self._clock.monotonic()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + count / self.bytes_per_second
            if self._free_at > now:
                self._stop.wait(self._free_at - now)
        if self._stop.is_set():
            raise Stopped
