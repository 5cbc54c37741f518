"""When a runbook's drills are due: cron expressions in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from croniter import croniter

LATE_SECONDS_MAX = 600.0
"""A moment that nobody was there for is let go after so long: a drill at an odd hour helps nobody."""


def due_ns(schedule: str, since_ns: int, now_ns: int) -> int | None:
    """The newest moment at which it is due and not too late, in nanoseconds since the epoch; None: there is none.

    Args:
        schedule: a cron expression of five fields, or empty: never.
        since_ns: moments before this do not count, e.g. when the runbook was saved.
        now_ns: wall clock.
    """
    if not schedule:
        return None
    now = datetime.fromtimestamp(now_ns // 1_000_000_000 + 1, UTC)  # a moment that is just now counts
    moment = int(croniter(schedule, now).get_prev(float)) * 1_000_000_000
    return moment if since_ns <= moment and now_ns - moment <= LATE_SECONDS_MAX * 1e9 else None
