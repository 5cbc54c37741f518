"""What a peer can make the target keep by sending little (fault 70), and take from others (fault 71)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from drengine.model.points import VolumeGeometry
from drengine.store.locks.flock import LOCKS_DIRECTORY
from drengine.target.admission import CutBudget
from drengine.target.quotas import QuotaOptions
from drengine.target.session import UNCREDITED_BYTES_MAX
from drengine.wire.events import Hashes, HashQuery
from tests.target.agent import Agent, Refused, running

pytestmark = pytest.mark.timeout(60)


async def until(holds: Callable[[], object]) -> None:
    """Let ended sessions be forgotten."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  the target offers no event for what only tests wait for
            await asyncio.sleep(0.01)


@pytest.mark.fault(70)
async def test_a_source_that_only_said_hello_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "store", sources_max=100) as site:
        real = await site.join("real")
        await real.acknowledged(await real.declare())
        for number in range(40):
            guest = await site.join(f"guest-{number}")
            await guest.close()
        await until(lambda: [each.name for each in site.store.sources()] == ["real"])
        assert b"guest" not in site.daemon.metrics.metrics.render()
        assert [each.name for each in (tmp_path / "store" / LOCKS_DIRECTORY).glob("*guest*")] == []
        again = await site.join("guest-7")
        await again.acknowledged(await again.declare())
        await again.close()
        await site.left("guest-7")
        assert [each.name for each in site.store.sources()] == ["guest-7", "real"]


@pytest.mark.fault(70)
async def test_sources_are_as_many_as_are_allowed(tmp_path: Path) -> None:
    async with running(tmp_path / "store", sources_max=2) as site:
        for name in ("one", "two"):
            agent = await site.join(name)
            await agent.acknowledged(await agent.declare())
            await agent.close()
            await site.left(name)
        for _ in range(3):
            with pytest.raises(Refused, match="too-many-sources") as refused:
                await site.join("three")
            assert refused.value.retryable
        await site.join("one")
        assert [each.name for each in site.store.sources()] == ["one", "two"]


@pytest.mark.fault(70)
async def test_a_source_that_finds_no_memory_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "store", memory_budget=12 << 20) as site:
        await site.join("one")
        await site.join("two")
        with pytest.raises(Refused, match="target-busy"):
            await site.join("three")
        assert [each.name for each in site.store.sources()] == ["one", "two"]


MANY = tuple(VolumeGeometry(number, f"{number:063d}", f"{number:0255d}", 1 << 20) for number in range(1, 1025))


@pytest.mark.fault(70)
def test_points_take_of_the_catalogue_what_fills_again_with_time() -> None:
    budget = CutBudget(bytes_max=1000, bytes_per_second=100, _left=1000)
    assert [budget.wait_seconds(400, 50.0) for _ in range(3)] == [0.0, 0.0, 2.0]
    assert budget.wait_seconds(400, 51.0) == 1.0
    assert budget.wait_seconds(400, 52.0) == 0.0
    assert budget.wait_seconds(10**9, 52.0) == 10.0, "one that is beyond it waits until it is full"
    assert budget.wait_seconds(10**9, 1000.0) == 0.0


@pytest.mark.fault(70)
async def test_many_volumes_and_a_flood_of_cuts_make_no_gigabytes(tmp_path: Path) -> None:
    """Less than half a megabyte is sent; unbounded, each cut made a third of one."""
    async with running(tmp_path / "store", quotas=QuotaOptions(volumes=0)) as site:
        other = await site.join("other")
        await other.acknowledged(await other.declare())
        flood = await site.join("flood")
        await flood.acknowledged(await flood.declare(MANY))
        for _ in range(1000):
            last = await flood.cut()
        budget = site.daemon.reception._cuts["flood"]
        await until(lambda: budget._left < 400_000 or max(flood.acks) == last)
        began = asyncio.get_running_loop().time()
        for number in range(20):
            await other.write(number * 4096, b"v" * 4096)
            await other.acknowledged(await other.cut())
        assert asyncio.get_running_loop().time() - began < 20
        catalogue = [each.stat().st_size for each in (tmp_path / "store").glob("catalogue.sqlite*")]
        assert sum(catalogue) < 3 * CutBudget().bytes_max
        assert max(flood.acks) < last
        await flood.close()  # which waits for no cut that is held back
        await site.left("flood")
        again = await site.join("flood")
        assert again.welcome.durable_sequence < last
        await again.cut()


@pytest.mark.fault(70)
async def test_declarations_need_credit_of_a_kind(tmp_path: Path) -> None:
    """While the store stands still, the target receives a few of them and no more."""
    async with running(tmp_path / "store", quotas=QuotaOptions(volumes=0)) as site:
        agent = await site.join()
        session = site.daemon.reception.sessions["shop"]
        await agent.acknowledged(await agent.declare())
        ingest = session._ingest
        assert ingest is not None
        with site.store.context.catalogue.transaction():  # nobody commits meanwhile
            sending = asyncio.create_task(declare_many(agent))
            await until(lambda: ingest.queued_bytes > UNCREDITED_BYTES_MAX)
            for _ in range(50):
                await asyncio.sleep(0.01)
                assert ingest.queued_bytes < 2 * UNCREDITED_BYTES_MAX
        await sending
        await agent.acknowledged(await agent.cut())


async def declare_many(agent: Agent) -> None:
    for _ in range(40):
        await agent.declare(MANY)


@pytest.mark.fault(71)
async def test_a_source_with_data_finds_room_among_sessions_that_do_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "store", memory_budget=12 << 20) as site:
        real = await site.join("real")
        last = await real.declare()
        await real.acknowledged(last)
        await real.close()
        await site.left("real")
        guests = [await site.join(f"guest-{number}") for number in range(2)]
        real = await site.join("real")
        assert real.welcome.durable_sequence == last
        assert (await guests[0].refused()).code == "target-busy"
        with pytest.raises(Refused, match="target-busy"):
            await site.join("guest-3")


@pytest.mark.fault(71)
async def test_one_sources_questions_delay_no_others_acknowledgements(tmp_path: Path) -> None:
    """All that may be open are asked at once and never answered by us; answers are made to take long."""
    async with running(tmp_path / "store") as site:
        asking, writing = await site.join("asking"), await site.join("writing")
        for agent in (asking, writing):
            await agent.acknowledged(await agent.declare())
        held = threading.Event()
        questions = site.daemon.reception.questions
        try:
            for _ in range(site.config.workers):
                questions.submit(held.wait)  # what slow answers of somebody else look like
            for query in range(1, 40):
                await asking.stream.send(HashQuery(query, 1, 0, 65536, 16))
            for number in range(10):
                async with asyncio.timeout(1):
                    await writing.write(number * 4096, b"w" * 4096)
                    await writing.acknowledged(await writing.cut())
            assert not any(isinstance(event, Hashes) for event in asking.events)
        finally:
            held.set()
        await until(lambda: sum(isinstance(event, Hashes) for event in asking.events) == 39)
