"""The agent's pure decisions: bandwidth, compression, back-off, lag, states, how to resume."""

from __future__ import annotations

import asyncio
from datetime import datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.errors import DrengineError
from drengine.model.points import Mark, VolumeGeometry
from drengine.model.states import REASONS, ReplicationState
from drengine.wire.events import Welcome
from drengine_agent.bandwidth import BURST_SECONDS, LOOK_SECONDS, TokenBucket
from drengine_agent.daemon.backoff import CAP_SECONDS, backoff_seconds
from drengine_agent.daemon.health import Facts, derive_state
from drengine_agent.ship.compression import LEVELS, CompressionController, Window, levels_of, next_level
from drengine_agent.ship.lag import LagMeter
from drengine_agent.ship.resume import check_declared, decide_resume
from drengine_agent.ship.session import SessionEnded
from tests.clock import ManualClock

MIB = 1 << 20


def at(hour: int, minute: int) -> int:
    return int(datetime(2026, 11, 23, hour, minute).timestamp() * 1e9)


def test_a_schedule_limits_working_hours_only() -> None:
    schedule = BandwidthSchedule.parse("08:00-18:00=20MiB/s, otherwise unlimited")
    assert schedule.rate_at(8 * 60) == schedule.rate_at(17 * 60 + 59) == 20 * MIB
    assert schedule.rate_at(7 * 60 + 59) is schedule.rate_at(18 * 60) is None


def test_a_span_may_go_past_midnight_and_the_first_that_holds_wins() -> None:
    schedule = BandwidthSchedule.parse("22:00-06:00=unlimited, 00:00-24:00=1MB/s")
    assert schedule.rate_at(23 * 60) is schedule.rate_at(5 * 60) is None
    assert schedule.rate_at(12 * 60) == 1_000_000


@pytest.mark.parametrize(
    "text", ["", "fast", "20", "8-18=1MB/s", "08:00-25:00=1MB/s", "08:61-09:00=1MB/s", "0B/s", "1B/s, 2B/s"]
)
def test_a_schedule_that_cannot_be_read_says_what_is_wrong(text: str) -> None:
    with pytest.raises(DrengineError) as refused:
        BandwidthSchedule.parse(text)
    assert refused.value.kind.id == "bad-bandwidth-schedule"


@given(lengths=st.lists(st.integers(1, 3 * MIB), min_size=1, max_size=60), rate=st.integers(100_000, 50 * MIB))
def test_a_bucket_never_admits_more_than_rate_and_burst(lengths: list[int], rate: int) -> None:
    clock = ManualClock()
    bucket = TokenBucket(BandwidthSchedule(otherwise=float(rate)), clock)
    admitted = 0
    for length in lengths:
        assert admitted <= rate * (clock.monotonic() + BURST_SECONDS) + 1
        admitted += length
        clock.advance(bucket.reserve(length))


def test_a_limit_that_begins_or_ends_with_the_hour_is_taken_at_once() -> None:
    clock = ManualClock(at(7, 59))
    bucket = TokenBucket(BandwidthSchedule.parse("08:00-18:00=1MiB/s, otherwise unlimited"), clock)
    assert bucket.reserve(100 * MIB) == 0
    clock.advance(60)
    assert bucket.reserve(MIB) == pytest.approx(0.9, abs=0.01)
    clock.advance(10 * 3600)
    assert bucket.reserve(100 * MIB) == 0


@pytest.mark.parametrize(
    "fresh", [BandwidthSchedule(), BandwidthSchedule(otherwise=10.0 * MIB)], ids=["unlimited", "higher"]
)
async def test_a_new_limit_counts_for_those_who_wait_already(fresh: BandwidthSchedule) -> None:
    clock = ManualClock()
    bucket = TokenBucket(BandwidthSchedule(otherwise=1024.0), clock)
    seconds = bucket.reserve(MIB)
    assert seconds > 1000
    waiting = asyncio.ensure_future(bucket.wait(seconds))
    await asyncio.sleep(0)
    bucket.set_schedule(fresh)
    for _ in range(2):
        clock.advance(LOOK_SECONDS)
        await asyncio.sleep(0)
    assert waiting.done()


def test_a_slow_network_gets_more_compression_and_a_slow_cpu_less() -> None:
    assert next_level(LEVELS, 1, Window(1.0, starved=0.1, blocked=0.8)) == 2
    assert next_level(LEVELS, 2, Window(1.0, starved=0.8, blocked=0.1)) == 1
    assert next_level(LEVELS, 2, Window(1.0, starved=0.3, blocked=0.3)) == 2


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=50))
def test_the_level_moves_one_step_at_a_time_and_stays_in_the_table(windows: list[tuple[float, float]]) -> None:
    current = 0
    for starved, blocked in windows:
        moved = next_level(LEVELS, current, Window(1.0, starved, blocked))
        assert abs(moved - current) <= 1
        assert 0 <= moved < len(LEVELS)
        current = moved


