"""Disks that are slow, full, failing or read-only: nothing is acknowledged that is not durable."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from drengine.model.points import PointSelector
from drengine.store.blobs import LocalStorage
from drengine.store.blobs.faulty import Call, Fault, FaultyStorage
from drengine.store.store import Store
from drengine.wire.events import Ping, Pong
from tests.target.agent import Agent, running

pytestmark = pytest.mark.timeout(60)


def faulty(directory: Path) -> FaultyStorage:
    Store.create(directory).close()
    return FaultyStorage(LocalStorage(directory))


async def test_nothing_is_acknowledged_before_the_sync_has_returned(tmp_path: Path) -> None:
    storage = faulty(tmp_path / "store")
    may_sync, syncing = threading.Event(), threading.Event()

    def plan(call: Call) -> Fault | None:
        if call.operation == "sync" and call.name.endswith(".seg"):
            syncing.set()
            assert may_sync.wait(30)
        return None

    async with running(tmp_path / "store", storage=storage) as site:
        agent = await site.join()
        storage.plan = plan
        await agent.declare()
        for block in range(20):
            await agent.write(block * 4096, b"w" * 4096)
        last = await agent.cut()
        await asyncio.to_thread(syncing.wait, 20)
        # Everything has arrived and been verified: a ping that was sent behind it is answered, an ack is not there.
        assert await agent_hears_a_pong(agent)
        assert agent.acks == []
        assert site.store.points("shop") == []
        may_sync.set()
        await agent.acknowledged(last)


async def agent_hears_a_pong(agent: Agent) -> bool:
    await agent.stream.send(Ping(7))
    await agent.until(lambda: Pong(7) in agent.events)
    return Pong(7) in agent.events


@pytest.mark.fault(6)
@pytest.mark.parametrize("operation", ["append", "create", "sync"])
async def test_a_full_disk_refuses_and_replication_resumes_when_there_is_space(tmp_path: Path, operation: str) -> None:
    storage = faulty(tmp_path / "store")
    async with running(tmp_path / "store", storage=storage) as site:
        agent = await site.join()
        first = await agent.declare()
        await agent.acknowledged(first)
        if operation == "create":  # a new segment begins with a new writer
            await agent.close()
            agent = await site.join()
        storage.plan = lambda call: Fault(errno.ENOSPC) if call.operation == operation else None
        await agent.write(0, b"a" * 4096)
        refuse = await agent.refused()
        assert (refuse.code, refuse.retryable) == ("store-full", True)
        await agent.ended()
        assert [ack for ack in agent.acks if ack > first] == []
        state = site.daemon.sources.get("shop")
        assert (state.state, state.reason) == ("STALLED", "target-full")
        storage.plan = None
        again = await site.join()
        assert again.welcome.durable_sequence == first
        await again.write(0, b"b" * 4096)
        await again.acknowledged(await again.cut())
        with site.store.view(site.store.find_point("shop", PointSelector())) as view:
            assert view.read(1, 0, 4096) == b"b" * 4096


async def test_space_is_kept_back_for_compaction(tmp_path: Path) -> None:
    async with running(tmp_path / "store", free_space_min=1 << 60) as site:
        agent = await site.join()
        await agent.declare()
        assert (await agent.refused()).code == "store-full"


@pytest.mark.fault(5)
async def test_a_failed_sync_is_never_retried_and_the_source_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    storage = faulty(tmp_path / "store")
    async with running(tmp_path / "store", storage=storage) as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(0, b"1" * 4096)
        kept = await agent.cut()
        await agent.acknowledged(kept)
        failed: list[Call] = []

        def plan(call: Call) -> Fault | None:
            if call.operation == "sync":
                failed.append(call)
                return Fault(errno.EIO) if len(failed) == 1 else None
            return None

        storage.plan = plan
        await agent.write(0, b"2" * 4096)
        assert (await agent.refused()).code == "store-io"
        await agent.ended()
        assert agent.acks[-1] == kept
        state = site.daemon.sources.get("shop")
        assert (state.state, state.reason) == ("STALLED", "target-failed")
        again = await site.join()
        assert again.welcome.durable_sequence == kept
        await again.write(0, b"3" * 4096)
        await again.acknowledged(await again.cut())
        assert failed[0].name not in [call.name for call in failed[1:]]
        with site.store.view(site.store.find_point("shop", PointSelector())) as view:
            assert view.read(1, 0, 4096) == b"3" * 4096


@pytest.mark.fault(5)
async def test_what_the_failing_disk_has_damaged_is_found_and_asked_for_again(tmp_path: Path) -> None:
    storage = faulty(tmp_path / "store")
    async with running(tmp_path / "store", storage=storage) as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(65536, b"1" * 4096)
        await agent.acknowledged(await agent.cut())
        segment = next((tmp_path / "store").rglob("*.seg"))
        storage.plan = lambda call: Fault(errno.EIO) if call.operation == "sync" else None
        await agent.write(0, b"2" * 4096)
        assert (await agent.refused()).code == "store-io"
        await agent.ended()
        storage.plan = None
        data = bytearray(segment.read_bytes())
        at = data.index(b"\x28\xb5\x2f\xfd")  # the zstd payload
        data[at + 6] ^= 0x10
        segment.write_bytes(data)
        again = await site.join()
        resend = await again.resend()
        assert (resend.volume, resend.offset, resend.length) == (1, 65536, 4096)
        await again.write(65536, b"1" * 4096)
        last = await again.cut()
        await again.acknowledged(last)
        assert site.store.find_point("shop", PointSelector()).sequence == last
        assert site.store.damaged_ranges("shop") == []


@pytest.mark.fault(18)
async def test_a_store_that_became_read_only_is_a_state_with_a_reason(tmp_path: Path) -> None:
    storage = faulty(tmp_path / "store")
    async with running(tmp_path / "store", storage=storage) as site:
        agent = await site.join()
        storage.plan = lambda call: Fault(errno.EROFS) if call.operation in ("create", "append") else None
        await agent.declare()
        refuse = await agent.refused()
        assert (refuse.code, refuse.retryable) == ("store-read-only", True)
        await agent.ended()
        assert agent.acks == []
        state = site.daemon.sources.get("shop")
        assert (state.state, state.reason) == ("STALLED", "target-read-only")
