"""The target's part in the way home: divergent sessions, points read back, and points of promoted branches."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, Batch, ExtentKind, iter_table
from drengine.model.grants import Access
from drengine.model.points import PointKind, PointSelector, RecoveryPoint
from drengine.nbd.client import NbdClient
from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store
from drengine.target.daemon import GRANT_SECONDS
from drengine.transport.endpoints import connect
from drengine.transport.framed import FramedStream
from drengine.transport.networks import DataNetworks
from drengine.wire.events import (
    ABILITIES,
    Changed,
    ChangeQuery,
    Event,
    Fetch,
    Fetched,
    Goodbye,
    Hashes,
    HashQuery,
    Hello,
    Ping,
    Pong,
    Purpose,
    Refuse,
    Span,
    Welcome,
)
from drengine.wire.fields import SPANS_MAX
from drengine.wire.payload import digest, verify_batch
from tests.clock import ManualClock
from tests.target.agent import SIZE, Agent, Refused, Site, running

pytestmark = pytest.mark.timeout(60)


def newest(store: Store) -> RecoveryPoint:
    return store.find_point("shop", PointSelector())


async def greeted(
    site: Site, purpose: Purpose, branch: int, sequence: int = 0, *, generation: int = 1, instance: bytes = b"i" * 16
) -> tuple[FramedStream, Welcome]:
    access = Access.PRESERVE if purpose is Purpose.PRESERVE else Access.REVERSE
    if any(each.number == branch and not each.closed for each in site.store.branches("shop")):
        site.store.grants.give("shop", branch, access, holder="agent/shop")
    stream = await connect(*site.address, networks=DataNetworks(), tls=None)
    await stream.send(Hello(2, 2, ABILITIES, "shop", instance, generation, purpose, branch, sequence))
    answer = await stream.receive()
    if isinstance(answer, Refuse):
        stream.abort()
        raise Refused(answer)
    assert isinstance(answer, Welcome)
    return stream, answer


async def reading(site: Site, point: RecoveryPoint) -> FramedStream:
    stream, welcome = await greeted(site, Purpose.REVERSE, point.branch, point.sequence)
    assert (welcome.durable_sequence, welcome.geometry) == (point.sequence, point.geometry)
    return stream


async def asked(stream: FramedStream, question: Event) -> Event:
    await stream.send(question)
    return await stream.receive()


async def fetched(stream: FramedStream, *spans: Span) -> Batch:
    answer = await asked(stream, Fetch(1, spans))
    assert isinstance(answer, Fetched), answer
    return answer.batch


async def grown(site: Site) -> bytearray:
    """A trunk with a point; what it shows."""
    agent = await site.join()
    await agent.declare()
    model = bytearray(SIZE)
    for offset in (0, 3 * BLOCK_BYTES - 1000, SIZE - 3000):
        data = os.urandom(2000)
        model[offset : offset + 2000] = data
        for at in range(offset, offset + 2000, 500):
            part = data[at - offset : at - offset + 500]
            if at // BLOCK_BYTES == (at + 499) // BLOCK_BYTES:
                await agent.write(at, part)
            else:
                model[at : at + 500] = bytes(500)
    await agent.acknowledged(await agent.cut())
    return model


async def away(site: Site) -> None:
    """The source is lost."""
    await site.agents[0].close()
    await site.left("shop")


def divergent(site: Site) -> BranchInfo:
    return site.store.create_branch(newest(site.store), role="divergent")


async def test_a_fenced_source_ships_to_its_divergent_branch_and_the_sources_state_does_not_notice(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "store") as site:
        model = await grown(site)
        base = newest(site.store)
        beyond = divergent(site)
        promoted = site.store.promote(base, expected_generation=1)
        await away(site)
        before = site.daemon.sources.get("shop").newest_point
        stream, welcome = await greeted(site, Purpose.PRESERVE, beyond.number, generation=beyond.generation)
        assert welcome.durable_sequence == base.sequence and welcome.geometry == base.geometry
        agent = Agent(stream, welcome, welcome.durable_sequence).start()
        site.agents.append(agent)
        assert await agent.hashes(0, BLOCK_BYTES, 1) == digest(model[:BLOCK_BYTES])
        await agent.write(100, b"mine")
        await agent.acknowledged(await agent.cut())
        point = site.store.points("shop", branch=beyond.number)[-1]
        with site.store.view(point) as view:
            assert view.read(1, 100, 4) == b"mine"
        state = site.daemon.sources.get("shop")
        assert state.newest_point == before and not state.connected
        assert site.store.source("shop").active_branch == promoted.number
        await stream.send(Goodbye())
        await agent.ended()
        await asyncio.to_thread(site.store.close_branch, "shop", beyond.number)


@pytest.mark.fault(45)
async def test_no_errand_gets_a_stale_source_into_the_history(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        await grown(site)
        point = newest(site.store)
        beyond, drill = divergent(site), site.store.create_branch(point, role="drill")
        over = site.store.promote(point, expected_generation=1)
        for branch, generation, code in (
            (1, 1, "unknown-branch"),
            (over.number, 2, "unknown-branch"),
            (over.number, 1, "unknown-branch"),
            (drill.number, drill.generation, "unknown-branch"),
            (99, 1, "grant-missing"),
            (beyond.number, beyond.generation + 1, "fenced"),
        ):
            with pytest.raises(Refused, match=code):
                await greeted(site, Purpose.PRESERVE, branch, generation=generation)
        site.store.close_branch("shop", beyond.number)
        with pytest.raises(Refused, match="grant-missing"):
            await greeted(site, Purpose.PRESERVE, beyond.number, generation=beyond.generation)
        with pytest.raises(Refused, match="fenced"):
            await site.join(generation=1)


async def test_a_point_is_read_back_in_verified_ranges(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with running(tmp_path / "store") as site:
        model = await grown(site)
        stream = await reading(site, newest(site.store))
        hashes = await asked(stream, HashQuery(7, 1, 0, BLOCK_BYTES, SIZE // BLOCK_BYTES))
        assert hashes == Hashes(7, b"".join(digest(model[at : at + BLOCK_BYTES]) for at in range(0, SIZE, BLOCK_BYTES)))
        for _ in range(20):
            spans = []
            for _ in range(rng.randrange(1, 6)):
                offset = rng.choice((rng.randrange(SIZE), 3 * BLOCK_BYTES - 1500, SIZE - 4000))
                spans.append(Span(1, offset, rng.randrange(1, min(200_000, SIZE - offset) + 1)))
            batch = await fetched(stream, *spans)
            plain, found, at = verify_batch(batch), bytearray(), 0
            for row in iter_table(batch.table):
                if row.kind == ExtentKind.DATA:
                    found += plain[at : at + row.length]
                    at += row.length
                else:
                    found += bytes(row.length)
            assert found == b"".join(model[s.offset : s.offset + s.length] for s in spans)
        await stream.send(Goodbye())
        stream.abort()


@pytest.mark.parametrize(
    "question",
    [
        Fetch(1, (Span(1, SIZE - 10, 11),)),
        Fetch(1, (Span(9, 0, 1),)),
        Fetch(1, (Span(1, 1 << 62, 4096),)),
    ],
)
async def test_what_is_outside_the_volumes_ends_that_session_alone(tmp_path: Path, question: Event) -> None:
    async with running(tmp_path / "store") as site:
        await grown(site)
        stream = await reading(site, newest(site.store))
        answer = await asked(stream, question)
        assert isinstance(answer, Refuse) and answer.code in ("out-of-range", "unknown-volume")
        await site.agents[0].acknowledged(await site.agents[0].cut())
        stream.abort()


@pytest.mark.fault(2)
async def test_damage_is_refused_and_never_made_up_on_the_way_home(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        await grown(site)
        point = newest(site.store)
        await away(site)
        segment = next((tmp_path / "store").rglob("*.seg"))
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
        stream = await reading(site, point)
        answers = [await asked(stream, Fetch(1, (Span(1, 0, SIZE // 2),)))]
        if isinstance(answers[0], Fetched):
            answers.append(await asked(stream, Fetch(1, (Span(1, SIZE // 2, SIZE // 2),))))
        last = answers[-1]
        assert isinstance(last, Refuse) and last.code == "damaged"
        stream.abort()


async def test_only_the_sources_own_history_is_read_back(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        await grown(site)
        base = newest(site.store)
        agent = site.agents[0]
        await agent.write(0, b"later")
        await agent.acknowledged(await agent.cut())
        behind = newest(site.store)
        site.store.promote(base, expected_generation=1)
        await away(site)
        stream = await reading(site, base)
        stream.abort()
        with pytest.raises(Refused, match="unknown-point"):
            await greeted(site, Purpose.REVERSE, behind.branch, behind.sequence)
        for branch, sequence in ((1, 999), (77, 1), (1, 2**64 - 1)):
            with pytest.raises(Refused, match="unknown-point"):
                await greeted(site, Purpose.REVERSE, branch, sequence)


async def test_the_log_tells_where_to_look_page_by_page(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(0, b"base")
        first = await agent.cut()
        await agent.acknowledged(first)
        offsets = range(0, (SPANS_MAX + 100) * 1024, 1024)
        for offset in offsets:
            await agent.write(offset, b"x")
            if agent.stream.connection.credit_available < 1 << 20:
                await agent.acknowledged(agent.sequence - 500)
        last = await agent.cut()
        await agent.acknowledged(last)
        stream = await reading(site, newest(site.store))
        page = await asked(stream, ChangeQuery(1, 1, first, 0))
        assert isinstance(page, Changed) and len(page.ranges) == SPANS_MAX and page.end < SIZE
        rest = await asked(stream, ChangeQuery(2, 1, first, page.end))
        assert isinstance(rest, Changed) and rest.end == SIZE
        assert [span.offset for span in (*page.ranges, *rest.ranges)] == list(offsets)
        assert await asked(stream, ChangeQuery(3, 1, last, 0)) == Changed(3, SIZE, ())
        assert await asked(stream, ChangeQuery(4, 1, last + 1, 0)) == Changed(4, SIZE, (Span(1, 0, SIZE),))
        inside = await asked(stream, ChangeQuery(5, 1, first, 1024))
        assert isinstance(inside, Changed) and inside.ranges[0] == Span(1, 1024, 1)
        assert await asked(stream, ChangeQuery(6, 9, first, 0)) == Changed(6, 0, ())
        stream.abort()


@pytest.mark.fault(41)
async def test_two_hosts_of_one_name_do_not_read_each_other_away(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        await grown(site)
        point = newest(site.store)
        stream = await reading(site, point)
        answering = asyncio.ensure_future(_answer_pings(stream))
        with pytest.raises(Refused, match="source-busy"):
            await greeted(site, Purpose.REVERSE, point.branch, point.sequence, instance=b"o" * 16)
        answering.cancel()
        again, _ = await greeted(site, Purpose.REVERSE, point.branch, point.sequence)
        again.abort()
        stream.abort()


async def _answer_pings(stream: FramedStream) -> None:
    while True:
        event = await stream.receive()
        if isinstance(event, Ping):
            await stream.send(Pong(event.token))


async def test_a_stopping_target_says_goodbye_to_whoever_reads(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        await grown(site)
        stream = await reading(site, newest(site.store))
        stopping = asyncio.ensure_future(site.daemon.reception.close(5))
        assert isinstance(await stream.receive(), Goodbye)
        await stopping
        stream.abort()


def write(site: Site, name: str, *writes: tuple[int, bytes]) -> None:
    with NbdClient(str(site.config.nbd_socket), name) as client:
        for offset, data in writes:
            client.write(offset, data)


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.005)


async def test_the_recovered_side_is_protected_from_its_first_write(tmp_path: Path) -> None:
    async with running(tmp_path / "store", nbd_socket=tmp_path / "n", point_interval=0.02) as site:
        model = await grown(site)
        branch = site.store.promote(newest(site.store), expected_generation=1)
        await away(site)

        def points() -> list[RecoveryPoint]:
            return site.store.points("shop", branch=branch.number)

        client = await asyncio.to_thread(NbdClient, str(tmp_path / "n"), f"shop/data#{branch.number}")
        assert points() == []
        await asyncio.to_thread(client.write, 5000, b"first write")
        await until(points)
        model[5000:5011] = b"first write"
        assert points()[0].kind is PointKind.WRITE_ORDER
        with site.store.view(points()[0]) as view:
            assert view.read(1, 0, SIZE) == bytes(model)
        await until(lambda: site.daemon.sources.get("shop").newest_point == points()[-1])
        count = len(points())
        await asyncio.sleep(0.1)
        assert len(points()) == count, "points of what was not written"
        await asyncio.to_thread(client.write, 0, b"unflushed")
        await asyncio.to_thread(client.close)
        model[0:9] = b"unflushed"
        await until(lambda: len(points()) > count)
        with site.store.view(points()[-1]) as view:
            assert view.read(1, 0, SIZE) == bytes(model)


async def test_each_point_of_the_recovered_side_holds_a_prefix_of_what_its_clients_wrote(tmp_path: Path) -> None:
    """Each write waits for the one before it, over two connections and two volumes' worth of places."""
    async with running(tmp_path / "store", nbd_socket=tmp_path / "n", point_interval=0.001) as site:
        await grown(site)
        branch = site.store.promote(newest(site.store), expected_generation=1)
        await away(site)
        name = f"shop/data#{branch.number}"

        def work() -> None:
            with NbdClient(str(tmp_path / "n"), name) as one, NbdClient(str(tmp_path / "n"), name) as other:
                for number in range(400):
                    (one, other)[number % 2].write(number * 16384, number.to_bytes(4, "big") + b"!")
                    deadline = time.monotonic() + 20
                    while len(site.store.points("shop", branch=branch.number)) < number // 80:
                        assert time.monotonic() < deadline, "nobody cuts points"
                        time.sleep(0.001)

        await asyncio.to_thread(work)
        points = site.store.points("shop", branch=branch.number)
        assert len(points) > 3
        seen = []
        for point in points:
            with site.store.view(point) as view:
                there = [view.read(1, number * 16384 + 4, 1) == b"!" for number in range(400)]
            assert there == sorted(there, reverse=True), f"point {point.id} shows a later write without an earlier one"
            seen.append(sum(there))
        assert seen == sorted(seen)


