"""Lag and age as operators see them, on clocks that the test owns."""

from __future__ import annotations

import pytest

from drengine.model.points import PointKind, RecoveryPoint, VolumeGeometry
from drengine.target.sources import Sources, SourceState
from drengine.wire.events import Status

NOW = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
GEOMETRY = (VolumeGeometry(1, "data", "x", 4096),)


def point(time_ns: int, received_ns: int) -> RecoveryPoint:
    return RecoveryPoint("shop", 1, 5, time_ns, PointKind.QUIET, received_ns, GEOMETRY)


def status(behind_since_ns: int = 0, backlog_bytes: int = 0, state: str = "CONTINUOUS") -> Status:
    return Status(state, "none", backlog_bytes, behind_since_ns)


def connected() -> SourceState:
    state = SourceState("shop")
    Sources.note_opened(state, "peer")
    return state


def test_there_is_no_lag_before_there_is_a_point() -> None:
    state = connected()
    assert state.lag_seconds(NOW) is None
    Sources.note_status(state, status(), NOW)
    assert state.lag_seconds(NOW) is None


def test_lag_is_zero_while_an_idle_source_says_that_nothing_is_outstanding() -> None:
    state = connected()
    Sources.note_points(state, [point(NOW - 60 * SECOND, NOW - 60 * SECOND)])
    Sources.note_status(state, status(), NOW)
    assert state.lag_seconds(NOW) == 0
    assert state.point_age_seconds(NOW) == 60


def test_lag_grows_while_the_agent_is_gone() -> None:
    state = connected()
    Sources.note_points(state, [point(NOW, NOW)])
    Sources.note_status(state, status(), NOW + SECOND)
    Sources.note_closed(state, goodbye=False, error=None)
    assert state.lag_seconds(NOW + 11 * SECOND) == 10
    assert state.lag_seconds(NOW + 1001 * SECOND) == 1000


def test_lag_grows_while_a_connected_source_falls_behind() -> None:
    state = connected()
    Sources.note_points(state, [point(NOW, NOW)])
    Sources.note_status(state, status(behind_since_ns=NOW, backlog_bytes=1 << 20, state="BACKLOG"), NOW + SECOND)
    assert state.lag_seconds(NOW + 5 * SECOND) == 5
    Sources.note_points(state, [point(NOW + 4 * SECOND, NOW + 5 * SECOND)])
    assert state.lag_seconds(NOW + 5 * SECOND) == 1


@pytest.mark.fault(61)
def test_a_source_clock_in_the_future_cannot_hide_lag() -> None:
    state = connected()
    Sources.note_points(state, [point(NOW + 3600 * SECOND, NOW)])
    assert state.lag_seconds(NOW + 10 * SECOND) == 10
    assert state.point_age_seconds(NOW + 10 * SECOND) == 10


@pytest.mark.fault(61)
def test_a_source_clock_that_is_set_back_does_not_make_the_lag_jump() -> None:
    state = connected()
    Sources.note_points(state, [point(NOW, NOW)])
    Sources.note_points(state, [point(NOW - 3600 * SECOND, NOW + SECOND)])
    lag = state.lag_seconds(NOW + 2 * SECOND)
    assert lag is not None and 0 <= lag <= 2


def test_words_from_the_network_do_not_become_labels() -> None:
    state = connected()
    Sources.note_status(state, Status('EVIL"} 1', "x" * 60, 0, 0), NOW)
    assert (state.state.value, state.reason) == ("STALLED", "internal")
