"""Parties and orchestrators over real brokers: Mosquitto, and the embedded one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from drengine.config import Address
from drengine.control.broker import EmbeddedBroker
from drengine.control.config import BrokerOptions
from drengine.control.message import Message
from drengine.control.messages import AgentReport, Answer, Presence, Verb
from drengine.model.errors import DrengineError
from tests.control.site import Mosquitto, Worker, free_port, options_for, orchestrator, party, until


@pytest.fixture(params=["mosquitto", "embedded"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BrokerOptions]:
    if request.param == "mosquitto":
        server = Mosquitto(tmp_path)
        server.start()
        yield options_for(server.port)
        server.kill()
    else:
        embedded = EmbeddedBroker(Address("127.0.0.1", free_port()))
        await embedded.start()
        yield BrokerOptions(address=embedded.address)
        await embedded.stop()


async def test_an_agent_is_seen_reports_and_obeys(broker: BrokerOptions, tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with orchestrator(broker) as agents:
        async with party(broker, worker):
            await until(lambda: agents.is_online("shop") and "shop" in agents.reports(), "its report")
            answer = await agents.command(
                "shop", Verb.SYNC, {"why": "test"}, generation=1, id="one", timeout_seconds=30
            )
            assert answer == Answer(id="one", done=True, ok=True, result={"count": 1, "why": "test"})
            report = agents.reports()["shop"]
            assert (report.name, report.state, report.generation) == ("shop", "CONTINUOUS", 1)
        await until(lambda: not agents.is_online("shop"), "its goodbye")
        assert "shop" in agents.reports()


async def test_who_comes_later_learns_what_was_retained(broker: BrokerOptions, tmp_path: Path) -> None:
    async with party(broker, Worker(tmp_path)) as made:
        await until(lambda: made.link.is_connected)
        async with orchestrator(broker) as agents:
            assert agents.is_online("shop")
            assert agents.reports()["shop"].serving


async def test_an_agent_that_dies_is_reported_by_its_last_will(broker: BrokerOptions, tmp_path: Path) -> None:
    async with orchestrator(broker) as agents, party(broker, Worker(tmp_path)) as made:
        await until(lambda: agents.is_online("shop") and made.link.is_connected)
        seen = []
        take = agents._take_presence
        agents._take_presence = lambda topic, presence: (seen.append(presence.online), take(topic, presence))  # type: ignore[method-assign,assignment,func-returns-value]
        client = made.link._client
        assert client is not None
        client._client.socket().shutdown(socket.SHUT_RDWR)  # as if it had been killed: no goodbye is sent
        await until(lambda: seen, "its last will")
        assert seen[0] is False
        await until(lambda: agents.is_online("shop"), "its return")


async def test_the_same_id_gets_the_same_answer(broker: BrokerOptions, tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with orchestrator(broker) as agents, party(broker, worker):
        await until(lambda: agents.is_online("shop"))
        for _ in range(3):
            answer = await agents.command("shop", Verb.CUT, {}, generation=1, id="cut-1", timeout_seconds=30)
            assert answer.result == {"count": 1}
        async with orchestrator(broker) as other:
            answer = await other.command("shop", Verb.CUT, {}, generation=1, id="cut-1", timeout_seconds=30)
            assert answer.result == {"count": 1}
        assert worker.done() == ["cut-1"]


async def test_a_party_that_is_not_there_is_not_waited_for(broker: BrokerOptions, tmp_path: Path) -> None:
    """A recovery host that is off fails a launch within seconds, not after the five minutes that a launch may take."""
    async with orchestrator(broker) as agents:
        began = time.monotonic()
        with pytest.raises(DrengineError, match="nowhere was not connected with the broker for 10 s") as raised:
            await agents.command("nowhere", Verb.ATTACH, {}, generation=0, id="a", timeout_seconds=300)
        assert raised.value.kind.id == "no-answer"
        assert time.monotonic() - began < 20


async def test_progress_reaches_who_waits(broker: BrokerOptions, tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.hold.clear()
    told: list[Answer] = []
    async with orchestrator(broker) as agents, party(broker, worker):
        await until(lambda: agents.is_online("shop"))
        asking = asyncio.create_task(
            agents.command("shop", Verb.SYNC, {}, generation=1, id="long", timeout_seconds=30, progress=told.append)
        )
        await until(lambda: told, "progress")
        assert told[0] == Answer(id="long", done=False, ok=True, result={"step": 1})
        worker.hold.set()
        assert (await asking).ok


async def test_a_party_that_is_not_there_does_not_answer(broker: BrokerOptions) -> None:
    async with orchestrator(broker) as agents:
        with pytest.raises(DrengineError, match="nothing was ever heard of it") as raised:
            await agents.command("ghost", Verb.SYNC, {}, generation=1, id="x", timeout_seconds=0.3)
        assert raised.value.kind.id == "no-answer"


@pytest.mark.fault(41)
async def test_two_processes_under_one_name_are_told_to_the_operator_and_do_not_fight(
    broker: BrokerOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[bool] = []
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with orchestrator(broker) as agents:
        take = agents._take_presence
        agents._take_presence = lambda topic, presence: (said.append(presence.online), take(topic, presence))  # type: ignore[method-assign,assignment,func-returns-value]
        async with party(broker, Worker(tmp_path / "one")) as one:
            await until(lambda: one.link.is_connected and agents.is_online("shop"))
            async with party(broker, Worker(tmp_path / "two")) as two:
                await until(lambda: two.link.is_connected)
                await until(lambda: "another process is at the broker" in caplog.text, "the alarm")
                before = agents.reports()["shop"].sequence
                await until(lambda: agents.reports()["shop"].sequence != before, "life going on")
                assert one.link.connections == two.link.connections == 1, "nobody throws the other out"
                assert len(said) <= 4
            await until(lambda: said.count(True) >= 3, "the one that stays corrects the goodbye of the other")
        assert len(said) <= 8


async def test_a_late_last_will_of_a_predecessor_does_not_make_a_party_absent(
    broker: BrokerOptions, tmp_path: Path
) -> None:
    async with orchestrator(broker) as agents, party(broker, Worker(tmp_path)) as made:
        await until(lambda: agents.is_online("shop") and made.link.is_connected)
        late = Presence(online=False, since_ns=1, instance="predecessor", version="0")
        await agents.link.publish(
            Message("drengine/main/agent/shop/presence", msgspec.json.encode(late), retained=True)
        )
        async with orchestrator(broker) as newcomer:
            await until(lambda: newcomer.is_online("shop"), "the correction")
        assert agents.is_online("shop")


async def test_a_report_that_is_too_long_is_shortened_and_keeps_what_decisions_rest_on(
    broker: BrokerOptions, tmp_path: Path
) -> None:
    class Wordy(Worker):
        def report(self) -> AgentReport:
            details = {"lease_seconds": 30.0, "hint": "x" * 200_000}
            return msgspec.structs.replace(super().report(), details=details)

    async with orchestrator(broker) as agents, party(broker, Wordy(tmp_path)):
        await until(lambda: "shop" in agents.reports(), "its report")
        kept = agents.reports()["shop"].details
        assert (kept["lease_seconds"], kept["shortened"], "hint" in kept) == (30.0, True, False)


@pytest.mark.fault(49)
async def test_of_several_addresses_the_next_is_tried_whenever_one_is_lost(tmp_path: Path) -> None:
    """A broker with a standby that takes its place: here two that share nothing, and everybody goes over."""
    brokers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        brokers.append(Mosquitto(tmp_path / name))
    options = options_for(brokers[0].port, more_addresses=(Address("127.0.0.1", brokers[1].port),))
    brokers[1].start()
    async with orchestrator(options) as agents, party(options, Worker(tmp_path)):
        await until(lambda: agents.is_online("shop"), "both at the second, as the first is away")
        for gone, back in ((1, 0), (0, 1)):
            brokers[back].start()
            brokers[gone].kill()
            await until(lambda: not agents.is_online("shop"), "the loss")
            await until(lambda: agents.is_online("shop"), "both at the other one")
            answer = await agents.command("shop", Verb.SYNC, {}, generation=1, id=f"to-{back}", timeout_seconds=30)
            assert answer.ok
            assert agents.report_age_seconds("shop") is None, "it may be heard elsewhere: no evidence of any silence"
    for broker in brokers:
        broker.kill()


async def test_two_orchestrators_who_ask_the_same_at_once_each_get_their_answer(
    broker: BrokerOptions, tmp_path: Path
) -> None:
    """One took a run up from the other, which was only asleep: the order's id is the same, what was sent is not."""
    worker = Worker(tmp_path)
    worker.hold.clear()
    async with orchestrator(broker) as one, orchestrator(broker) as two, party(broker, worker):
        await until(lambda: one.is_online("shop") and two.is_online("shop"))
        seen: list[str] = []

        async def ask(who: str) -> Answer:
            agents = {"one": one, "two": two}[who]
            return await agents.command(
                "shop", Verb.SYNC, {"by": "run"}, generation=1, id="run.sync:shop.1", timeout_seconds=30,
                progress=lambda _: seen.append(who),
            )  # fmt: skip

        asking = [asyncio.create_task(ask(who)) for who in ("one", "two")]
        await until(lambda: set(seen) == {"one", "two"}, "both hear how far it is")
        worker.hold.set()
        answers = await asyncio.gather(*asking)
        assert [each.result["count"] for each in answers] == [1, 1]
        assert worker.done() == ["run.sync:shop.1"], "it was done once"
        other = await two.command("shop", Verb.SYNC, {}, generation=1, id="another", timeout_seconds=30)
        assert other.result["count"] == 2
