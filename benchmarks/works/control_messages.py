"""Control messages: commands answered a second and how long one takes, over each broker, beside bare messages."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.bench import Bench
from benchmarks.results import Contestant, Measured, Table, contest
from drengine.config import Address
from drengine.control.agents import BrokerAgents
from drengine.control.broker import embedded_broker
from drengine.control.config import BrokerOptions
from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.link import Link
from drengine.control.message import Message
from drengine.control.messages import AgentReport, Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.model.clock import SystemClock

AT_ONCE = 32
NAME = "shop"
MOSQUITTO_PATH = "/usr/sbin:/usr/bin"

Broker = Callable[[Path], contextlib.AbstractAsyncContextManager[BrokerOptions]]


def measure(bench: Bench) -> list[Table]:
    """Commands that are only answered, commands that are remembered durably, and one at a time."""
    count = 200 if bench.quick else 1500
    brokers: dict[str, Broker] = {"embedded broker": _embedded}
    if shutil.which("mosquitto", path=MOSQUITTO_PATH):
        brokers = {"Mosquitto": _mosquitto, **brokers}
    contestants = [
        Contestant(f"{kind}, {name}", partial(_rate, bench, broker, verb, count), ours=True)
        for kind, verb in (("asked for its state", Verb.STATUS), ("remembered durably", Verb.SYNC))
        for name, broker in brokers.items()
    ]
    bare = [
        Contestant(f"message there and back, {name}", partial(_bare, bench, broker, count))
        for name, broker in brokers.items()
    ]
    single = [
        Contestant(name, partial(_latency, bench, broker, max(50, count // 10)), ours=True)
        for name, broker in brokers.items()
    ]
    return [
        Table(
            "control_messages",
            f"Commands answered by one agent, {AT_ONCE} at once",
            "/s",
            contest([*contestants, *bare], bench.rounds),
            higher_is_better=True,
            baseline=bare[0].name,
            remark="A command and its answer are two messages; `there and back` is one, through the same client.",
        ),
        Table(
            "control_latency",
            "One command at a time, from asking to the answer",
            "ms",
            contest(single, bench.rounds),
            baseline=single[0].name,
        ),
    ]


def _rate(bench: Bench, broker: Broker, verb: Verb, count: int) -> Measured:
    async def run() -> float:
        async with _pair(bench, broker) as agents:
            numbers = iter(range(count))
            begun = time.perf_counter()

            async def one_after_the_other() -> None:
                for number in numbers:
                    await _order(agents, verb, f"r{number}")

            await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
            return count / (time.perf_counter() - begun)

    return Measured(asyncio.run(run()))


def _latency(bench: Bench, broker: Broker, count: int) -> Measured:
    async def run() -> float:
        async with _pair(bench, broker) as agents:
            taken = []
            for number in range(count):
                begun = time.perf_counter()
                await _order(agents, Verb.STATUS, f"l{number}")
                taken.append(time.perf_counter() - begun)
            return sorted(taken)[count // 2] * 1000

    return Measured(asyncio.run(run()))


def _bare(bench: Bench, broker: Broker, count: int) -> Measured:
    """What the client and the broker can do without anything of ours around them."""

    async def run() -> float:
        arrived = asyncio.Semaphore(0)
        async with broker(bench.fresh("control")) as options:
            link = Link(
                options,
                client_id="orchestrator-bare",
                filters=["drengine/main/orchestrator/bare/presence"],
                receive=lambda _: arrived.release(),
                clock=SystemClock(),
                random=Random(1),
            )
            running = asyncio.create_task(link.run())
            await link.wait_connected(10)
            begun = time.perf_counter()

            async def one_after_the_other() -> None:
                for _ in range(count // AT_ONCE):
                    await link.publish(Message("drengine/main/orchestrator/bare/presence", b"x" * 200))
                    await arrived.acquire()

            await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
            seconds = time.perf_counter() - begun
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return count // AT_ONCE * AT_ONCE / seconds

    return Measured(asyncio.run(run()))


async def _order(agents: BrokerAgents, verb: Verb, id: str) -> None:
    answer = await agents.command(NAME, verb, {}, generation=1, id=id, timeout_seconds=60)
    if not answer.ok:
        raise RuntimeError(f"{answer.code}: {answer.message}")


@contextlib.asynccontextmanager
async def _pair(bench: Bench, broker: Broker) -> AsyncIterator[BrokerAgents]:
    """An agent's side and an orchestrator's, in one process."""
    folder = bench.fresh("control")
    async with broker(folder) as options:
        party = Party(
            options,
            PartyKind.AGENT,
            NAME,
            actions={Verb.STATUS: Action(_act, Generations.ANY, remembered=False), Verb.SYNC: Action(_act)},
            report=_report,
            log=folder / "commands",
            clock=SystemClock(),
            random=Random(1),
        )
        running = asyncio.create_task(party.run())
        try:
            async with BrokerAgents(options) as agents:
                await party.link.wait_connected(10)
                await agents.settled(10)
                yield agents
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _act(command: Command, tell: Tell) -> Mapping[str, Any]:
    return {"verb": command.verb}


def _report() -> AgentReport:
    return AgentReport(
        name=NAME,
        kind=PartyKind.AGENT,
        state="CONTINUOUS",
        reason="none",
        generation=1,
        fenced=False,
        serving=True,
        lag_seconds=0.0,
        backlog_bytes=0,
        at_ns=0,
        sequence=0,
    )


@contextlib.asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[BrokerOptions]:
    async with embedded_broker(Address("127.0.0.1", _free_port())) as broker:
        yield BrokerOptions(address=broker.address)


@contextlib.asynccontextmanager
async def _mosquitto(folder: Path) -> AsyncIterator[BrokerOptions]:
    port = _free_port()
    configuration = folder / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nset_tcp_nodelay true\n"
    )
    program = shutil.which("mosquitto", path=MOSQUITTO_PATH)
    assert program is not None
    process = await asyncio.create_subprocess_exec(program, "-c", str(configuration), stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):  # until it listens
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            await asyncio.sleep(0.02)
        yield BrokerOptions(address=Address("127.0.0.1", port))
    finally:
        process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
