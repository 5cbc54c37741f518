"""A flood of refusals takes little of the log, and none of the time of whoever refuses."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from drengine.audit import AuditLog, Refusals
from drengine.audit.entry import Entry
from drengine.audit.folding import BURST
from drengine.audit.verify import read_entries
from tests.clock import ManualClock


def entries(directory: Path) -> list[Entry]:
    return [line.entry for line in read_entries(directory)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def refusals(tmp_path: Path, clock: ManualClock) -> Refusals:
    made = Refusals(AuditLog.open(tmp_path, clock=clock), clock=clock)
    made.close()  # its thread: the test writes
    return made


def test_the_first_refusal_is_there_at_once_and_repeats_are_counted(
    tmp_path: Path, clock: ManualClock, refusals: Refusals
) -> None:
    for number in range(1000):
        refusals.note(who="drengine://main/agent/web", proved="certificate", did="ingest.hello", error="x", on="shop")
        if number in (0, 500):
            refusals.write_due()
    assert [each.times for each in entries(tmp_path)] == [1]
    clock.advance(61)
    refusals.write_due()
    assert [each.times for each in entries(tmp_path)] == [1, 999]
    assert {(each.who, each.on, each.error, each.outcome) for each in entries(tmp_path)} == {
        ("drengine://main/agent/web", "shop", "x", "refused")
    }


def test_who_goes_on_being_refused_is_told_of_ever_more_seldom(
    tmp_path: Path, clock: ManualClock, refusals: Refusals
) -> None:
    for _ in range(24 * 60):
        refusals.note(who="somebody", did="ingest.hello", error="x")
        refusals.write_due()
        clock.advance(60)
    assert 25 <= len(entries(tmp_path)) <= 32
    assert sum(each.times for each in entries(tmp_path)) >= 24 * 60 - 60


def test_a_day_of_ever_new_names_makes_a_bounded_number_of_entries(
    tmp_path: Path, clock: ManualClock, refusals: Refusals
) -> None:
    noted = 0
    for minute in range(24 * 60):
        for number in range(20):
            refusals.note(who=f"name-{minute}-{number}", did="ingest.hello", error="x", details={"a": "y" * 5000})
            noted += 1
        refusals.write_due()
        clock.advance(60)
    refusals.write_due(all_=True)
    kept = entries(tmp_path)
    assert len(kept) <= BURST + 24 * 60 + 300
    assert sum(each.times for each in kept) == noted
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 << 20


def test_the_thread_writes_and_the_end_writes_the_rest(tmp_path: Path) -> None:
    written = threading.Event()
    log = AuditLog.open(tmp_path)
    real = log.record

    def record(**told: object) -> Entry:
        entry = real(**told)  # type: ignore[arg-type]
        written.set()
        return entry

    log.record = record  # type: ignore[method-assign]
    refusals = Refusals(log)
    refusals.note(who="somebody", did="ingest.hello", error="x")
    assert written.wait(30)
    for _ in range(5):
        refusals.note(who="somebody", did="ingest.hello", error="x")
    refusals.close()
    assert [each.times for each in entries(tmp_path)] == [1, 5]


def test_a_log_that_can_not_be_written_stops_nobody(
    tmp_path: Path, clock: ManualClock, refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "head").unlink()
    (tmp_path / "head").mkdir()
    refusals.note(who="somebody", did="ingest.hello", error="x")
    refusals.write_due()
    assert "somebody was refused ingest.hello" in caplog.text
