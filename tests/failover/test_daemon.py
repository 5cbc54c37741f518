"""The orchestrator as a daemon: the parties' picture, drills on schedule, its own broker, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drengine.config import Address
from drengine.control.broker import embedded_broker
from drengine.control.config import OrchestratorBrokerOptions
from drengine.failover import daemon
from drengine.failover.config import OrchestratorConfig
from drengine.failover.daemon import SCHEDULER, Orchestrator
from drengine.failover.engine import Engine, open_engine
from drengine.failover.options import RunOptions
from drengine.failover.registry import Registry
from drengine.failover.run import Outcome, RequestKind, RunRecord, RunState, run_lease
from drengine.failover.snapshot import TAKEN_UP
from drengine.model.clock import SystemClock
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.control.site import Worker, free_port, options_for, party, until
from tests.persons import person

RUNBOOK = """\
version: 1
name: shop
schedule: "0 3 * * *"
sources:
  shop: {launch: {driver: command, settings: {start: ["true"]}}}
waves:
  - {name: all, sources: [shop]}
"""


def configured(folder: Path, port: int = 0) -> OrchestratorConfig:
    path = folder / "store"
    if not path.exists():
        Store.create(path).close()
    broker = OrchestratorBrokerOptions(address=Address("127.0.0.1", port) if port else None)
    return OrchestratorConfig(store=path, state=folder / "state", broker=broker)


@contextlib.asynccontextmanager
async def working(engine: Engine) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(engine)
    task = asyncio.create_task(orchestrator.run())
    try:
        yield orchestrator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_registry_learns_who_is_there_and_how_they_stand(tmp_path: Path) -> None:
    port = free_port()
    async with embedded_broker(Address("127.0.0.1", port)), open_engine(configured(tmp_path, port)) as engine:
        async with working(engine):
            async with party(options_for(port), Worker(tmp_path)):
                await until(lambda: [each for each in engine.registry.parties() if each.online and each.report])
            await until(lambda: not engine.registry.parties()[0].online, "its goodbye")
        assert engine.registry.parties()[0].report is not None


async def test_what_no_registry_can_hold_ends_no_daemon(tmp_path: Path) -> None:
    """A retained report is there again at each start."""
    port = free_port()
    worker = Worker(tmp_path)
    worker.generation = 1 << 63
    async with embedded_broker(Address("127.0.0.1", port)), open_engine(configured(tmp_path, port)) as engine:
        async with party(options_for(port), worker, name="bad"):
            await until(lambda: engine.agents.dropped, "its report")
            running = asyncio.create_task(Orchestrator(engine).run())
            async with party(options_for(port), Worker(tmp_path)):
                await until(lambda: [each for each in engine.registry.parties() if each.report], "another's report")
            assert not running.done()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert {each.name: each.report is not None for each in engine.registry.parties()} == {
            "bad": False,
            "shop": True,
        }


async def test_a_due_drill_begins_once_whoever_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "SCHEDULE_SECONDS", 1.0)
    clock = ManualClock(int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()) * 10**9)
    config = configured(tmp_path)
    async with open_engine(config, clock=clock) as one, open_engine(config, clock=clock) as two:
        one.registry.save_runbook("shop", RUNBOOK)

        async def pass_time(seconds: int) -> None:
            """In steps of a second, each with room for what happens in threads."""
            for _ in range(seconds):
                clock.advance(1.0)
                await asyncio.sleep(0.01)

        async with working(one), working(two):
            await pass_time(5)
            assert one.registry.runs() == []
            clock.advance(15 * 3600 - 30)
            await pass_time(30)
            await until(one.registry.runs, "the drill")
            await pass_time(20)
        runs = one.registry.runs()
        assert [(run.mode.value, run.started_by) for run in runs] == [("drill", SCHEDULER)]


async def test_runs_whose_executor_died_are_taken_up_and_one_that_a_person_interrupted_is_left_alone(
    tmp_path: Path,
) -> None:
    async with open_engine(configured(tmp_path), clock=SystemClock()) as engine:
        handed_over, interrupted, asked = (begun(engine, name) for name in ("shop", "mill", "mint"))
        registry, lease = engine.registry, engine.registry.acquire_lease
        registry.hand_over_lease(lease(run_lease(handed_over.id), engine.owner, 60))
        for run in (interrupted, asked):
            registry.release_lease(lease(run_lease(run.id), engine.owner, 60))
        registry.request(asked.id, RequestKind.ABORT, "", person("anna"))
        lively = begun(engine, "mail")
        assert [each.run.id for each in engine.abandoned()] == [handed_over.id], "what was asked just now is heeded yet"
        with engine.registry._database.writing() as connection:
            connection.exec_driver_sql("UPDATE requests SET at_ns = at_ns - 20000000000")
        async with working(engine) as orchestrator:
            await until(lambda: registry.run(handed_over.id).state is not RunState.RUNNING, "its end")
            await until(lambda: registry.run(asked.id).outcome is Outcome.ABORTED, "the abort")
        assert orchestrator.taken_up == 2
        assert registry.entries(interrupted.id) == registry.entries(lively.id) == []
        taken = [each.payload for each in registry.entries(handed_over.id) if each.payload.get("decision") == TAKEN_UP]
        assert taken == [{"decision": TAKEN_UP, "owner": engine.owner, "from": engine.owner}]


def begun(engine: Engine, name: str) -> RunRecord:
    text = RUNBOOK.replace("shop", name).replace('schedule: "0 3 * * *"\n', "")
    version = engine.registry.save_runbook(name, text)
    book = daemon.read_runbook(text, where=name)
    return engine.create_run(daemon.Mode.DRILL, book, version, person("anna"), RunOptions())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_brings_its_broker_serves_and_ends_when_told(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    config = configured(tmp_path)
    path = tmp_path / "orchestrator.toml"
    path.write_text(
        f'store = "{config.store}"\nstate = "{config.state}"\nrest = "127.0.0.1:{free_port()}"\n'
        f'[broker]\naddress = "127.0.0.1:{port}"\nembedded = true\n'
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "drengine.cli.main", "orchestrator", "run", "--config", str(path)]
    with subprocess.Popen(command, env=paths, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "orchestrator is ready" in line:
                break
        try:
            assert process.poll() is None, said

            async def seen() -> None:
                registry = Registry.open(config.registry_url, clock=SystemClock())
                async with party(options_for(port), Worker(tmp_path)):
                    await until(lambda: any(each.online for each in registry.parties()), "the agent")
                registry.close()

            asyncio.run(seen())
        finally:
            process.send_signal(number)
            rest = process.stderr.read()
        assert process.wait(30) == 0, rest
        assert "Traceback" not in rest