@pytest.mark.fault(44)
async def test_whoever_writes_a_branch_that_was_left_behind_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "store", nbd_socket=tmp_path / "n", point_interval=0.02) as site:
        await grown(site)
        branch = site.store.promote(newest(site.store), expected_generation=1)
        await away(site)
        name = f"shop/data#{branch.number}"
        client = await asyncio.to_thread(NbdClient, str(tmp_path / "n"), name)
        await asyncio.to_thread(client.write, 0, b"in charge")
        await asyncio.to_thread(client.flush)
        await until(lambda: site.store.points("shop", branch=branch.number))
        last = site.store.points("shop", branch=branch.number)[-1]
        site.store.promote(last, expected_generation=2)
        durable = {b.number: b.durable_sequence for b in site.store.branches("shop")}[branch.number]

        def late() -> None:
            client.write(0, b"not any more")
            client.flush()

        with pytest.raises(DrengineError, match="error 1"):
            await asyncio.to_thread(late)
        await asyncio.to_thread(client.close)
        with pytest.raises((DrengineError, OSError)):
            await asyncio.to_thread(write, site, name, (0, b"nor again"))
        after = {b.number: b.durable_sequence for b in site.store.branches("shop")}[branch.number]
        assert after == durable


async def test_a_divergent_branch_is_looked_at_and_not_written(tmp_path: Path) -> None:
    async with running(tmp_path / "store", nbd_socket=tmp_path / "n") as site:
        model = await grown(site)
        beyond = divergent(site)

        def look() -> bytes:
            with NbdClient(str(tmp_path / "n"), f"shop/data#{beyond.number}") as client:
                with pytest.raises(DrengineError):
                    client.write(0, b"x")
                return bytes(client.read(0, SIZE))

        assert await asyncio.to_thread(look) == bytes(model)


