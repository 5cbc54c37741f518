"""How much may be left when a freeze begins follows from what reading took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine_agent.cuts.budget import AVAILABLE_SHARE, BYTES_MIN, GIVE_UP_SHARE, FreezeBudget

MIB = 1 << 20


class Disk:
    """How fast it is without a freeze."""

    def __init__(self, speed: float = 100 * MIB) -> None:
        self.speed = speed

    def budget(self, *, longest: float = 1.0, available: int = 8 << 30, cautious: bool = False) -> FreezeBudget:
        made = FreezeBudget(
            longest_seconds=longest,
            memory_bytes=256 * MIB,
            read_speed=lambda: self.speed,
            available=lambda: available,
        )
        for _ in range(0 if cautious else 10):
            made.held()
        return made


def test_the_first_freezes_are_short_ones() -> None:
    made = Disk().budget(cautious=True)
    assert made.bytes_max() == 25 * MIB
    made.held()
    assert made.bytes_max() == 37.5 * MIB


def test_a_late_cut_may_try_more_until_it_is_known_what_can_be_read() -> None:
    made = Disk(20 * MIB).budget(cautious=True)
    assert made.bytes_max() == 5 * MIB
    assert made.bytes_max(late=True) == 50 * MIB
    made.read(10 * MIB, 0.5)  # no faster than without a freeze
    assert made.bytes_max(late=True) == 12.5 * MIB


def test_before_any_freeze_it_follows_from_reading_without_one() -> None:
    assert Disk().budget().bytes_max() == 50 * MIB
    assert Disk().budget(longest=0.1).bytes_max() == 5 * MIB
    assert Disk(0.0).budget().bytes_max() == 32 * MIB, "a disk of which nothing is known"


def test_a_slow_disk_leaves_little_and_a_fast_one_as_much_as_memory_bears() -> None:
    assert Disk(4 * MIB).budget().bytes_max() == 2 * MIB
    assert Disk(2000 * MIB).budget().bytes_max() == 256 * MIB


def test_a_freeze_that_read_faster_lets_the_next_one_begin_with_more() -> None:
    disk = Disk()
    learnt = disk.budget()
    for _ in range(20):
        learnt.read(40 * MIB, 0.1)  # four times as fast
    assert learnt.bytes_max() == pytest.approx(200 * MIB, rel=0.01)
    disk.speed = 10 * MIB
    assert learnt.bytes_max() == pytest.approx(20 * MIB, rel=0.01), "other blocks, scattered ones perhaps"


def test_never_more_than_a_quarter_of_what_is_available() -> None:
    assert Disk(1e12).budget(available=64 * MIB).bytes_max() == AVAILABLE_SHARE * 64 * MIB


def test_freezes_that_took_too_long_halve_it_until_some_are_over_in_time() -> None:
    learnt = Disk().budget()
    learnt.too_long()
    learnt.too_long()
    assert learnt.bytes_max() == 12.5 * MIB
    for _ in range(10):
        learnt.held()
    assert learnt.bytes_max() == 50 * MIB


def test_what_is_read_in_an_instant_says_nothing() -> None:
    learnt = Disk(10 * MIB).budget()
    learnt.read(4096, 1e-6)
    learnt.read(100 * MIB, 0.0)
    assert learnt.bytes_max() == 5 * MIB


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(0, 100)) | st.booleans(), max_size=50), st.floats(0, 1e12))
def test_it_stays_within_its_bounds_whatever_happens(story: list[tuple[int, float] | bool], speed: float) -> None:
    learnt = Disk(speed).budget(cautious=True)
    for step in story:
        if isinstance(step, tuple):
            learnt.read(*step)
        elif step:
            learnt.held()
        else:
            learnt.too_long()
        assert BYTES_MIN <= learnt.bytes_max() <= 256 * MIB
    assert learnt.reading_seconds_max == pytest.approx(GIVE_UP_SHARE)
