"""A planned switch and the way home over a real broker that is killed as each step begins (fault 49)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.errors import COMMAND_DROPPED
from drengine.control.messages import Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.failover.run import Event, JournalEntry, Outcome, RequestKind, RunState
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.steps.step import Site
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.control.site import Mosquitto, options_for, orchestrator, until
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import create, executor, way_home
from tests.failover.engine.world import BLOCK, SimulatedSource, World, runbook

VERBS = (Verb.QUIESCE, Verb.FENCE, Verb.PRESERVE, Verb.REVERSE, Verb.RELEASE)
TRIES = 6
TALKING = frozenset({"quiesce-source", "fence", "preserve", "reverse", "reverse-last", "release"})
"""Kinds of steps that tell the agent something; the others need no broker, and meet its death all at once."""


def party_of(source: SimulatedSource, port: int, memory: Path) -> Party:
    """A simulated source at a real broker."""

    async def act(command: Command, tell: Tell) -> Mapping[str, Any]:
        answer = await asyncio.to_thread(source.obey, command.id, command.verb, command.arguments, command.generation)
        if not answer.ok:
            raise DrengineError(COMMAND_DROPPED, f"{answer.code}: {answer.message}")
        return answer.result

    return Party(
        options_for(port),
        PartyKind.AGENT,
        source.name,
        actions={verb: Action(act, Generations.ANY) for verb in VERBS},
        report=source.report,
        log=memory,
        clock=SystemClock(),
        random=Random(1),
        report_seconds=0.5,
    )


@contextlib.asynccontextmanager
async def broken_at(world: World, broker: Mosquitto, keeper: MemoryKeeper, steps: set[str]) -> AsyncIterator[Site]:
    """The world's site with its parties at a broker that dies when one of these steps is about to be tried first."""
    loop, struck = asyncio.get_running_loop(), Counter[str]()
    restarts: list[asyncio.Future[None]] = []

    def strike(entry: JournalEntry) -> None:
        if entry.event is Event.INTENT and entry.step in steps and not struck[entry.step]:
            struck[entry.step] += 1
            broker.kill()
            restarts.append(asyncio.run_coroutine_threadsafe(come_back(), loop))  # type: ignore[arg-type]

    async def come_back() -> None:
        await asyncio.sleep(0.3)
        await asyncio.to_thread(broker.start)

    broker.start()
    memory = world.directory / "commands"
    party = party_of(world.sources["shop"], broker.port, memory)
    running = asyncio.create_task(party.run())
    try:
        async with orchestrator(options_for(broker.port)) as agents:
            await until(lambda: agents.is_online("shop") and "shop" in agents.reports(), "the agent")
            keeper.on_append = strike
            yield dataclasses.replace(world.site(), agents=agents)
            keeper.on_append = lambda entry: None
            assert set(struck) == steps
            await until(lambda: agents.is_online("shop"), "the broker's return")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        broker.kill()


async def insist(
    world: World, keeper: MemoryKeeper, site: Site, mode: Mode, book: Runbook, **options: Any
) -> tuple[str, int]:
    """Carry a run out as people would: when it stops because the broker is away, go on with it."""
    run = create(keeper, mode, book, **options)
    for tries in range(1, TRIES + 1):
        record = await executor(world, keeper, book, site=site).execute(run)
        if record.state is RunState.FINISHED:
            assert record.outcome is Outcome.COMPLETED, record
            return run, tries
        await asyncio.sleep(0.5)
        keeper.request(run, RequestKind.RESUME, "", "ann")
    raise AssertionError(f"{run} never ended: {record}")


async def there_and_back(folder: Path, steps: set[str]) -> list[str]:
    """Migrate, write on the other side, come home; gives the steps in their order."""
    world, keeper, book = World(folder), MemoryKeeper(), runbook()
    source, broker = world.sources["shop"], Mosquitto(folder)
    source.write(7, b"not shipped yet" * 270)
    disk = bytes(source.disk)
    async with broken_at(world, broker, keeper, steps) as site:
        there, _ = await insist(world, keeper, site, Mode.MIGRATION, book)
        promoted = world.store.source("shop").active_branch
        assert world.read("shop", promoted) == disk, "a migration loses nothing"
        (instance,) = world.driver.running
        world.driver.write(instance, 10, b"recovered" * 455)
        home, _ = await insist(world, keeper, site, Mode.FAILBACK, book, **way_home(world, there))
    assert (source.serving, source.generation, source.fenced) == (True, 3, False)
    assert source.disk[10 * BLOCK : 10 * BLOCK + 9] == b"recovered"
    assert bytes(source.disk) == world.read("shop", world.store.source("shop").active_branch)
    assert world.store.source("shop").generation == 3, "each switch raised the generation once"
    assert source.commands.count(Verb.RELEASE) == 1
    assert len(world.driver.launches) == 1
    world.judge.verdict()
    entries = [*keeper.entries(there), *keeper.entries(home)]
    return list(dict.fromkeys(entry.step for entry in entries if entry.event is Event.INTENT))


@pytest.mark.fault(49)
@pytest.mark.timeout(300)
async def test_a_broker_that_dies_as_any_step_begins_neither_stops_nor_doubles_anything(tmp_path: Path) -> None:
    steps = await there_and_back(made(tmp_path / "undisturbed"), set())
    assert {"quiesce-source:shop", "fence:shop", "reverse:shop", "release:shop"} <= set(steps)
    talking = [step for step in steps if step.partition(":")[0] in TALKING]
    for number, step in enumerate(talking):
        await there_and_back(made(tmp_path / str(number)), {step})
    await there_and_back(made(tmp_path / "all"), set(steps))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder
