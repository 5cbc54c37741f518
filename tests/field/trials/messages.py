"""A broker that dies, clients that take over, garbage that stays, and orchestrators beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from random import Random

import aiomqtt

from demo.story import free_port
from drengine.control.agents import BrokerAgents
from drengine.control.messages import PartyKind, Verb
from drengine.control.topics import Leaf, Topic
from tests.control.site import Mosquitto, options_for
from tests.field.engine import Engine, mosquitto_of
from tests.field.ground import DRENGINE, Ground, Pair
from tests.field.load import scatter
from tests.field.trial import trial

MIB = 1 << 20
TAKEOVERS = 30
KILLS = 7
LINES_MAX = 400
INTERNAL = 125
ROOT_TOPIC = "drengine/main"


@trial(seconds_max=150)
def takeovers_of_an_agents_connection_end_in_a_connected_agent(ground: Ground) -> None:
    """Another client takes the agent's connection over, again and again: it comes back, and a command is done once."""
    pair, broker = _pair(ground)
    asyncio.run(_take_over(ground, pair, broker.port))
    scatter(ground, pair, "data", 20)
    pair.until_continuous()
    pair.until_equal()
    labelled = [each for each in pair.points() if each.label == "once"]
    assert len(labelled) == 1, f"{len(labelled)} points of one command"
    lines = (ground.folder / "agent.log").read_text().count("\n")
    assert lines < LINES_MAX, f"{lines} log lines"
    ground.measured |= {"takeovers": ground.times(TAKEOVERS), "log lines": lines}


async def _take_over(ground: Ground, pair: Pair, port: int) -> None:
    async with BrokerAgents(options_for(port), random=Random(ground.seed)) as agents:
        await _online(agents, pair)
        for number in range(ground.times(TAKEOVERS)):
            _, presence = agents.presences()[pair.source]
            rival = f"agent-{pair.source}-{presence.instance[:8]}"
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client("127.0.0.1", port, identifier=rival, timeout=5.0):
                    await asyncio.sleep(0.05 * (number % 3))
        await _online(agents, pair)
        done = await asyncio.gather(
            *(
                agents.command(
                    pair.source, Verb.CUT, {"label": "once"}, generation=1, id="cut-once", timeout_seconds=60
                )
                for _ in range(3)
            )
        )
        assert all(each.ok for each in done), done
        assert len({json.dumps(dict(each.result), sort_keys=True) for each in done}) == 1, done


@trial(seconds_max=150)
def retained_garbage_moves_nobody(ground: Ground) -> None:
    """Retained garbage and stale commands lie on every topic: nothing of it is carried out, and work goes on."""
    broker = mosquitto_of(ground)
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB)}, agent=_control(broker.port))
    asyncio.run(_litter(ground, pair, broker.port))
    engine = Engine(ground, pair, broker=broker.port, rest=f"127.0.0.1:{free_port()}")
    ground.site.start("orchestrator", DRENGINE, "orchestrator", "run", "--config", str(engine.file))
    pair.start()
    assert engine.say("drill", str(engine.runbook)).json()["outcome"] == "completed"

    async def cut() -> None:
        async with BrokerAgents(options_for(broker.port), random=Random(ground.seed)) as agents:
            await _online(agents, pair)
            answer = await agents.command(
                pair.source, Verb.CUT, {"label": "asked"}, generation=1, id="new", timeout_seconds=60
            )
            assert answer.ok, answer

    asyncio.run(cut())
    status = pair.status()
    assert status["state"] == "CONTINUOUS", status
    assert {each.label for each in pair.points()} <= {"", "asked"}
    for log in ("agent.log", "orchestrator.log"):
        text = (ground.folder / log).read_text()
        assert "Traceback" not in text, text[-2000:]


async def _litter(ground: Ground, pair: Pair, port: int) -> None:
    """What brokers keep."""
    command = {"id": "stale", "verb": "fence", "generation": 1, "expires_ns": 2**62, "arguments": {}, "run": ""}
    cut = {**command, "id": "stale-cut", "verb": "cut", "arguments": {"label": "stale"}}
    garbage = [
        b"\0" * 100, b"{", b"[]", b"null", b"[" * 5000, ground.rng.randbytes(100_000), b'{"online": "maybe"}',
        b'{"online": true, "instance": 5}', b'{"sequence": -1e400}', "\ud800".encode("utf-8", "surrogatepass"),
        json.dumps({"online": False, "instance": "x", "since_ns": -(2**70)}).encode(), b"1" * 5000,
    ]  # fmt: skip
    async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        for kind in PartyKind:
            for name in (pair.source, "nobody", "x" * 63):
                for leaf in Leaf:
                    topic = f"{ROOT_TOPIC}/{kind}/{name}/{leaf}"
                    await client.publish(topic, ground.rng.choice(garbage), 1, retain=True)
        for number, payload in enumerate(garbage):
            await client.publish(f"{ROOT_TOPIC}/agent/g{number}/presence", payload, 1, retain=True)
            await client.publish(f"{ROOT_TOPIC}/agent/g{number}/report", payload, 1, retain=True)
        for number in range(200):
            await client.publish(f"{ROOT_TOPIC}/{number}/deep/er/still", b"x", 1, retain=True)
        for topic in (f"{ROOT_TOPIC}//{pair.source}/command", f"{ROOT_TOPIC}/AGENT/../command", "drengine"):
            await client.publish(topic, b"x", 1, retain=True)
        place = str(Topic("main", PartyKind.AGENT, pair.source, Leaf.COMMAND))
        await client.publish(place, json.dumps(command).encode(), 1, retain=True)
        await asyncio.sleep(0.2)
        await client.publish(place, json.dumps(cut).encode(), 1, retain=True)


