"""An orchestrator in a process of its own, killed at a position of its journal, and the next one that goes on.

Position 2n is right before the n-th entry is written, 2n+1 right after: between an intent and its result lies the
action, between a result and the next intent the decision.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from drengine.failover.executor import Executor
from drengine.failover.registry import Registry
from drengine.failover.run import JournalEntry, Outcome, RequestKind, RunRecord, RunState, Status, new_run_id
from drengine.failover.runbook.values import Mode, Runbook, Wave
from drengine.failover.snapshot import observe
from drengine.failover.steps.step import Site
from drengine.model.clock import SystemClock
from drengine.model.grants import Access
from drengine.store.store import Store
from tests.failover.engine.remote import RemoteAgents, RemoteDriver, WorldServer
from tests.failover.engine.runs import way_home
from tests.failover.engine.world import Death, World, runbook, unseen
from tests.persons import BOB

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.failover.engine.kill"])
ONE_READER = threading.Lock()
"""A process that starts also asks how all the others ended (multiprocessing does that). Of two threads that read the
same pipe, one finds it empty and takes the process for one that ended with 255."""

NEVER = 1 << 30
SECONDS_MAX = 60.0
RESUMED_MAX = 3
"""How often a person goes on with a run that stopped because an agent died."""


class DyingRegistry:
    """A registry whose process is killed at a position of the journal."""

    def __init__(self, real: Registry, position: int) -> None:
        self._real, self._position, self._at = real, position, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def append(self, run: str, token: int, entry: JournalEntry) -> int:
        self._maybe_die()
        seq = self._real.append(run, token, entry)
        self._maybe_die()
        return seq

    def leave_run(self, *given: Any, **more: Any) -> bool:
        self._maybe_die()
        left = self._real.leave_run(*given, **more)
        self._maybe_die()
        return left

    def _maybe_die(self) -> None:
        if self._at == self._position:
            os.kill(os.getpid(), signal.SIGKILL)
        self._at += 1


def orchestrate(directory: Path, run: str, book: Runbook, position: int) -> None:
    """The life of an orchestrator's process."""
    registry = Registry.open(f"sqlite:///{directory}/registry.sqlite", clock=SystemClock())
    with Store.open(directory / "store") as store:
        keeper: Any = DyingRegistry(registry, position)
        site = remote_site(directory, store)
        executor = Executor(keeper, site, book, owner="orchestrator", poll_seconds=0.02)
        asyncio.run(executor.execute(run))


def remote_site(directory: Path, store: Store) -> Site:
    """A store of one's own, and the world of another process."""
    return Site(
        store=store,
        agents=RemoteAgents(directory / "world"),
        drivers={"simulated": RemoteDriver(directory / "world")},
        exporting=lambda: lambda source, volume, branch, secret: f"nbd://test/{source}/{volume}#{branch}~{secret}",
        directory=directory / "instances",
        clock=SystemClock(),
        preflight=unseen,
    )


@dataclass
class Ended:
    """How a story ended, apart from names and times.

    Attributes:
        entries: of the run's journal.
        kills: how often a process was killed.
        orders: how many commands the new host's agent was given.
    """

    state: dict[str, Any]
    entries: int
    kills: int
    orders: int = 0


