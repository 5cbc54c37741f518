"""A bandwidth limit with a daily schedule: a pure schedule, and a token bucket that owns no clock.

Invariant: over any span of t seconds the bucket admits at most ``rate * t + burst`` bytes, where `burst` is
`BURST_SECONDS` of the rate; one oversized item goes through and is paid for afterwards (debt), never lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from drengine.config import RATE
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine_agent.errors import BAD_SCHEDULE

BURST_SECONDS = 0.1
LOOK_SECONDS = 0.2
"""Those who wait look so often whether another limit holds by now."""
_SPAN = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Span:
    """A part of each day and its limit. `end_minute` below or equal to `start_minute` goes past midnight."""

    start_minute: int
    end_minute: int
    bytes_per_second: float | None

    def holds(self, minute: int) -> bool:
        """Whether the minute of the day lies in it."""
        if self.start_minute < self.end_minute:
            return self.start_minute <= minute < self.end_minute
        return minute >= self.start_minute or minute < self.end_minute


@dataclass(frozen=True, slots=True)
class BandwidthSchedule:
    """Which limit holds when, by the host's local time. The first span that holds the minute wins."""

    spans: tuple[Span, ...] = ()
    otherwise: float | None = None

    def rate_at(self, minute: int) -> float | None:
        """Bytes per second allowed at this minute of the day; None is unlimited."""
        return next((span.bytes_per_second for span in self.spans if span.holds(minute)), self.otherwise)

    @staticmethod
    def parse(text: str) -> BandwidthSchedule:
        """Read ``unlimited``, ``20MiB/s`` or ``08:00-18:00=20MiB/s, otherwise unlimited``.

        Raises:
            DrengineError: BAD_SCHEDULE, naming the part that is wrong.
        """
        spans: list[Span] = []
        otherwise: float | None = None
        parts = [part.strip() for part in text.split(",")]
        for position, part in enumerate(parts):
            left, equals, right = part.partition("=")
            if equals:
                spans.append(Span(*_minutes(left.strip()), _rate(right)))
            elif position == len(parts) - 1:
                otherwise = _rate(part.removeprefix("otherwise"))
            else:
                raise DrengineError(BAD_SCHEDULE, f"{part!r}: only the last part may stand without a time span")
        return BandwidthSchedule(tuple(spans), otherwise)


def _minutes(text: str) -> tuple[int, int]:
    match = _SPAN.fullmatch(text)
    if not match:
        raise DrengineError(BAD_SCHEDULE, f"{text!r} is not a time span such as 08:00-18:00")
    start_hour, start, end_hour, end = map(int, match.groups())
    if start > 59 or end > 59 or start_hour > 23 or end_hour * 60 + end > DAY_MINUTES:
        raise DrengineError(BAD_SCHEDULE, f"{text!r} is not a time span inside a day")
    return start_hour * 60 + start, end_hour * 60 + end


def _rate(text: str) -> float | None:
    text = text.strip()
    if text.lower() == "unlimited":
        return None
    try:
        rate = float(RATE.parse(text))
    except ValueError as error:
        raise DrengineError(BAD_SCHEDULE, f"{text!r} is not a rate such as 20MiB/s or unlimited") from error
    if rate < 1:
        raise DrengineError(BAD_SCHEDULE, f"{text!r} would stop replication; pause it instead")
    return rate


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
