"""The agent at a real broker: it obeys, it reports, and it does without."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from drengine.control.messages import Answer, Verb
from drengine.control.party import Party
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.metrics import AgentMetrics
from drengine_agent.daemon.remote import RemoteOrders
from drengine_agent.daemon.service import Agent
from tests.agent.daemon.test_service import configured, running, write
from tests.agent.replica import Replica
from tests.control.site import Mosquitto, options_for, orchestrator, until


@asynccontextmanager
async def remote(config: AgentConfig, replica: Replica, made: list[Party] | None = None) -> AsyncIterator[Agent]:
    async with running(config, replica) as agent:
        control = RemoteOrders(config, SystemClock(), Random(3))
        control.attach(agent, {"10.0.0.0/8": [1, 2]})
        if made is not None:
            made.append(control.party)
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
    config, replica, made = controlled(tmp_path, broker.port), Replica(), list[Party]()
    try:
        async with remote(config, replica, made) as agent, orchestrator(options_for(broker.port)) as agents:
            numbers = iter(range(100))

            async def order(verb: Verb, **arguments: object) -> dict[str, object]:
                answer = await agents.command(
                    "server", verb, arguments, generation=1, id=f"c{next(numbers)}", timeout_seconds=30
                )
                assert answer.ok, answer
                return answer.result

            await until(lambda: "server" in agents.reports() and agents.reports()["server"].state == "CONTINUOUS")
            assert agents.reports()["server"].details["bytes_by_network"] == {"10.0.0.0/8": [1, 2]}
            await write(config, 0, b"hello" * 100)
            assert (await order(Verb.CUT, label="by-hand"))["sequence"] == agent.status()["durable_sequence"]
            assert replica.points[-1].cut.label == "by-hand"
            await order(Verb.PAUSE)
            await until(lambda: agents.reports()["server"].state == "PAUSED", "the report of a pause")
            await order(Verb.RESUME)
            await until(lambda: agents.reports()["server"].state == "CONTINUOUS", "the report of going on")
            assert await order(Verb.THROTTLE, bandwidth="20MiB/s") == {"bandwidth": "20MiB/s"}
            assert agent.uplink.bandwidth.limit_bytes_per_second == 20 << 20
            await order(Verb.SYNC)
            assert (await order(Verb.STATUS))["source"] == "server"
            wrong = await agents.command(
                "server", Verb.THROTTLE, {"bandwidth": "much"}, generation=1, id="w", timeout_seconds=30
            )
            assert (wrong.ok, wrong.code) == (False, "bad-bandwidth-schedule")
            lacking = await agents.command("server", Verb.THROTTLE, {}, generation=1, id="l", timeout_seconds=30)
            assert (lacking.ok, lacking.code) == (False, "command-dropped")
            metrics = AgentMetrics("server")
            metrics.watch(agent)
            metrics.watch_party(made[0])
            text = metrics.render().decode()
            assert 'drengine_agent_commands_total{outcome="failed",source="server",verb="throttle"} 2.0' in text
            assert 'drengine_agent_broker_connected{source="server"} 1.0' in text
    finally:
        broker.kill()


@pytest.mark.fault(43)
@pytest.mark.fault(50)
async def test_a_source_is_fenced_and_released_over_the_broker_and_a_replayed_fence_does_nothing(
    tmp_path: Path,
) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    config, replica = controlled(tmp_path, broker.port), Replica()
    try:
        async with remote(config, replica) as agent, orchestrator(options_for(broker.port)) as agents:

            async def order(verb: Verb, id: str, under: int, **arguments: object) -> Answer:
                return await agents.command("server", verb, arguments, generation=under, id=id, timeout_seconds=30)

            await until(lambda: "server" in agents.reports() and agents.reports()["server"].serving, "serving")
            await write(config, 0, b"the last word" * 10)
            quiet = await order(Verb.QUIESCE, "q", 1, label="switch")
            assert quiet.result["point"] == f"1-{quiet.result['sequence']}"
            assert not agent.is_serving
            fenced = await order(Verb.FENCE, "f", 1, generation=1)
            assert fenced.result == {"generation": 1, "cuts_clients": True}
            await until(lambda: agents.reports()["server"].fenced, "the report of being fenced")
            with pytest.raises((DrengineError, OSError)):
                await write(config, 0, b"too late")
            released = await order(Verb.RELEASE, "r", 3, generation=3, branch=3, force=True)
            assert released.result == {"generation": 3}
            await until(lambda: agents.reports()["server"].serving and agents.reports()["server"].generation == 3)
            assert await order(Verb.FENCE, "f", 1, generation=1) == fenced
            stale = await order(Verb.FENCE, "late", 1, generation=1)
            assert (stale.ok, stale.code) == (False, "command-dropped")
            assert agent.is_serving
            refused = await order(Verb.PRESERVE, "p", 3, branch=4, generation=4)
            assert (refused.ok, refused.code) == (False, "source-fenced")
            refused = await order(Verb.REVERSE, "v", 3, point="3-1")
            assert (refused.ok, refused.code) == (False, "source-fenced")
    finally:
        broker.kill()


@pytest.mark.fault(47)
async def test_a_source_with_a_lease_stops_serving_when_the_broker_hears_nothing_of_it(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    config, replica = controlled(tmp_path, broker.port), Replica()
    config = replace(config, control=replace(config.control, lease=1.5))
    async with running(config, replica) as agent:
        control = RemoteOrders(config, SystemClock(), Random(3))
        control.attach(agent, {"10.0.0.0/8": [1, 2]})
        party, lease = asyncio.create_task(control.run()), asyncio.create_task(control.keep_lease())
        await control.lease.begun()
        await until(lambda: agent.is_serving)
        await asyncio.sleep(2.0)  # longer than the lease: reports keep it alive
        assert agent.is_serving
        broker.kill()
        await until(lambda: agent.is_fenced and not agent.is_serving, "self-fencing")
        assert agent.status()["fence_reason"] == "lease"
        broker.start()
        await until(lambda: control.party.link.is_connected)
        assert agent.is_fenced
        party.cancel()
        await asyncio.gather(party, lease, return_exceptions=True)
    async with running(config, replica) as agent:
        assert agent.is_fenced
        assert not agent.is_serving
    broker.kill()


async def test_an_agent_with_a_lease_serves_nobody_before_the_broker_has_heard_of_it(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    config = tmp_path / "agent.toml"
    config.write_text(
        f'''source = "server"
target = "127.0.0.1:1"
state_directory = "{tmp_path}/state"
[nbd]
listen = "unix:{tmp_path}/n.sock"
[control]
address = "127.0.0.1:{broker.port}"
lease = "5s"
[[volume]]
name = "disk"
path = "{disk}"
'''
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "drengine_agent", "run", "--config", str(config)]
    with subprocess.Popen(command, env=paths, stderr=subprocess.PIPE) as process:  # noqa: ASYNC220 - it is short
        try:
            assert process.stderr is not None
            line = await asyncio.to_thread(process.stderr.readline)
            assert b"not reachable" in line
            assert not (tmp_path / "n.sock").exists()
            broker.start()
            await until((tmp_path / "n.sock").exists, "serving")
        finally:
            process.kill()
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
    broker = "('paho', 'aiomqtt', 'aiofiles')"
    code = f"import sys, drengine_agent.daemon.main; sys.exit(any(m in sys.modules for m in {broker}))"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=paths).returncode == 0
