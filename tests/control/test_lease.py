"""Self-fencing: the source stops by itself when nobody can have heard of it, and only then."""

from __future__ import annotations

import asyncio

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.config import parse_config
from drengine_agent.fencing.lease import SelfFencing
from tests.clock import ManualClock


class Source:
    """A lease with a clock, and a fence that may fail at first."""

    def __init__(self, seconds: float = 10.0, failures: int = 0) -> None:
        self.clock = ManualClock()
        self.lease = SelfFencing(seconds, self.clock)
        self.fenced_at: list[float] = []
        self.failures = failures
        self.task = asyncio.create_task(self.lease.watch(self.fence, lambda: "unplugged"))

    async def fence(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        self.fenced_at.append(self.clock.monotonic())

    async def advance(self, seconds: float, step: float = 0.05) -> None:
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            for _ in range(3):
                await asyncio.sleep(0)
            self.clock.advance(min(step, until - self.clock.monotonic() + 1e-9))
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_source_that_is_heard_of_is_never_fenced() -> None:
    source = Source()
    for _ in range(20):
        source.lease.confirm(source.clock.monotonic())
        await source.advance(9)
    assert source.fenced_at == []
    source.task.cancel()


@pytest.mark.fault(47)
async def test_a_silent_source_fences_itself_when_its_lease_is_over() -> None:
    source = Source()
    source.lease.confirm(0.0)
    await source.advance(9.9)
    assert source.fenced_at == []
    await source.advance(0.4)
    assert len(source.fenced_at) == 1
    assert 10.0 <= source.fenced_at[0] <= 10.2


async def test_the_lease_counts_from_when_the_report_was_sent_not_from_when_it_came_back() -> None:
    source = Source()
    source.lease.confirm(0.0)
    await source.advance(8)
    source.lease.confirm(3.0)  # sent at 3, back at 8
    await source.advance(4.8)
    assert source.fenced_at == []
    await source.advance(0.5)
    assert len(source.fenced_at) == 1


async def test_an_older_report_that_comes_back_late_prolongs_nothing() -> None:
    source = Source()
    source.lease.confirm(5.0)
    source.lease.confirm(1.0)
    await source.advance(14.9)
    assert source.fenced_at == []
    source.task.cancel()


@pytest.mark.fault(61)
async def test_jumps_of_the_wall_clock_neither_end_nor_prolong_a_lease() -> None:
    source = Source()
    source.lease.confirm(0.0)
    source.clock.jump_wall(86_400)
    await source.advance(9)
    assert source.fenced_at == []
    source.clock.jump_wall(-7 * 86_400)
    await source.advance(1.2)
    assert len(source.fenced_at) == 1


async def test_contact_that_comes_back_too_late_unfences_nothing() -> None:
    source = Source()
    source.lease.confirm(0.0)
    source.clock.advance(60)  # the whole process was stopped
    source.lease.confirm(59.9)  # what had piled up is taken first
    await source.advance(0.3)
    assert len(source.fenced_at) == 1
    source.lease.confirm(source.clock.monotonic())
    assert source.lease.is_over


async def test_fencing_that_fails_is_tried_until_it_succeeds() -> None:
    source = Source(failures=3)
    source.lease.confirm(0.0)
    await source.advance(12)
    assert len(source.fenced_at) == 1
    assert source.task.done()


async def test_without_a_lease_no_silence_fences() -> None:
    source = Source(seconds=0.0)
    await source.lease.begun()
    await source.advance(1000, step=10)
    assert source.fenced_at == []
    assert not source.lease.is_over


async def test_a_new_process_waits_for_its_first_report_to_come_back() -> None:
    source = Source()
    begun = asyncio.create_task(source.lease.begun())
    await source.advance(100, step=1)
    assert not begun.done()
    assert source.fenced_at == []
    source.lease.confirm(source.clock.monotonic())
    await asyncio.wait_for(begun, 5)
    source.task.cancel()


def test_a_lease_and_several_addresses_of_a_broker_exclude_each_other() -> None:
    """An orchestrator that sees another one of the brokers would take the source's silence there for its fence."""
    control = {"address": "127.0.0.1:1883", "more_addresses": ["127.0.0.1:1884"]}
    values = {"source": "shop", "target": "127.0.0.1:10809", "volume": [{"name": "d", "path": "/dev/x"}]}
    parse_config({**values, "control": control})
    with pytest.raises(DrengineError, match="lease needs one broker") as refused:
        parse_config({**values, "control": {**control, "lease": "30s"}})
    assert "no evidence" in refused.value.hint
