"""How much a freeze would have to copy, from what was marked and when."""

from __future__ import annotations

import pytest

from drengine_agent.cuts.arrivals import SETTLED_SECONDS, Arrivals
from tests.clock import ManualClock

MIB = 1 << 20


def steady(clock: ManualClock, arrivals: Arrivals, mib_per_second: float, seconds: int) -> None:
    for _ in range(seconds * 2):
        clock.advance(0.5)
        arrivals.flipped(int(mib_per_second * MIB / 2))


def test_it_grows_from_the_moment_of_settling() -> None:
    clock = ManualClock()
    arrivals = Arrivals(clock)
    steady(clock, arrivals, 100, 10)
    assert not arrivals.is_settled
    arrivals.settled(clock.monotonic())
    assert arrivals.left_bytes(0) == 0
    clock.advance(0.5)
    assert arrivals.is_settled
    assert arrivals.left_bytes(0) == pytest.approx(50 * MIB, rel=0.1)
    clock.advance(SETTLED_SECONDS)
    assert not arrivals.is_settled


def test_what_is_marked_is_left_in_any_case() -> None:
    assert Arrivals(ManualClock()).left_bytes(7 * MIB) == 7 * MIB


def test_a_burst_that_is_over_counts_for_some_seconds_only() -> None:
    clock = ManualClock()
    arrivals = Arrivals(clock)
    steady(clock, arrivals, 1000, 1)
    steady(clock, arrivals, 8, 10)
    arrivals.settled(clock.monotonic())
    clock.advance(1.0)
    assert arrivals.left_bytes(0) < 16 * MIB


def test_settling_marks_much_at_once_and_that_is_no_rate() -> None:
    clock = ManualClock()
    arrivals = Arrivals(clock)
    clock.advance(10.0)
    arrivals.settled(clock.monotonic())
    arrivals.flipped(500 * MIB)  # of ten seconds
    clock.advance(0.5)
    arrivals.flipped(1 * MIB)
    assert arrivals.left_bytes(0) < 50 * MIB


def test_a_cut_begins_anew() -> None:
    clock = ManualClock()
    arrivals = Arrivals(clock)
    steady(clock, arrivals, 100, 10)
    arrivals.cut()
    assert arrivals.left_bytes(0) == 0