@pytest.mark.parametrize("purpose", [Purpose.PRESERVE, Purpose.REVERSE])
async def test_nobody_comes_for_what_no_run_has_ordered(tmp_path: Path, purpose: Purpose) -> None:
    """A local user read any source by REVERSE, since nothing but its name was asked for."""
    async with running(tmp_path / "store") as site:
        await grown(site)
        beyond = divergent(site)
        places = {Purpose.PRESERVE: (beyond.number, 0), Purpose.REVERSE: (1, newest(site.store).sequence)}
        other = Access.REVERSE if purpose is Purpose.PRESERVE else Access.PRESERVE
        site.store.grants.give("shop", beyond.number, other, holder="agent/shop")
        site.store.grants.give("shop", 1, Access.PRESERVE, holder="agent/shop")
        for access in (Access.PRESERVE, Access.REVERSE):
            site.store.grants.give("shop", beyond.number, access, holder="agent/web")
        site.store.grants.give("shop", beyond.number, Access.WRITE, holder="agent/shop")
        stream = await connect(*site.address, networks=DataNetworks(), tls=None)
        await stream.send(Hello(2, 2, ABILITIES, "shop", b"i" * 16, beyond.generation, purpose, *places[purpose]))
        answer = await stream.receive()
        assert isinstance(answer, Refuse) and (answer.code, answer.retryable) == ("grant-missing", True), answer
        stream.abort()
        assert b'peers_refused_total{reason="grant-missing"} 1' in site.daemon.metrics.metrics.render()


@pytest.mark.parametrize("purpose", [Purpose.PRESERVE, Purpose.REVERSE])
async def test_a_session_ends_with_its_grant_and_replication_goes_on(tmp_path: Path, purpose: Purpose) -> None:
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", clock=clock) as site:
        await grown(site)
        beyond = divergent(site)
        branch, sequence = (beyond.number, 0) if purpose is Purpose.PRESERVE else (1, newest(site.store).sequence)
        stream, welcome = await greeted(site, purpose, branch, sequence, generation=beyond.generation)
        errand = Agent(stream, welcome, welcome.durable_sequence).start()
        site.agents.append(errand)
        clock.advance(GRANT_SECONDS)
        assert await errand.hashes(0, BLOCK_BYTES, 1)
        assert site.store.grants.take(lambda grant: grant.source == "shop")
        clock.advance(GRANT_SECONDS)
        assert (await errand.refused()).code == "grant-missing"
        replicating = site.agents[0]
        await replicating.write(0, b"goes on")
        await replicating.acknowledged(await replicating.cut())