def test_a_controller_climbs_while_the_network_blocks_and_returns_when_the_cpu_does() -> None:
    controller = CompressionController(levels_of("adaptive"))
    assert controller.level == -5
    for _ in range(100):
        controller.observe(elapsed=0.1, starved=0.0, blocked=0.1)
    assert controller.level == 3
    for _ in range(100):
        controller.observe(elapsed=0.1, starved=0.1, blocked=0.0)
    assert controller.level == -5


@given(attempt=st.integers(1, 10_000), seed=st.integers())
def test_back_off_is_capped_jittered_and_never_zero(attempt: int, seed: int) -> None:
    wait = backoff_seconds(attempt, Random(seed))
    assert 0.05 <= wait <= CAP_SECONDS
    assert wait != backoff_seconds(attempt, Random(seed + 1))


@pytest.mark.fault(61)
@given(st.lists(st.tuples(st.sampled_from(["advance", "jump", "cut", "ack"]), st.floats(-1e7, 1e7)), max_size=60))
def test_lag_is_unmoved_by_a_wall_clock_that_jumps(steps: list[tuple[str, float]]) -> None:
    clock = ManualClock()
    lag = LagMeter(clock)
    sent, captured, represented = 0, [], 0.0
    for step, amount in steps:
        if step == "advance":
            clock.advance(abs(amount) / 1e6)
        elif step == "jump":
            clock.jump_wall(amount)
        elif step == "cut":
            sent += 1
            lag.cut_sent(sent, clock.monotonic())
            captured.append(clock.monotonic())
        elif captured:
            lag.acknowledged(sent)
            represented = captured[-1]
        assert lag.lag_seconds == pytest.approx(clock.monotonic() - represented)


def test_lag_grows_while_nothing_is_acknowledged_and_over_a_restart() -> None:
    clock = ManualClock()
    lag = LagMeter(clock)
    lag.cut_sent(1, clock.monotonic())
    lag.acknowledged(1)
    clock.advance(5)
    lag.cut_sent(2, clock.monotonic())
    lag.disconnected()
    lag.acknowledged(2)
    clock.advance(5)
    assert lag.lag_seconds == 10
    again = LagMeter(clock, represented_ns=lag.represented_ns)
    assert again.lag_seconds == pytest.approx(10)
    clock.jump_wall(-3600)
    assert LagMeter(clock, represented_ns=lag.represented_ns + 3600 * 10**9).lag_seconds >= 0


FACTS = st.builds(
    Facts,
    stopped=st.sampled_from(["", "fenced"]),
    paused=st.booleans(),
    connected=st.booleans(),
    attempts=st.integers(0, 3),
    disconnect_reason=st.sampled_from(["", "target-full"]),
    syncing=st.booleans(),
    rescan_reason=st.sampled_from(["", "index-lost"]),
    stall_reason=st.sampled_from(["", "read-error"]),
    backlog_bytes=st.integers(0, 9),
    behind_seconds=st.floats(0, 99),
    limited=st.booleans(),
)


@given(FACTS)
def test_every_combination_of_facts_has_one_state_and_a_known_reason(facts: Facts) -> None:
    state, reason = derive_state(facts)
    assert reason in REASONS
    if state.value in ("STOPPED", "PAUSED", "DISCONNECTED", "STALLED", "RESCAN"):
        assert reason != "none"
    if state is ReplicationState.CONTINUOUS:
        assert facts.connected
        assert not (facts.stopped or facts.paused or facts.syncing or facts.rescan_reason or facts.stall_reason)


VOLUME = VolumeGeometry(1, "data", "file:1", MIB)
MARK = Mark(b"e" * 16, 9)


def welcome(sequence: int = 5, geometry: tuple[VolumeGeometry, ...] = (VOLUME,)) -> Welcome:
    return Welcome(2, frozenset(), bytes(16), 1, sequence, MARK if geometry else Mark(), MIB, MIB, geometry)


def test_a_known_target_is_continued_from_its_mark() -> None:
    resume = decide_resume(welcome(), (VOLUME,), 5)
    assert (resume.since, resume.empty, resume.declare) == (MARK, False, False)


def test_a_new_target_is_filled() -> None:
    resume = decide_resume(welcome(0, ()), (VOLUME,), 0)
    assert (resume.since, resume.empty, resume.declare) == (Mark(), True, True)


def test_a_target_that_went_back_before_its_own_word_is_compared_with() -> None:
    assert decide_resume(welcome(4), (VOLUME,), 5).since == Mark()


@pytest.mark.fault(25)
def test_a_resized_volume_is_declared_anew() -> None:
    resume = decide_resume(welcome(), (VolumeGeometry(1, "data", "file:1", 2 * MIB),), 5)
    assert (resume.declare, resume.geometry_changed, resume.since) == (True, True, MARK)


@pytest.mark.fault(27)
@pytest.mark.parametrize("ours", [VolumeGeometry(1, "data", "file:2", MIB), VolumeGeometry(1, "log", "file:1", MIB)])
def test_another_volume_under_the_same_number_is_refused(ours: VolumeGeometry) -> None:
    with pytest.raises(SessionEnded) as ended:
        check_declared(welcome(), (ours,))
    assert (ended.value.reason, ended.value.retryable) == ("volume-replaced", False)