@trial(seconds_max=150)
def two_drills_at_once_are_one(ground: Ground) -> None:
    """Two drills of one runbook begun at the same moment: one runs and cleans up, the other is refused in words."""
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB)}).start()
    engine = Engine(ground, pair)
    engine.write_runbook(pair, seconds=3.0)
    ends = _at_once(engine, "drill", str(engine.runbook))
    _one_ran(engine, ends)
    branches = ground.drengine("branches", "--store", pair.store, "--json").json()
    assert [each["number"] for each in branches if not each["closed"]] == [1], branches


@trial(seconds_max=180)
def two_orchestrators_fail_over_once(ground: Ground) -> None:
    """Two orchestrators run, two operators order the same failover at once: one generation, one launch, one refusal."""
    pair, broker = _pair(ground)
    engine = Engine(ground, pair, broker=broker.port, rest=f"127.0.0.1:{free_port()}")
    second = engine.file.read_text().replace('rest = "', 'metrics = "').replace("metrics", "rest", 1)
    other = ground.folder / "second.toml"
    other.write_text("\n".join(_other_port(line) for line in second.splitlines()))
    for name, file in (("one", engine.file), ("two", other)):
        ground.site.start(name, DRENGINE, "orchestrator", "run", "--config", str(file))
    engine.write_runbook(pair, seconds=2.0)
    ends = _at_once(engine, "failover", str(engine.runbook))
    _one_ran(engine, ends)
    (source,) = ground.drengine("status", "--store", pair.store, "--json").json()["sources"]
    assert source["generation"] == 2, source
    ground.until("the source is fenced", lambda: pair.status()["reason"] == "fenced")


@trial(seconds_max=240)
def a_broker_killed_seven_times_delays_a_migration_and_doubles_nothing(ground: Ground) -> None:
    """The broker is killed seven times during a migration: it ends, with resumes at worst; no step is done twice."""
    pair, broker = _pair(ground)
    engine = Engine(ground, pair, broker=broker.port)
    engine.write_runbook(pair, seconds=4.0)
    kills = threading.Thread(target=_kill_again_and_again, args=(broker, ground.times(KILLS)))
    kills.start()
    said = engine.say("migrate", str(engine.runbook), ok=False)
    tries = 1
    while said.status and tries < 10:
        runs = engine.say("runs").json()
        time.sleep(1.0)
        if runs:
            said = engine.say("run", "resume", runs[0]["run"], ok=False)
        else:
            said = engine.say("migrate", str(engine.runbook), ok=False)
        tries += 1
    kills.join()
    assert said.ok().json()["outcome"] == "completed", said
    assert engine.starts() == 1, f"the workload was started {engine.starts()} times"
    (source,) = ground.drengine("status", "--store", pair.store, "--json").json()["sources"]
    assert source["generation"] == 2, source
    ground.until("the source knows", lambda: pair.status()["reason"] == "fenced")
    ground.measured |= {"kills": ground.times(KILLS), "tries": tries}


def _kill_again_and_again(broker: Mosquitto, count: int) -> None:
    for _ in range(count):
        time.sleep(0.7)
        broker.kill()
        time.sleep(0.3)
        broker.start()


def _at_once(engine: Engine, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """The same command twice, begun together."""
    command = [sys.executable, "-m", DRENGINE, *words, "--config", str(engine.file), "--json"]
    processes = [
        subprocess.Popen(command, cwd=engine.ground.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = []
    for process in processes:
        output, error = process.communicate(timeout=100)
        ends.append(subprocess.CompletedProcess(command, process.returncode, output, error))
    return ends


def _one_ran(engine: Engine, ends: list[subprocess.CompletedProcess[str]]) -> None:
    statuses = sorted(each.returncode for each in ends)
    assert statuses[0] == 0, ends
    assert statuses[1] not in (0, INTERNAL), ends
    refused = next(each for each in ends if each.returncode)
    assert json.loads(refused.stderr.splitlines()[-1])["hint"], refused
    assert engine.starts() == 1, f"the workload was started {engine.starts()} times"


def _other_port(line: str) -> str:
    return f'rest = "127.0.0.1:{free_port()}"' if line.startswith("rest") else line


def _control(port: int) -> dict[str, object]:
    return {"control": {"address": f"127.0.0.1:{port}", "report_interval": "500ms"}}


def _pair(ground: Ground) -> tuple[Pair, Mosquitto]:
    """A pair whose agent is at a broker."""
    broker = mosquitto_of(ground)
    return Pair(ground, {"data": ground.image("data", 4 * MIB)}, agent=_control(broker.port)).start(), broker


async def _online(agents: BrokerAgents, pair: Pair) -> None:
    deadline = time.monotonic() + 60
    while not (agents.is_online(pair.source) and pair.source in agents.reports()):
        assert time.monotonic() < deadline, "the agent does not come back to the broker"
        await asyncio.sleep(0.05)
