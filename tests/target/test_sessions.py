"""Who is let in, and what one peer can do to another: nothing."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from drengine.model.points import PointSelector
from drengine.wire.connection import Connection, Role
from drengine.wire.errors import VERSION_MISMATCH
from drengine.wire.events import ABILITIES, Goodbye, Hello, Refuse, Status
from tests.target.agent import Refused, running

pytestmark = pytest.mark.timeout(60)
OTHER = b"o" * 16


@pytest.mark.fault(41)
async def test_a_second_living_agent_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        first = await site.join()
        await first.declare()
        for _ in range(3):
            with pytest.raises(Refused, match="source-busy"):
                await site.join(instance=OTHER)
        await first.write(0, b"f" * 4096)
        await first.acknowledged(await first.cut())
        assert b'reason="source-busy"} 3.0' in site.daemon.metrics.metrics.render()


@pytest.mark.fault(34)
@pytest.mark.fault(41)
async def test_an_agent_whose_connection_is_half_open_gets_back_in_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        old = await site.join()
        await old.declare()
        last = await old.write(0, b"o" * 4096)
        await old.acknowledged(last)
        old.answers_pings = False
        new = await site.join()
        assert new.welcome.durable_sequence == last
        assert (await old.refused()).code == "source-busy"
        await new.write(4096, b"n" * 4096)
        await new.acknowledged(await new.cut())


@pytest.mark.fault(34)
@pytest.mark.fault(41)
async def test_a_session_that_answers_nobody_makes_way_for_another_instance(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        site.daemon.reception.probe_seconds = 0.2
        dead = await site.join()
        dead.answers_pings = False
        await dead.declare()
        new = await site.join(instance=OTHER)
        await new.declare()
        await new.acknowledged(await new.cut())


async def test_a_generation_that_is_not_the_stores_is_fenced(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join(generation=3)
        assert agent.welcome.generation == 3, "a new store takes a source as it comes"
        await agent.acknowledged(await agent.declare())
        await agent.close()
        await site.left("shop")
        with pytest.raises(Refused, match="fenced") as refused:
            await site.join(generation=2)
        assert not refused.value.retryable
        with pytest.raises(Refused, match="store-behind") as behind:
            await site.join(generation=4)
        assert behind.value.retryable, "an older copy of a store stops no source for good"


@pytest.mark.parametrize(
    ("label", "admitted"), [("run:r1:back", True), ("run:r1", False), ("", False), ("run:r1:back:x", False)]
)
async def test_an_agent_that_lost_its_state_goes_on_only_where_the_source_is_in_charge(
    tmp_path: Path, label: str, admitted: bool
) -> None:
    """It says generation 0. The store knows whether the active branch is the source's own or a recovered side's."""
    async with running(tmp_path / "store") as site:
        agent = await site.join(generation=0)
        assert agent.welcome.generation == 1, "of a new source nothing can be stale"
        await agent.acknowledged(await agent.declare())
        await agent.acknowledged(await agent.cut())
        await agent.close()
        await site.left("shop")
        agent = await site.join(generation=0)
        assert agent.welcome.generation == 1, "it was never failed over"
        await agent.close()
        await site.left("shop")
        point = site.store.find_point("shop", PointSelector())
        site.store.promote(point, expected_generation=1, label=label)
        if admitted:
            assert (await site.join(generation=0)).welcome.generation == 2
        else:
            with pytest.raises(Refused, match=r"fenced|source-moved"):
                await site.join(generation=0)


@pytest.mark.fault(44)
async def test_a_promotion_while_data_flows_refuses_the_old_generations_tail(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(0, b"before" * 512)
        cut = await agent.cut()
        await agent.acknowledged(cut)

        async def flow() -> None:
            for block in range(10_000):
                await agent.write(block % 100 * 4096, os.urandom(4096))
                if agent.failure or agent.stream.connection.credit_available < 1 << 20:
                    await asyncio.sleep(0.005)

        flowing = asyncio.ensure_future(flow())
        await agent.acknowledged(cut + 20)
        point = site.store.find_point("shop", PointSelector())
        await asyncio.to_thread(site.store.promote, point, expected_generation=1)
        trunk = {b.number: b for b in site.store.branches("shop")}[1].durable_sequence
        assert (await agent.refused()).code == "fenced"
        flowing.cancel()
        await asyncio.gather(flowing, return_exceptions=True)
        await agent.ended()
        assert {b.number: b for b in site.store.branches("shop")}[1].durable_sequence == trunk
        assert max(agent.acks) <= trunk
        with pytest.raises(Refused, match="fenced"):
            await site.join()
        state = site.daemon.sources.get("shop")
        assert (state.state, state.reason) == ("STOPPED", "fenced")


@pytest.mark.fault(45)
async def test_a_source_with_nothing_to_ship_hears_of_a_promotion_as_well(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        await agent.acknowledged(await agent.cut())
        await agent.stream.send(Status("CONTINUOUS", "none", 0, 0))
        site.store.promote(site.store.find_point("shop", PointSelector()), expected_generation=1)
        await agent.stream.send(Status("CONTINUOUS", "none", 0, 0))
        assert (await agent.refused()).code == "fenced"


@pytest.mark.fault(36)
async def test_malformed_peers_disturb_nobody(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    hello = b"".join(map(bytes, Connection(Role.AGENT).send(Hello(2, 2, ABILITIES, "bank", OTHER, 1))))
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()

        async def vandal(number: int) -> None:
            reader, writer = await asyncio.open_connection(*site.address)
            data = bytearray(hello + rng.randbytes(rng.randrange(200)))
            if number % 2:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            writer.write(bytes(data[: rng.randrange(1, len(data))] if number % 3 == 0 else data))
            writer.write_eof()
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()

        async def honest() -> None:
            for block in range(50):
                await agent.write(block * 4096, b"h" * 4096)
                await agent.acknowledged(await agent.cut())

        await asyncio.gather(honest(), *(vandal(number) for number in range(40)))
        assert agent.failure is None


HELLO_OF_VERSION_1 = bytes.fromhex(
    "4452454e010100004700000047000000010000000000000070d7fb07bc7d79e70100010004000a00686173682d717565727906007265"
    "73656e6407007265766572736504007a737464040073686f70000102030405060708090a0b0c0d0e0f0100000000000000"
)


async def test_a_peer_of_version_1_is_refused_in_words_that_name_the_way_out(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        reader, writer = await asyncio.open_connection(*site.address)
        writer.write(HELLO_OF_VERSION_1)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        agent = Connection(Role.AGENT)
        agent.send(Hello(1, 1, ABILITIES, "shop", bytes(range(16)), 1))
        (refusal,) = agent.receive(answer)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "version-mismatch" and refusal.retryable, "the agent goes on by itself once it was upgraded"
    assert "the agent speaks versions 1 to 1, this target 2 to 2" in refusal.message
    assert "Upgrade the older side" in VERSION_MISMATCH.hint


async def test_a_goodbye_is_a_stop_and_a_lost_connection_is_not(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        await agent.acknowledged(await agent.cut())
        await agent.stream.send(Goodbye())
        await agent.ended()
        state = site.daemon.sources.get("shop")
        await site.left("shop")
        assert (state.state, state.reason) == ("STOPPED", "operator")
        again = await site.join()
        again.stream.abort()
        await site.left("shop")
        assert (state.state, state.reason) == ("DISCONNECTED", "agent-unreachable")
