"""Brokers that die at any moment, with commands under way: each is carried out once and gets its answer (fault 49)."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from drengine.config import Address
from drengine.control.agents import BrokerAgents, NoAgents
from drengine.control.broker import EmbeddedBroker
from drengine.control.message import Message
from drengine.control.messages import Verb
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.control.site import Mosquitto, Worker, free_port, options_for, orchestrator, party, until


@pytest.mark.fault(49)
@pytest.mark.parametrize("seed", [1, 2])
async def test_commands_survive_a_broker_that_is_killed_and_restarted(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    broker = Mosquitto(tmp_path)
    broker.start()
    options, worker = options_for(broker.port), Worker(tmp_path)

    async def keep_killing() -> None:
        for _ in range(6):
            await asyncio.sleep(choose.uniform(0.05, 0.8))
            broker.kill()
            await asyncio.sleep(choose.uniform(0.0, 0.2))
            await asyncio.to_thread(broker.start)

    async with orchestrator(options) as agents, party(options, worker):
        await until(lambda: agents.is_online("shop"))
        killing = asyncio.create_task(keep_killing())
        answers: dict[str, set[str]] = {}

        async def order(number: int) -> None:
            """Insist, as an executor that resumes does: the same id until there is an answer."""
            id = f"c{number}"
            verb = choose.choice((Verb.CUT, Verb.SYNC, Verb.FENCE))
            for _ in range(20):
                try:
                    answer = await agents.command("shop", verb, {}, generation=1, id=id, timeout_seconds=30)
                except DrengineError as error:
                    assert error.kind.id == "broker-unreachable"
                    continue
                answers.setdefault(id, set()).add(str(answer))
                if choose.random() < 0.7:
                    return
            raise AssertionError(f"{id} was never answered")

        try:
            await asyncio.gather(*(order(number) for number in range(12)))
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
    broker.kill()
    assert sorted(worker.done()) == sorted(answers), f"seed {seed}"
    assert {len(found) for found in answers.values()} == {1}, f"seed {seed}"


@pytest.mark.fault(49)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_commands_survive_a_party_that_is_restarted_while_it_works(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    broker = Mosquitto(tmp_path)
    broker.start()
    options, worker = options_for(broker.port), Worker(tmp_path)
    async with orchestrator(options) as agents:
        asking = [
            asyncio.create_task(agents.command("shop", Verb.CUT, {}, generation=1, id=f"c{number}", timeout_seconds=30))
            for number in range(6)
        ]
        while not all(task.done() for task in asking):
            worker.hold = asyncio.Event()
            asyncio.get_running_loop().call_later(choose.uniform(0, 0.3), worker.hold.set)
            async with party(options, worker):
                await asyncio.sleep(choose.uniform(0.1, 0.6))
        answers = {task.result().id: task.result() for task in asking}
    broker.kill()
    done = worker.done()
    assert len(done) == len(set(done)), f"seed {seed}: something was done twice"
    for id, answer in answers.items():
        assert id in done or not answer.ok, f"seed {seed}: {id} was not done but answered so"


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 50])
async def test_who_leaves_while_the_broker_dies_is_not_kept(tmp_path: Path, turns: int) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    async with party(options_for(broker.port), Worker(tmp_path)) as made:
        await until(lambda: made.link.is_connected)
        broker.kill()
        for _ in range(turns):
            await asyncio.sleep(0)
    assert not made.link.is_connected


async def test_who_is_cancelled_just_as_the_broker_answers_is_cancelled(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    async with party(options_for(broker.port), Worker(tmp_path)) as made:
        await until(lambda: made.link.is_connected)
        client = made.link._client
        assert client is not None
        for turns in (0, 1, 2, 3) * 8:
            saying = asyncio.create_task(made.link.publish(Message("drengine/x", b"")))
            await asyncio.sleep(0)
            assert client._pending_publishes
            for acknowledged in client._pending_publishes.values():
                acknowledged.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            if saying.cancel():
                await asyncio.wait({saying})
                assert saying.cancelled()
    broker.kill()


async def test_a_command_without_a_broker_says_so_quickly() -> None:
    async with BrokerAgents(options_for(free_port())) as agents:
        with pytest.raises(DrengineError) as raised:
            await agents.command("shop", Verb.SYNC, {}, generation=1, id="x", timeout_seconds=0.2)
        assert raised.value.kind.id == "broker-unreachable"
        assert not agents.is_online("shop")
        assert not await agents.settled(0.01)


async def test_where_no_broker_is_configured_everything_says_so() -> None:
    agents = NoAgents()
    assert (agents.reports(), agents.is_online("shop"), agents.report_age_seconds("shop")) == ({}, False, None)
    with pytest.raises(DrengineError, match="no broker is configured"):
        await agents.command("shop", Verb.FENCE, {}, generation=1, id="x", timeout_seconds=1)


async def test_silence_counts_only_while_the_broker_is_seen_to_work(tmp_path: Path) -> None:
    """Otherwise an orchestrator that is itself cut off would take a healthy source for one that fenced itself."""
    broker = Mosquitto(tmp_path)
    broker.start()
    options = options_for(broker.port)
    async with orchestrator(options) as agents:
        async with party(options, Worker(tmp_path)):
            await until(lambda: "shop" in agents.reports())
        await until(lambda: (agents.report_age_seconds("shop") or 0) > 1.5, "a proved silence")
        broker.kill()
        await until(lambda: agents.report_age_seconds("shop") is None, "doubt")
        broker.start()
        await until(lambda: agents.report_age_seconds("shop") is not None)
        age = agents.report_age_seconds("shop")
        assert age is not None
        assert age < 1.5
    broker.kill()


async def test_the_embedded_broker_comes_back_at_the_same_port_and_parties_with_it(tmp_path: Path) -> None:
    broker = EmbeddedBroker(Address("127.0.0.1", free_port()))
    await broker.start()
    options = options_for(broker.address.port)
    async with orchestrator(options) as agents, party(options, Worker(tmp_path)):
        await until(lambda: agents.is_online("shop"))
        await broker.stop()
        await until(lambda: not agents.is_online("shop"))
        await broker.start()
        await until(lambda: agents.is_online("shop"), "its return")
        assert (await agents.command("shop", Verb.SYNC, {}, generation=1, id="1", timeout_seconds=30)).ok
    await broker.stop()


async def test_the_embedded_broker_says_when_its_port_is_taken_or_not_local() -> None:
    broker = EmbeddedBroker(Address("127.0.0.1", free_port()), clock=SystemClock())
    await broker.start()
    with pytest.raises(DrengineError) as raised:
        await EmbeddedBroker(broker.address).start()
    assert raised.value.kind.id == "broker-failed"
    await broker.stop()
    for host in ("0.0.0.0", "192.0.2.1", "broker.example", ""):
        with pytest.raises(DrengineError, match="not on loopback"):
            EmbeddedBroker(Address(host, 1883))
