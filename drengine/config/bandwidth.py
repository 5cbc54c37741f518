"""How fast replication may go, also by time of day: a pure schedule."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drengine.config.kinds import RATE
from drengine.model.errors import DrengineError, error_kind

BAD_SCHEDULE = error_kind(
    "bad-bandwidth-schedule",
    80,
    "The bandwidth limit can't be read.",
    "Write `unlimited`, `20MiB/s` or `08:00-18:00=20MiB/s, otherwise unlimited`.",
)
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
