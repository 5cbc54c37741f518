"""Sources that move to new hosts: which steps, one writer at every instant, and what becomes of the hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.control.messages import Verb
from drengine.failover.errors import UNFENCED
from drengine.failover.plan import plan
from drengine.failover.run import Outcome, RequestKind, RunState
from drengine.failover.runbook.values import Fence, HostFence, Mode
from drengine.failover.snapshot import Snapshot
from drengine.model.homes import Home
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import carry_out, executor, seen, way_home
from tests.failover.engine.world import BLOCK, World, runbook

ONTO: dict[str, Any] = {"onto": {"shop": {"host": "spare"}}}


def messages(snapshot: Snapshot) -> list[tuple[str, str]]:
    return [(each.step.id, each.message) for each in snapshot.steps]


async def failed_over(world: World, keeper: MemoryKeeper) -> dict[str, Any]:
    run, _ = await carry_out(world, keeper, Mode.FAILOVER, runbook("shop"))
    assert run.outcome is Outcome.COMPLETED
    world.driver.write(next(iter(world.driver.running)), 9, b"written here")
    return way_home(world, run.id)


def lives_on_the_spare_host(world: World) -> None:
    assert world.store.home("shop") == Home("spare", frozenset({"shop"}))
    assert (world.spare.serving, world.sources["shop"].serving) == (True, False)
    world.spare.write(12, b"at home")
    assert world.spare.ship() is not None
    assert world.read("shop", world.store.source("shop").active_branch) == bytes(world.spare.disk)
    world.judge.verdict()


def test_the_steps_of_moves() -> None:
    def ids(mode: Mode, *names: str, **onto: str) -> list[str]:
        options = {"onto": {source: {"host": host} for source, host in onto.items()}}
        return [each.id for each in plan(mode, runbook(*names), options)]

    assert ids(Mode.FAILBACK, "shop", shop="spare") == [
        "declare", "preflight", "fence:shop", "settle:shop", "reverse:shop", "quiesce-recovered:shop",
        "reverse-last:shop", "hand-back:shop", "release:shop", "stop-workload:shop",
    ]  # fmt: skip
    assert ids(Mode.MIGRATION, "shop", shop="spare") == [
        "declare", "preflight", "settle:shop", "reverse:shop", "quiesce-source:shop", "fence:shop",
        "reverse-last:shop", "hand-back:shop", "release:shop",
    ]  # fmt: skip
    mixed = ids(Mode.REPROTECT, "db", "web", web="spare")
    assert [each for each in mixed if each.endswith(":web")] == ["fence:web", "settle:web", "reverse:web"]
    assert [each for each in mixed if each.endswith(":db")] == ["fence:db", "preserve:db", "reverse:db"]


async def test_a_lost_source_comes_home_to_a_new_host_that_was_filled_before(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    options = await failed_over(world, keeper) | ONTO
    world.sources["shop"].die()
    filled, snapshot = await carry_out(world, keeper, Mode.REPROTECT, runbook("shop"), **options)
    assert filled.outcome is Outcome.COMPLETED, messages(snapshot)
    assert world.store.home("shop").agent == "shop", "a host that is only filled is nobody's home yet"
    before = world.spare.shipped_back
    world.driver.write(next(iter(world.driver.running)), 10, b"since")
    home, snapshot = await carry_out(world, keeper, Mode.FAILBACK, runbook("shop"), **options)
    assert home.outcome is Outcome.COMPLETED, messages(snapshot)
    assert world.spare.shipped_back - before == BLOCK, "only what has changed since travels"
    assert not world.driver.running
    lives_on_the_spare_host(world)


async def test_a_source_moves_from_host_to_host_and_nothing_is_lost(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.sources["shop"].write(20, b"last words")
    moved, snapshot = await carry_out(world, keeper, Mode.MIGRATION, runbook("shop"), **ONTO)
    assert moved.outcome is Outcome.COMPLETED, messages(snapshot)
    assert world.sources["shop"].fenced and not world.driver.launches
    assert bytes(world.spare.disk[20 * BLOCK : 20 * BLOCK + 10]) == b"last words"
    lives_on_the_spare_host(world)
    # It is a source like any other from then on: over, and home to where it lives.
    options = await failed_over(world, keeper)
    home, snapshot = await carry_out(world, keeper, Mode.FAILBACK, runbook("shop"), **options)
    assert home.outcome is Outcome.COMPLETED, messages(snapshot)
    assert Verb.PRESERVE in world.spare.commands
    lives_on_the_spare_host(world)


async def test_the_fence_of_the_host_that_a_source_left_is_never_run(tmp_path: Path) -> None:
    """It ends with 0, because that machine is scrap; and the source goes on where it lives."""
    world, keeper = World(tmp_path), MemoryKeeper()
    await carry_out(world, keeper, Mode.MIGRATION, runbook("shop"), **ONTO)
    world.spare.cut_off()
    wrong, right = tmp_path / "old is off", tmp_path / "new is off"
    book = runbook("shop", fence=["touch", str(wrong)])
    stopped, snapshot = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert (stopped.outcome, snapshot.state("fence:shop").code) == (Outcome.BLOCKED, UNFENCED.id)
    assert "shop lives on spare, and the runbook's fence is for shop" in snapshot.state("fence:shop").message
    assert world.spare.serving and not world.driver.launches
    forced, snapshot = await carry_out(world, MemoryKeeper(), Mode.FAILOVER, book, force=True)
    assert (forced.outcome, snapshot.results["fence:shop"].evidence) == (Outcome.COMPLETED, "none")
    assert not wrong.exists()

    other = World(tmp_path / "other")
    await carry_out(other, keeper, Mode.MIGRATION, runbook("shop"), **ONTO)
    other.spare.die()
    homes = {"spare": HostFence(command=["touch", str(right)])}
    fence = Fence(command=["touch", str(wrong)], homes=homes)
    book = msgspec.structs.replace(book, sources={"shop": msgspec.structs.replace(book.sources["shop"], fence=fence)})
    over, snapshot = await carry_out(other, keeper, Mode.FAILOVER, book, homes={"shop": "spare"})
    assert (over.outcome, snapshot.results["fence:shop"].evidence) == (Outcome.COMPLETED, "command")
    assert (wrong.exists(), right.exists()) == (False, True)
    # Whoever moved it since the run began: what was decided then is not for the host of now.
    stale, snapshot = await carry_out(World(tmp_path / "stale"), keeper, Mode.FAILOVER, book, homes={"shop": "spare"})
    assert "the runbook's fence" not in snapshot.state("fence:shop").message, "its agent has answered"
    assert stale.outcome is Outcome.COMPLETED


async def test_a_move_that_fails_before_the_hand_over_is_rolled_back(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.spare.fail_after = 1
    stopped, snapshot = await carry_out(world, keeper, Mode.MIGRATION, runbook("shop"), **ONTO)
    assert stopped.state is RunState.STOPPED, messages(snapshot)
    assert next(each for each in snapshot.steps if each.step.id == "reverse-last:shop").message
    assert not world.sources["shop"].serving
    keeper.request(stopped.id, RequestKind.ROLLBACK, "", "tester")
    undone = await executor(world, keeper, runbook("shop")).execute(stopped.id)
    assert undone.outcome is Outcome.ROLLED_BACK, messages(seen(keeper, stopped.id))
    assert world.sources["shop"].serving and world.store.home("shop").agent == "shop"
    assert not world.spare.serving
    world.judge.verdict()


@pytest.mark.parametrize("answers", [True, False])
async def test_an_old_host_that_is_there_all_the_same_is_fenced(tmp_path: Path, answers: bool) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    options = await failed_over(world, keeper) | ONTO
    old = world.sources["shop"]
    old.come_back()
    if not answers:
        old.refused.add(Verb.FENCE)
    run, snapshot = await carry_out(world, keeper, Mode.FAILBACK, runbook("shop", retries=0), **options)
    if answers:
        assert run.outcome is Outcome.COMPLETED, messages(snapshot)
        lives_on_the_spare_host(world)
        assert old.ship() is None
    else:
        assert (run.state, run.outcome) == (RunState.STOPPED, Outcome.BLOCKED), messages(snapshot)
        assert world.store.home("shop").agent == "shop"
