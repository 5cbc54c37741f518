"""Disturbances at every step: the broker goes and comes back, the old source returns, the clocks jump."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from drengine.control.messages import Verb
from drengine.failover.run import Event, JournalEntry, Outcome, RequestKind, RunState, Status
from drengine.failover.runbook.values import Mode, Runbook
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import carry_out, create, executor, seen, way_home
from tests.failover.engine.world import BLOCK, World, runbook

STEPS_MAX = 40
HASTE = 25


class Disturbed(MemoryKeeper):
    """Something happens right after the n-th entry of a journal."""

    def __init__(self, at: int, happening: Any) -> None:
        super().__init__()
        self._at, self._happening, self.happened = at, happening, False

    def append(self, run: str, token: int, entry: JournalEntry) -> int:
        seq = super().append(run, token, entry)
        if seq == self._at and entry.event is not Event.DECISION:
            self.happened = True
            self._happening()
        return seq


async def finished(world: World, keeper: MemoryKeeper, run: str, book: Runbook) -> Outcome:
    """Carry a run out, resumed by a person whenever it stopped."""
    for _ in range(10):
        record = await executor(world, keeper, book, site=world.site(Quick())).execute(run)
        if record.state is RunState.FINISHED:
            return record.outcome
        world.agents.broker = True
        keeper.request(run, RequestKind.RESUME, "", "ann")
    raise AssertionError([(each.step.id, each.status, each.message) for each in seen(keeper, run).steps])


class Quick:
    """Waiting takes a small part of its time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now_ns(self) -> int:
        return 1_800_000_000_000_000_000 + int(self.monotonic() * 1e9)

    def monotonic(self) -> float:
        return self._loop.time() * HASTE

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / HASTE)


@pytest.mark.fault(49)
@pytest.mark.timeout(600)  # one run for each position of the journal
@pytest.mark.parametrize("mode", [Mode.FAILOVER, Mode.FAILBACK])
async def test_wherever_the_broker_goes_the_run_goes_on_or_resumes_and_nothing_is_done_twice(
    tmp_path: Path, mode: Mode
) -> None:
    disturbed = 0
    for at in range(2, STEPS_MAX):
        world, book = World(tmp_path / str(at)), runbook()
        options: dict[str, Any] = {}
        if mode is Mode.FAILBACK:
            first, _ = await carry_out(world, MemoryKeeper(), Mode.FAILOVER, book)
            options = way_home(world, first.id)
            world.sources["shop"].commands.clear()

        def away(world: World = world) -> None:
            world.agents.broker = False

        keeper = Disturbed(at, away)
        run = create(keeper, mode, book, **options)
        assert await finished(world, keeper, run, book) is Outcome.COMPLETED
        if not keeper.happened:
            if at > len(keeper.entries(run)):
                break
            continue
        disturbed += 1
        commands = world.sources["shop"].commands
        assert len(commands) == len(set(commands)) or mode is Mode.FAILBACK
        assert commands.count(Verb.RELEASE) == (mode is Mode.FAILBACK)
        assert world.driver.launches.count(world.driver.launches[0]) == 1
        assert world.store.source("shop").generation == (3 if mode is Mode.FAILBACK else 2)
        world.judge.verdict()
    assert disturbed >= 10


@pytest.mark.fault(45)
async def test_a_stale_source_may_return_at_any_step_and_overwrites_nothing(tmp_path: Path) -> None:
    """Its machine was off (the fence command said so), and somebody switches it on while the failover runs."""
    disturbed = 0
    for at in range(2, STEPS_MAX):
        world, book = World(tmp_path / str(at), broker=False), runbook(fence=["true"])
        source = world.sources["shop"]
        source.die()

        def back(source: Any = source) -> None:
            source.come_back()
            source.write(9, b"stale" * 100)
            source.ship()

        keeper = Disturbed(at, back)
        run = create(keeper, Mode.FAILOVER, book)
        assert await finished(world, keeper, run, book) is Outcome.COMPLETED
        if not keeper.happened:
            if at > len(keeper.entries(run)):
                break
            continue
        disturbed += 1
        active = world.store.source("shop").active_branch
        if source.serving:
            source.write(11, b"stale" * 100)
        assert source.ship() is None, "a stale source learns that it is"
        assert (source.fenced, source.serving) == (True, False)
        (instance,) = world.driver.running
        world.driver.write(instance, 3, b"r" * BLOCK)
        held = world.read("shop", active)
        assert held[3 * BLOCK : 4 * BLOCK] == b"r" * BLOCK
        assert b"stale" not in held[11 * BLOCK : 12 * BLOCK]
        chosen = seen(keeper, run).results["choose-point:shop"].point
        state = seen(keeper, run).state("promote:shop")
        assert state.status is Status.DONE
        assert next(each for each in world.store.branches("shop") if each.active).base_sequence == int(
            chosen.partition("-")[2]
        )
    assert disturbed >= 8


@pytest.mark.fault(61)
async def test_clocks_that_jump_change_neither_the_order_nor_the_outcome(tmp_path: Path) -> None:
    world, book = World(tmp_path), runbook()

    class Jumping(Quick):
        jumps = 0

        def now_ns(self) -> int:
            Jumping.jumps += 1
            return super().now_ns() + (-(10**12)) ** (Jumping.jumps % 2) * 3600

    keeper = MemoryKeeper()
    run = create(keeper, Mode.FAILOVER, book)
    record = await executor(world, keeper, book, site=world.site(Jumping())).execute(run)
    assert record.outcome is Outcome.COMPLETED
    world.judge.verdict()
