"""Whole runs in every mode, against a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from drengine.failover.run import Outcome, RunState
from drengine.failover.runbook.values import Mode
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import carry_out
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
    assert snapshot.results["fence:shop"]["evidence"] == "agent"
    assert world.store.source("shop").generation == 2
    (instance,) = world.driver.running
    world.driver.write(instance, 3, b"r" * BLOCK)
    source = world.sources["shop"]
    assert (source.serving, source.fenced) == (False, True)
    assert source.ship() is None
    world.judge.verdict()
