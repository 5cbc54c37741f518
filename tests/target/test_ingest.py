"""What reaches the store, and when it is acknowledged."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from drengine.model.extents import Batch, Extent, ExtentKind, pack_table
from drengine.model.points import PointSelector
from drengine.store.store import Store
from drengine.wire.payload import digest
from tests.target.agent import SIZE, Refused, data_batch, lying_batch, running

pytestmark = pytest.mark.timeout(60)


async def test_a_batch_and_a_cut_become_a_recovery_point(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(0, b"x" * 4096)
        last = await agent.cut()
        await agent.acknowledged(last)
        point = site.store.find_point("shop", PointSelector.parse("latest"))
        assert point.sequence == last
        with site.store.view(point) as view:
            assert view.read(1, 0, 8192) == b"x" * 4096 + bytes(4096)


@pytest.mark.fault(32)
async def test_a_duplicate_is_ignored_and_its_credit_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        big = data_batch([(0, random.Random(1).randbytes(4 << 20))])
        first = await agent.ship(big)
        await agent.acknowledged(first)
        for _ in range(12):  # far more than the credit, if it did not come back
            while agent.stream.connection.credit_available < len(big.payload) + 65536:
                await asyncio.sleep(0.01)
                assert agent.failure is None
            await agent.ship(big, sequence=first)
        last = await agent.cut()
        await agent.acknowledged(last)
        assert last == first + 1


@pytest.mark.fault(11)
@pytest.mark.fault(33)
async def test_a_hash_that_lies_ends_only_its_session_and_keeps_what_came_before(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        honest = await site.join("shop")
        liar = await site.join("bank", instance=b"b" * 16)
        for agent in (honest, liar):
            await agent.declare()
        good = await liar.write(0, b"good" * 1024)
        await liar.ship(lying_batch(4096, b"l" * 4096))
        refuse = await liar.refused()
        assert refuse.code == "bad-payload"
        await liar.ended()
        await honest.write(0, b"h" * 4096)
        await honest.acknowledged(await honest.cut())
        again = await site.join("bank", instance=b"b" * 16)
        assert again.welcome.durable_sequence == good
        assert b"bad-payload" in site.daemon.metrics.metrics.render()


@pytest.mark.fault(11)
@pytest.mark.parametrize("kind", [ExtentKind.ZERO, ExtentKind.DISCARD])
async def test_a_range_without_bytes_has_no_digest_either(tmp_path: Path, kind: ExtentKind) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        good = await agent.write(0, b"good" * 1024)
        await agent.acknowledged(good)
        await agent.ship(Batch(pack_table([Extent(1, kind, 0, 4096, b"d" * 16)])))
        assert (await agent.refused()).code == "bad-extents"
        await agent.ended()
        again = await site.join()
        assert again.welcome.durable_sequence == good


@pytest.mark.fault(35)
async def test_an_agent_resumes_at_the_durable_position(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        last = await agent.write(0, b"1" * 4096)
        await agent.acknowledged(last)
        await agent.close()
        again = await site.join()
        assert again.welcome.durable_sequence == last
        assert again.welcome.durable_mark.position == last
        assert [volume.name for volume in again.welcome.geometry] == ["data"]


async def test_hashes_answer_for_everything_that_was_sent_before(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = bytearray(SIZE)
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        for query in range(1, 40):
            for _ in range(rng.randrange(4)):
                offset = rng.randrange(SIZE // 4096) * 4096
                data = rng.randbytes(rng.choice((512, 4096)))
                model[offset : offset + len(data)] = data
                await agent.write(offset, data)
            chunk = rng.choice((4096, 65536))
            count = rng.randrange(1, 9)
            offset = rng.randrange(SIZE // chunk) * chunk
            expected = b"".join(digest(model[at : at + chunk]) for at in range(offset, offset + count * chunk, chunk))
            assert await agent.hashes(offset, chunk, count, query=query) == expected, query


async def test_forty_sources_at_once_keep_their_data_apart(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:

        async def one(number: int) -> None:
            agent = await site.join(f"host-{number}", instance=bytes([number]) * 16)
            await agent.declare()
            for block in range(8):
                await agent.write(block * 65536, bytes([number]) * 65536)
            await agent.acknowledged(await agent.cut())

        await asyncio.gather(*(one(number) for number in range(40)))
        for number in range(40):
            with site.store.view(site.store.find_point(f"host-{number}", PointSelector())) as view:
                assert view.read(1, 0, 8 * 65536) == bytes([number]) * 8 * 65536


async def test_a_memory_budget_refuses_rather_than_grows(tmp_path: Path) -> None:
    async with running(tmp_path / "store", memory_budget=12 << 20) as site:
        await site.join("one")
        await site.join("two")
        with pytest.raises(Refused, match="target-busy") as refused:
            await site.join("three")
        assert refused.value.retryable
        await site.agents[0].close()
        for _ in range(100):
            try:
                await site.join("three")
                break
            except Refused:
                await asyncio.sleep(0.05)
        else:
            pytest.fail("the budget of the session that ended never came back")


async def test_what_was_received_is_in_the_store_after_the_daemon_stopped(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        for block in range(64):
            await agent.write(block * 65536, bytes([block]) * 65536)
        last = await agent.cut()
        await agent.acknowledged(last)
    with Store.open(tmp_path / "store") as store:
        assert store.find_point("shop", PointSelector()).sequence == last
