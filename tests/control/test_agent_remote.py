"""The agent at a real broker: it obeys, it reports, and it does without."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from drengine.control.messages import Verb
from drengine.model.clock import SystemClock
from drengine_agent.config import AgentConfig
from drengine_agent.remote import RemoteControl
from drengine_agent.service import Agent
from tests.agent.replica import Replica
from tests.agent.test_service import configured, running, write
from tests.control.site import Mosquitto, options_for, orchestrator, until


@asynccontextmanager
async def remote(config: AgentConfig, replica: Replica) -> AsyncIterator[Agent]:
    async with running(config, replica) as agent:
        control = RemoteControl(config, SystemClock(), Random(3))
        control.control(agent)
        party = asyncio.create_task(control.run())
        try:
            yield agent
        finally:
            party.cancel()
            await asyncio.gather(party, return_exceptions=True)


def controlled(folder: Path, port: int) -> AgentConfig:
    return configured(folder, control={"address": f"127.0.0.1:{port}", "report_interval": "500ms"})


async def test_every_verb_of_an_agent_does_what_it_says(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    config, replica = controlled(tmp_path, broker.port), Replica()
    try:
        async with remote(config, replica) as agent, orchestrator(options_for(broker.port)) as agents:
            numbers = iter(range(100))

            async def order(verb: Verb, **arguments: object) -> dict[str, object]:
                answer = await agents.command(
                    "server", verb, arguments, generation=1, id=f"c{next(numbers)}", timeout_seconds=30
                )
                assert answer.ok, answer
                return answer.result

            await until(lambda: "server" in agents.reports() and agents.reports()["server"].state == "CONTINUOUS")
            await write(config, 0, b"hello" * 100)
            assert (await order(Verb.CUT, label="by-hand"))["sequence"] == agent.status()["durable_sequence"]
            assert replica.points[-1].cut.label == "by-hand"
            await order(Verb.PAUSE)
            await until(lambda: agents.reports()["server"].state == "PAUSED", "the report of a pause")
            await order(Verb.RESUME)
            await until(lambda: agents.reports()["server"].state == "CONTINUOUS", "the report of going on")
            assert await order(Verb.THROTTLE, bandwidth="20MiB/s") == {"bandwidth": "20MiB/s"}
            assert agent.bandwidth.limit_bytes_per_second == 20 << 20
            await order(Verb.SYNC)
            assert (await order(Verb.STATUS))["source"] == "server"
            wrong = await agents.command(
                "server", Verb.THROTTLE, {"bandwidth": "much"}, generation=1, id="w", timeout_seconds=30
            )
            assert (wrong.ok, wrong.code) == (False, "bad-bandwidth-schedule")
            lacking = await agents.command("server", Verb.THROTTLE, {}, generation=1, id="l", timeout_seconds=30)
            assert (lacking.ok, lacking.code) == (False, "command-dropped")
    finally:
        broker.kill()


async def test_replication_goes_on_without_the_broker_and_control_comes_back_with_it(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    config, replica = controlled(tmp_path, broker.port), Replica()
    async with remote(config, replica) as agent:
        await until(lambda: agent.status()["state"] == "CONTINUOUS")
        cuts = len(replica.points)
        await write(config, 4096, b"no broker yet")
        await until(lambda: len(replica.points) > cuts, "a point without a broker")
        broker.start()
        try:
            async with orchestrator(options_for(broker.port)) as agents:
                await until(lambda: agents.is_online("server"), "the agent at a broker that came late")
        finally:
            broker.kill()


def test_an_agent_that_is_told_no_broker_does_not_load_what_speaks_to_one() -> None:
    code = "import sys, drengine_agent.daemon; sys.exit(any(m in sys.modules for m in ('paho', 'aiomqtt', 'aiofiles')))"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=paths).returncode == 0