def story(
    directory: Path,
    mode: Mode,
    kills: list[int],
    names: tuple[str, ...] = ("db", "web"),
    *,
    back: bool = False,
    onto: str = "",
    agent_dies: Death | None = None,
) -> Ended:
    """A run of a world, its orchestrator killed at each of the positions in turn, then left in peace.

    `back`: the run is rolled back after it was completed, and the kills are while that happens. `onto`: the host that
    becomes the home of the first source, whose own is lost unless it is a migration; in the end that one is switched
    on again. `agent_dies`: when the new host's agent is killed.
    """
    world = World(directory, *names)
    server = WorldServer(world, directory / "world")
    book = runbook(*names, waves=[Wave(name=f"wave-{name}", sources=[name]) for name in names])
    registry = Registry.open(f"sqlite:///{directory}/registry.sqlite", clock=SystemClock())
    try:
        options: dict[str, Any] = {}
        for source in world.sources.values():
            source.write(7, b"never shipped" * 300)
        if mode.is_way_home:
            first = begin_run(registry, Mode.FAILOVER, book, {})
            assert _process(directory, first, book, NEVER) == 0
            for number, instance in enumerate(sorted(world.driver.running)):
                world.driver.write(instance, 10 + number, b"recovered" * 455)
            options = way_home(world, first)
        if onto:
            if mode.is_way_home:
                world.sources[names[0]].die()
            options["onto"] = {names[0]: {"host": onto}}
            world.spare.death = agent_dies
        run = begin_run(registry, mode, book, options)
        if back:
            assert _process(directory, run, book, NEVER) == 0
            registry.request(run, RequestKind.ROLLBACK, "", BOB)
        killed = 0
        for position in kills:
            if _process(directory, run, book, position) == -signal.SIGKILL:
                killed += 1
        for _ in range(RESUMED_MAX):
            code = _process(directory, run, book, NEVER)
            assert code == 0, f"the orchestrator ended with {code}"
            if registry.run(run).state is not RunState.STOPPED:
                break
            registry.request(run, RequestKind.RESUME, "", BOB)
        orders = world.spare.orders
        if onto and mode is not Mode.REPROTECT:
            _old_host_returns(world, names[0], onto)
        world.judge.verdict()
        assert not [grant for grant in world.store.grants.living() if grant.access is not Access.WRITE], "left behind"
        return Ended(_state(world, registry, run, back), len(registry.entries(run)), killed, orders)
    finally:
        server.close()
        registry.close()
        world.store.close()


def _old_host_returns(world: World, source: str, onto: str) -> None:
    """It may have lost its state, and with it that it was fenced: nothing that it has reaches the store."""
    old, new = world.sources[source], world.agents.sources[onto]
    point = new.ship("at home")
    assert point is not None and new.serving and not old.serving
    old.generation, old.branch = world.store.source(source).generation, world.store.source(source).active_branch
    old.reachable = True
    assert old.ship("from the old host") is None
    assert world.store.home(source) == (onto, {source})


def begin_run(registry: Registry, mode: Mode, book: Runbook, options: dict[str, Any]) -> str:
    now_ns = SystemClock().now_ns()
    run = RunRecord(
        id=new_run_id(book.name, now_ns) + secrets.token_hex(2),
        mode=mode,
        runbook=book.name,
        version="v1",
        sources=tuple(book.sources),
        started_by="campaign",
        created_ns=now_ns,
        options=options,
    )
    registry.create_run(run)
    return run.id


def _process(directory: Path, run: str, book: Runbook, position: int) -> int:
    return life(orchestrate, directory, run, book, position)


def life(target: Callable[..., None], *arguments: Any) -> int:
    """Lets a process live, and returns how it ended. Threads may call this at the same time."""
    process = PROCESSES.Process(target=target, args=arguments)
    with ONE_READER:
        process.start()
    ended = wait([process.sentinel], SECONDS_MAX)
    with ONE_READER:
        if not ended:
            process.kill()
            raise AssertionError("the process hangs")
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def _state(world: World, registry: Registry, run: str, back: bool) -> dict[str, Any]:
    """Everything that must be the same, however often the orchestrator was killed."""
    record = registry.run(run)
    snapshot = observe(registry.entries(run), [], (), 0)
    assert record.outcome is (Outcome.ROLLED_BACK if back else Outcome.COMPLETED), [
        (s.step.id, s.status, s.message) for s in snapshot.steps
    ]
    branches = {
        name: [(each.role, each.label.count(":"), each.closed, each.active) for each in world.store.branches(name)]
        for name in world.sources
    }
    return {
        "steps": [(each.step.id, each.status is Status.DONE) for each in snapshot.steps],
        "generations": {name: world.store.source(name).generation for name in world.sources},
        "branches": branches,
        "contents": {name: world.read(name, world.store.source(name).active_branch) for name in world.sources},
        "sources": {
            name: (each.serving, each.fenced, each.generation, bytes(each.disk), sorted(each.commands))
            for name, each in world.agents.sources.items()
        },
        "launches": len(world.driver.launches),
        "running": sorted(request.source for request in world.driver.running.values()),
    }
