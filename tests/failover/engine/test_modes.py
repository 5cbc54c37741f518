"""Whole runs in every mode, against a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drengine.control.messages import Verb
from drengine.failover.measure import measure
from drengine.failover.run import Outcome, RequestKind, RunState
from drengine.failover.runbook.values import Mode, Runbook, Wave
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import carry_out, create, executor, way_home
from tests.failover.engine.world import BLOCK, World, runbook


@pytest.mark.fault(62)
async def test_a_drill_passes_and_leaves_production_replication_and_points_as_they_were(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    before = world.facts()
    record, _ = await carry_out(world, keeper, Mode.DRILL, runbook())
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.COMPLETED)
    assert world.facts() == before
    assert world.driver.launches
    assert not world.driver.running
    assert world.sources["shop"].commands == []
    world.sources["shop"].write(2, b"x" * BLOCK)
    assert world.sources["shop"].ship() is not None
    world.judge.verdict()


@pytest.mark.fault(45)
async def test_a_failover_fences_promotes_and_launches_and_the_source_is_refused_when_it_returns(
    tmp_path: Path,
) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, runbook())
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.COMPLETED), snapshot
    assert snapshot.results["fence:shop"].evidence == "agent"
    assert world.store.source("shop").generation == 2
    (instance,) = world.driver.running
    world.driver.write(instance, 3, b"r" * BLOCK)
    source = world.sources["shop"]
    assert (source.serving, source.fenced) == (False, True)
    assert source.ship() is None
    world.judge.verdict()


async def failed_over(world: World, keeper: MemoryKeeper, book: Runbook) -> dict[str, Any]:
    """A world in which the recovered side has written; what the way home needs to know."""
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert record.outcome is Outcome.COMPLETED
    for number, instance in enumerate(sorted(world.driver.running)):
        world.driver.write(instance, 10 + number, b"recovered" * 455)
    return way_home(world, record.id)


async def test_failback_brings_the_source_home_with_everything_the_recovered_side_wrote(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    source = world.sources["shop"]
    source.write(7, b"never shipped" * 300)
    home = await failed_over(world, keeper, book)
    record, snapshot = await carry_out(world, keeper, Mode.FAILBACK, book, **home)
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.COMPLETED), snapshot
    assert (source.serving, source.generation) == (True, 3)
    assert not world.driver.running
    assert source.disk[10 * BLOCK : 10 * BLOCK + 9] == b"recovered"
    assert bytes(source.disk) == world.read("shop", world.store.source("shop").active_branch)
    assert source.shipped_back == 2 * BLOCK, "only what differed: one block of theirs, one of ours"
    source.write(20, b"h" * BLOCK)
    assert source.ship() is not None
    divergent = next(each for each in world.store.branches("shop") if each.role == "divergent")
    assert divergent.closed
    assert world.read("shop", divergent.number)[7 * BLOCK : 7 * BLOCK + 13] == b"never shipped"
    assert measure(snapshot).outage_seconds is not None
    world.judge.verdict()


@pytest.mark.fault(46)
async def test_a_volume_that_nobody_modified_is_recognised_on_the_way_home(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    record, snapshot = await carry_out(world, keeper, Mode.FAILBACK, book, **way_home(world, record.id))
    assert record.outcome is Outcome.COMPLETED
    assert snapshot.results["reverse:shop"].unmodified is True
    assert snapshot.results["preserve:shop"].bytes_shipped == 0
    assert measure(snapshot).bytes_shipped_back == 0


@pytest.mark.fault(48)
async def test_nothing_is_sent_to_the_source_before_its_own_writes_are_kept_unless_somebody_says_so(
    tmp_path: Path,
) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    home = await failed_over(world, keeper, book)
    await carry_out(world, keeper, Mode.REPROTECT, book, **home)
    verbs = world.sources["shop"].commands
    assert verbs.index(Verb.PRESERVE) < verbs.index(Verb.REVERSE)
    assert not world.sources["shop"].serving, "it follows, it does not serve"
    assert world.driver.running, "the recovered side goes on"
    other = World(tmp_path / "other")
    home = await failed_over(other, keeper, book)
    record, snapshot = await carry_out(other, keeper, Mode.REPROTECT, book, discard_divergent=True, **home)
    assert record.outcome is Outcome.COMPLETED
    assert Verb.PRESERVE not in other.sources["shop"].commands
    assert "discarded" in snapshot.state("preserve:shop").message


async def test_a_migration_loses_nothing(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    source = world.sources["shop"]
    source.write(7, b"not shipped yet" * 270)
    disk = bytes(source.disk)
    record, snapshot = await carry_out(world, keeper, Mode.MIGRATION, book)
    assert record.outcome is Outcome.COMPLETED, snapshot
    assert world.read("shop", snapshot.results["promote:shop"].branch) == disk
    assert measure(snapshot).rpo_seconds == 0.0
    assert source.fenced
    world.judge.verdict()


async def test_a_migration_that_fails_before_its_promotion_is_rolled_back_without_a_new_generation(
    tmp_path: Path,
) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    world.driver.broken.add("shop")
    record, _ = await carry_out(world, keeper, Mode.MIGRATION, book)
    assert record.state is RunState.STOPPED
    keeper.request(record.id, RequestKind.ROLLBACK, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.ROLLED_BACK
    assert world.sources["shop"].serving
    world.judge.verdict()


async def test_a_failback_is_rolled_back_before_its_switch_and_the_recovered_side_serves_on(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    book = runbook()
    home = await failed_over(world, keeper, book)
    run = create(keeper, Mode.FAILBACK, book, **home)
    work = executor(world, keeper, book)
    world.sources["shop"].refused.add(Verb.REVERSE)
    record = await work.execute(run)
    assert record.state is RunState.STOPPED
    keeper.request(run, RequestKind.ROLLBACK, "", "ann")
    record = await executor(world, keeper, book).execute(run)
    assert record.outcome is Outcome.ROLLED_BACK
    assert world.driver.running
    assert not world.sources["shop"].serving
    world.judge.verdict()


async def test_two_servers_fail_over_and_come_home_in_waves(tmp_path: Path) -> None:
    world, keeper = World(tmp_path, "db", "web"), MemoryKeeper()
    waves = [Wave(name="data", sources=["db"]), Wave(name="front", sources=["web"])]
    book = runbook("db", "web", waves=waves)
    home = await failed_over(world, keeper, book)
    assert [instance[:2] for instance in world.driver.launches] == ["db", "we"]
    record, snapshot = await carry_out(world, keeper, Mode.FAILBACK, book, **home)
    assert record.outcome is Outcome.COMPLETED, snapshot
    released = [snapshot.state(f"release:{name}").ended_ns for name in ("db", "web")]
    stopped = [snapshot.state(f"quiesce-recovered:{name}").ended_ns for name in ("db", "web")]
    assert released[0] < released[1]
    assert stopped[1] < stopped[0]
    world.judge.verdict()
