"""When drills are due."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from drengine.failover.schedule import due_ns


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("schedule", "saved", "now", "due"),
    [
        ("", "2026-11-01", "2026-11-23T03:00:00", None),
        ("0 3 * * *", "2026-11-01", "2026-11-23T02:59:59", None),
        ("0 3 * * *", "2026-11-01", "2026-11-23T03:00:00", "2026-11-23T03:00:00"),
        ("0 3 * * *", "2026-11-01", "2026-11-23T03:09:59", "2026-11-23T03:00:00"),
        ("0 3 * * *", "2026-11-01", "2026-11-23T03:10:01", None),  # nobody was there in time
        ("0 3 * * *", "2026-11-23T03:02:00", "2026-11-23T03:03:00", None),  # saved after the moment
        ("0 3 * * 1", "2026-11-01", "2026-11-23T03:00:30", "2026-11-23T03:00:00"),  # a Monday
        ("0 3 * * 2", "2026-11-01", "2026-11-23T03:00:30", None),
        ("*/5 * * * *", "2026-11-01", "2026-11-23T10:07:00", "2026-11-23T10:05:00"),
    ],
)
def test_a_drill_is_due_at_its_moment_and_for_a_while_after(
    schedule: str, saved: str, now: str, due: str | None
) -> None:
    assert due_ns(schedule, ns(saved), ns(now)) == (ns(due) if due else None)
