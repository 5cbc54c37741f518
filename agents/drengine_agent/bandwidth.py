"""A bandwidth limit with a daily schedule (drengine/config/bandwidth.py), kept by a token bucket that owns no clock.

Invariant: over any span of t seconds the bucket admits at most ``rate * t + burst`` bytes, where `burst` is
`BURST_SECONDS` of the rate; one oversized item goes through and is paid for afterwards (debt), never lost.
"""

from __future__ import annotations

from datetime import datetime

from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.clock import Clock

BURST_SECONDS = 0.1
LOOK_SECONDS = 0.2
"""Those who wait look so often whether another limit holds by now."""


class TokenBucket:
    """Tells how long to wait before sending; the caller sleeps."""

    def __init__(self, schedule: BandwidthSchedule, clock: Clock) -> None:
        self._schedule = schedule
        self._clock = clock
        self._rate = self._rate_now()
        self._tokens = (self._rate or 0.0) * BURST_SECONDS
        self._updated = clock.monotonic()

    def set_schedule(self, schedule: BandwidthSchedule) -> None:
        """Take a new schedule from now on."""
        self._schedule = schedule

    def reserve(self, length: int) -> float:
        """Count `length` bytes as sent; return the seconds to wait before the next `reserve`."""
        now = self._clock.monotonic()
        rate = self._rate_now()
        if rate is None:
            self._rate, self._tokens, self._updated = None, 0.0, now
            return 0.0
        if self._rate is None or self._tokens > rate * BURST_SECONDS:
            self._tokens = rate * BURST_SECONDS if self._rate is None else min(self._tokens, rate * BURST_SECONDS)
        refill = (now - self._updated) * min(rate, self._rate or rate)
        self._rate, self._updated = rate, now
        self._tokens = min(self._tokens + refill, rate * BURST_SECONDS) - length
        return max(0.0, -self._tokens / rate)

    async def wait(self, seconds: float) -> None:
        """Wait as `reserve` said, or until a new limit, or another part of the day, makes it shorter."""
        while seconds > 0:
            await self._clock.sleep(min(seconds, LOOK_SECONDS))
            seconds = self.reserve(0)

    @property
    def limit_bytes_per_second(self) -> float | None:
        """The limit that holds now; None when there is none."""
        return self._rate_now()

    def _rate_now(self) -> float | None:
        local = datetime.fromtimestamp(self._clock.now_ns() // 10**9).astimezone()
        return self._schedule.rate_at(local.hour * 60 + local.minute)
