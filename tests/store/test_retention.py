"""Retention: points thin out as configured, whatever the clocks do, and never so far that nothing is left."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.model.points import PointKind, RecoveryPoint
from drengine.store.care.retention import BAD_RETENTION, RetentionPolicy, ThinningStep, plan

S = 1_000_000_000
T0 = 1_764_000_000 * S - 1_764_000_000 % 604_800 * S
POLICY = RetentionPolicy()
SMALL = RetentionPolicy(10, (ThinningStep(10, 60), ThinningStep(30, 240)))


def point(sequence: int, seconds: float, *, branch: int = 1, skew_seconds: float = 0.0) -> RecoveryPoint:
    at = T0 + int(seconds * S)
    return RecoveryPoint(
        "web", branch, sequence, at + int(skew_seconds * S), PointKind.QUIET, received_ns=at, geometry=()
    )


def every(period_seconds: int, count: int) -> list[RecoveryPoint]:
    return [point(number + 1, number * period_seconds) for number in range(count)]


def after(
    points: list[RecoveryPoint], policy: RetentionPolicy = POLICY, now_ns: int | None = None
) -> list[RecoveryPoint]:
    now_ns = max(p.received_ns for p in points) if now_ns is None else now_ns
    gone = {p.id for p in plan(points, now_ns, policy)}
    return [p for p in points if p.id not in gone]


def test_the_default_is_the_designs() -> None:
    assert str(POLICY) == "all for 10m, every 10m for 1h, every 1h for 1d, every 1d for 1w"
    assert RetentionPolicy.parse("all for 10m, every 10m for 1h, every 1h for 1d, every 1d for 7d") == POLICY


def test_two_weeks_of_minutely_points_thin_out_to_dozens() -> None:
    points = every(60, 14 * 24 * 60 + 1)
    kept = after(points)
    ages = [(points[-1].received_ns - p.received_ns) // S for p in kept]
    assert sum(age <= 600 for age in ages) == 11
    assert sum(600 < age <= 3600 for age in ages) == 5
    assert sum(3600 < age <= 86400 for age in ages) == 23
    assert sum(86400 < age <= 604800 for age in ages) == 6
    assert max(ages) <= 604800
    assert kept[-1] is points[-1]


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    runs=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_running_it_often_ends_where_running_it_once_would_but_for_the_ends_of_steps(
    gaps: list[int], runs: list[bool]
) -> None:
    seconds, store, everything = 0, [], []
    for number, (gap, run) in enumerate(zip(gaps, runs, strict=False)):
        seconds += gap
        store.append(point(number + 1, seconds))
        everything.append(store[-1])
        if run:
            store = after(store, SMALL)
            # Repeating it at once changes nothing.
            assert after(store, SMALL) == store
    once, often = after(everything, SMALL), after(store, SMALL)
    missing = {p.sequence for p in once} - {p.sequence for p in often}
    assert {p.sequence for p in often} <= {p.sequence for p in once}
    # A bucket that lies across the end of a step has a point on both sides of it when all is thinned at once; the one
    # that stood for it before has aged into the next step, or out of the last.
    assert len(missing) <= len(SMALL.steps)
    assert often[-1] == once[-1]


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.integers(1, 40), min_size=1, max_size=80))
def test_each_bucket_keeps_a_point_while_it_had_one(gaps: list[int]) -> None:
    seconds, store, everything = 0, [], []
    for number, gap in enumerate(gaps):
        seconds += gap
        store.append(point(number + 1, seconds))
        everything.append(store[-1])
        store = after(store, SMALL)
        newest = everything[-1].received_ns
        for step, previous_seconds in zip(SMALL.steps, (10, 60), strict=True):
            buckets = [
                {
                    p.received_ns // (step.every_seconds * S)
                    for p in points
                    if previous_seconds * S < newest - p.received_ns <= step.for_seconds * S
                }
                for points in (everything, store)
            ]
            # The oldest bucket may have lost its oldest point, which stood for it, by age.
            assert buckets[0] - buckets[1] <= {min(buckets[0], default=0)}
        assert set(everything[-1:]) <= set(store)
        assert {p.sequence for p in everything if newest - p.received_ns <= 10 * S} <= {p.sequence for p in store}


@settings(max_examples=100, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, 10**7),
            st.integers(-(10**7), 10**7),
            st.booleans(),
            st.booleans(),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=40,
    ),
    now_seconds=st.integers(-(10**7), 10**8),
    data=st.data(),
)
def test_whatever_the_times_what_must_stay_stays(
    entries: list[tuple[int, int, bool, bool, int]], now_seconds: int, data: st.DataObject
) -> None:
    points = [
        replace(point(number + 1, received, branch=branch, skew_seconds=skew), damaged=damaged, pinned=pinned)
        for number, (received, skew, damaged, pinned, branch) in enumerate(entries)
    ]
    protected = set(data.draw(st.lists(st.sampled_from([p.id for p in points]), max_size=5)))
    shuffled = data.draw(st.permutations(points))
    now_ns = T0 + now_seconds * S
    gone = plan(shuffled, now_ns, SMALL, protected=protected)
    assert gone == plan(points, now_ns, SMALL, protected=protected)
    assert not any(p.pinned or p.id in protected for p in gone)
    for branch in {p.branch for p in points}:
        mine = [p for p in points if p.branch == branch]
        good = [p for p in mine if not p.damaged] or mine
        assert good[-1] not in gone
    left = [p for p in points if p not in gone]
    assert plan(left, now_ns, SMALL, protected=protected) == []


@pytest.mark.fault(13)
@pytest.mark.parametrize("jump_seconds", [10**9, -(10**9), 86400 * 30, -86400 * 30])
def test_the_targets_clock_jumps_and_nothing_is_lost(jump_seconds: int) -> None:
    points = every(60, 11)
    following = replace(point(12, 11 * 60), received_ns=T0 + (660 + jump_seconds) * S)
    jumped = [*points, following]
    now_ns = following.received_ns
    gone = plan(jumped, now_ns, POLICY)
    # By the source's clock the first point is 11 minutes old, alone in its bucket.
    assert gone == []
    assert plan(points, T0 + jump_seconds * S, POLICY) == []


@pytest.mark.fault(61)
@pytest.mark.parametrize("jump_seconds", [10**9, -(10**9)])
def test_the_sources_clock_jumps_and_thinning_goes_on(jump_seconds: int) -> None:
    points = [point(n + 1, n * 60, skew_seconds=jump_seconds if n >= 100 else 0) for n in range(200)]
    straight = after(every(60, 200))
    assert [p.sequence for p in after(points)][-11:] == [p.sequence for p in straight][-11:]
    assert len(after(points)) <= len(straight) + 11


@pytest.mark.fault(61)
def test_one_point_from_the_far_future_is_not_kept_for_ever() -> None:
    points = every(3600, 24 * 9)
    points[5] = replace(points[5], time_ns=points[5].time_ns + 10**18, received_ns=points[5].received_ns + 10**18)
    kept = after(points, now_ns=points[-1].received_ns)
    assert points[5] not in kept
    assert kept[-1] is points[-1]


def test_a_silent_sources_points_stay() -> None:
    points = every(60, 11)
    assert plan(points, points[-1].received_ns + 365 * 86400 * S, POLICY) == []


def test_a_damaged_point_never_stands_for_its_bucket_while_a_good_one_could() -> None:
    points = every(60, 120)
    first = after(points)[5]
    damaged = [replace(p, damaged=True) if p == first else p for p in points]
    kept = after(damaged)
    bucket = [p for p in kept if p.received_ns // (600 * S) == first.received_ns // (600 * S)]
    assert bucket
    assert not any(p.damaged for p in bucket)


def test_the_branch_left_behind_ages_by_its_successor_and_goes_when_it_ended() -> None:
    old = every(60, 11)
    fresh = [point(100 + n, 660 + n * 3600, branch=2) for n in range(24 * 9)]
    gone = plan([*old, *fresh], fresh[-1].received_ns, POLICY)
    assert [p for p in gone if p.branch == 1] == old[:-1]
    gone = plan([*old, *fresh], fresh[-1].received_ns, POLICY, ended_branches={1})
    assert [p for p in gone if p.branch == 1] == old
    gone = plan([*old, *fresh], fresh[-1].received_ns, POLICY, ended_branches={1}, protected={"1-3"})
    assert [p for p in gone if p.branch == 1] == [p for p in old if p.id != "1-3"]


def test_no_points_need_no_plan() -> None:
    assert plan([], T0, POLICY) == []


@given(
    keep_all=st.integers(0, 10**6),
    shape=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10**7)), max_size=4),
)
def test_a_policy_survives_its_text(keep_all: int, shape: list[tuple[int, int]]) -> None:
    period, age, steps = 1, keep_all, []
    for factor, further in shape:
        period, age = period * factor, age + further
        steps.append(ThinningStep(period, age))
    policy = RetentionPolicy(keep_all, tuple(steps))
    assert RetentionPolicy.parse(str(policy)) == policy
    assert all(a.for_seconds < b.for_seconds for a, b in pairwise(policy.steps))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "all",
        "all for 10",
        "all for ten m",
        "every 10m for 1h",
        "all for 10m every 10m for 1h",
        "all for 10m, every 10m",
        "all for 10m, every 0m for 1h",
        "all for 10m, every 10m for 10m",
        "all for 10m, every 10m for 1h, every 15m for 1d",
        "all for 1h, every 10m for 1d, every 1h for 2h",
        "all for 9999999999w",
        "all for \u0661\u0660m",
        "all for 10m," * 1000,
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(text: str) -> None:
    with pytest.raises(DrengineError) as caught:
        RetentionPolicy.parse(text)
    assert caught.value.kind is BAD_RETENTION
