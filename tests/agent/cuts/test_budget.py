"""How much may be left when a freeze begins follows from what reading took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine_agent.cuts.budget import AVAILABLE_SHARE, BYTES_MIN, GIVE_UP_SHARE, FreezeBudget

MIB = 1 << 20


def budget(*, longest: float = 1.0, memory: int = 256 * MIB, available: int = 8 << 30) -> FreezeBudget:
    made = FreezeBudget(longest_seconds=longest, memory_bytes=memory, available=lambda: available)
    for _ in range(10):
        made.held()  # no caution any more
    return made


def test_the_first_freezes_are_short_ones() -> None:
    made = FreezeBudget(longest_seconds=1.0, memory_bytes=256 * MIB, available=lambda: 8 << 30)
    assert made.bytes_max(100 * MIB) == 25 * MIB
    assert made.bytes_max(100 * MIB, late=True) == 50 * MIB
    made.held()
    assert made.bytes_max(100 * MIB) == 37.5 * MIB


def test_before_any_freeze_it_follows_from_reading_without_one() -> None:
    assert budget().bytes_max(100 * MIB) == 50 * MIB
    assert budget(longest=0.1).bytes_max(100 * MIB) == 5 * MIB


def test_a_slow_disk_leaves_little_and_a_fast_one_as_much_as_memory_bears() -> None:
    slow, fast = budget(), budget()
    assert slow.bytes_max(4 * MIB) == 2 * MIB
    assert fast.bytes_max(2000 * MIB) == 256 * MIB


def test_a_freeze_that_read_faster_lets_the_next_one_begin_with_more() -> None:
    learnt = budget()
    for _ in range(20):
        learnt.read(40 * MIB, 0.1, 100 * MIB)  # four times as fast
    assert learnt.bytes_max(100 * MIB) == pytest.approx(200 * MIB, rel=0.01)
    assert learnt.bytes_max(10 * MIB) == pytest.approx(20 * MIB, rel=0.01), "other blocks, scattered ones perhaps"


def test_never_more_than_a_quarter_of_what_is_available() -> None:
    tight = budget(available=64 * MIB)
    assert tight.bytes_max(1e12) == AVAILABLE_SHARE * 64 * MIB


def test_freezes_that_took_too_long_halve_it_until_some_are_over_in_time() -> None:
    learnt = budget()
    assert learnt.bytes_max(100 * MIB) == 50 * MIB
    learnt.too_long()
    learnt.too_long()
    assert learnt.bytes_max(100 * MIB) == 12.5 * MIB
    for _ in range(10):
        learnt.held()
    assert learnt.bytes_max(100 * MIB) == 50 * MIB


def test_what_is_read_in_an_instant_says_nothing() -> None:
    learnt = budget()
    learnt.read(4096, 1e-6, 1.0)
    learnt.read(100 * MIB, 0.0, 1.0)
    assert learnt.bytes_max(10 * MIB) == 5 * MIB


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(0, 100), st.floats(0, 1e12)) | st.booleans(), max_size=50))
def test_it_stays_within_its_bounds_whatever_happens(story: list[tuple[int, float, float] | bool]) -> None:
    learnt = budget()
    for step in story:
        if isinstance(step, tuple):
            learnt.read(*step)
        elif step:
            learnt.held()
        else:
            learnt.too_long()
        assert BYTES_MIN <= learnt.bytes_max(1e9) <= 256 * MIB
    assert learnt.reading_seconds_max == pytest.approx(GIVE_UP_SHARE)
