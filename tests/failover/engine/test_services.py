"""A source's own services: stopped and started on its host, in the runbook's order, and never from the Outpost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.control.messages import Verb
from drengine.failover.measure import measure
from drengine.failover.options import RunOptions
from drengine.failover.plan import plan
from drengine.failover.preflight.check import Scene
from drengine.failover.preflight.services import look_at_services
from drengine.failover.run import Outcome, RunState, Status
from drengine.failover.runbook.values import Mode, Runbook, Service
from drengine.failover.steps.step import Case
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import carry_out, way_home
from tests.failover.engine.world import World, runbook

SERVICES = [
    Service(name="database", stop=["systemctl", "stop", "postgresql"], start=["systemctl", "start", "postgresql"]),
    Service(name="shop", stop=["systemctl", "stop", "shop"], start=["systemctl", "start", "shop"]),
]


def served(*services: Service) -> Runbook:
    book = runbook(start=[])
    source = msgspec.structs.replace(book.sources["shop"], services=list(services))
    return msgspec.structs.replace(book, sources={"shop": source})


async def test_a_failback_stops_them_before_the_disks_are_touched_and_starts_them_in_charge(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), served(*SERVICES)
    failover, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert world.sources["shop"].ran == [], "a source that is lost is asked for nothing"
    record, snapshot = await carry_out(world, keeper, Mode.FAILBACK, book, **way_home(world, failover.id))
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.COMPLETED), snapshot
    assert measure(snapshot).not_started == ()
    source = world.sources["shop"]
    assert [words[1:] for words in source.ran] == [
        ["stop", "shop"],
        ["stop", "postgresql"],
        ["start", "postgresql"],
        ["start", "shop"],
    ]
    verbs = source.commands
    assert (
        max(n for n, verb in enumerate(verbs) if verb is Verb.RUN and n < verbs.index(Verb.PRESERVE))
        == verbs.index(Verb.RUN) + 1
    )
    assert verbs.index(Verb.RELEASE) < len(verbs) - 1 - verbs[::-1].index(Verb.RUN)
    stopped = snapshot.state("stop-services:shop")
    assert stopped.output == "shop: shop done\ndatabase: postgresql done", "what they said is in the report"


async def test_a_migration_stops_them_and_that_is_evidence_for_an_agent_that_only_watches(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.sources["shop"].cuts_clients = False
    record, snapshot = await carry_out(world, keeper, Mode.MIGRATION, served(*SERVICES))
    assert record.outcome is Outcome.COMPLETED, snapshot
    assert [words[1:] for words in world.sources["shop"].ran] == [["stop", "shop"], ["stop", "postgresql"]]


async def test_services_that_are_only_stopped_start_nothing(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    book = served(Service(name="shop", stop=["systemctl", "stop", "shop"]))
    failover, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    record, _ = await carry_out(world, keeper, Mode.FAILBACK, book, **way_home(world, failover.id))
    assert record.outcome is Outcome.HANDED_BACK


async def test_a_source_that_refuses_a_command_stops_the_run_before_anything_is_overwritten(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), served(*SERVICES)
    failover, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    world.sources["shop"].refused.add(Verb.RUN)
    record, snapshot = await carry_out(world, keeper, Mode.FAILBACK, book, **way_home(world, failover.id))
    assert record.state is RunState.STOPPED
    assert snapshot.state("stop-services:shop").status is Status.FAILED
    assert "shop on shop" in snapshot.state("stop-services:shop").message
    assert Verb.REVERSE not in world.sources["shop"].commands
    assert world.driver.running, "the recovered side serves on"


@pytest.mark.parametrize("mode", [Mode.REPROTECT, Mode.FAILBACK])
def test_the_plan_says_what_stops_and_in_which_order(mode: Mode) -> None:
    steps = {step.id: step for step in plan(mode, served(*SERVICES), {})}
    assert steps["stop-services:shop"].title == "stop shop, then database on shop"
    assert steps["preserve:shop"].needs == ("stop-services:shop",)
    assert "stop-services:shop" not in {step.id for step in plan(mode, served(), {})}


def scene(world: World, mode: Mode, book: Runbook) -> Scene:
    """What preflight looks at, as far as services go."""
    nothing: Any = None
    case = Case(mode, book, RunOptions(), "r", "ann", ())
    sources = tuple(book.sources)
    return Scene(case, plan(mode, book, {}), sources, world.site(), nothing, nothing, nothing, nothing)


async def seen(world: World, mode: Mode, book: Runbook) -> dict[str, tuple[bool, str]]:
    return {each.id: (each.ok, each.severity.value) for each in await look_at_services(scene(world, mode, book))}


async def test_what_the_source_would_refuse_is_known_before(tmp_path: Path) -> None:
    world, book = World(tmp_path), served(*SERVICES)
    source = world.sources["shop"]
    assert await seen(world, Mode.MIGRATION, book) == {"services-allowed:shop": (False, "warns")}, "it does not say"
    source.details = {"allowed_commands": ["systemctl * shop"]}
    assert await seen(world, Mode.MIGRATION, book) == {"services-allowed:shop": (False, "blocks")}
    source.details = {"allowed_commands": ["systemctl * shop", "systemctl * postgresql"]}
    assert await seen(world, Mode.FAILBACK, book) == {
        "services-allowed:shop": (True, "blocks"),
        "services-started:shop": (True, "warns"),
    }
    assert await seen(world, Mode.DRILL, book) == {}
    source.reachable = False
    assert "services-allowed:shop" not in await seen(world, Mode.MIGRATION, book), "another check speaks of that"


async def test_a_failback_that_would_start_nothing_is_warned_of_before(tmp_path: Path) -> None:
    assert await seen(World(tmp_path), Mode.FAILBACK, served()) == {"services-started:shop": (False, "warns")}
