"""Clients that ask for much and take nothing: one bound on memory for all of them, and an end (fault 72)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.nbd.budget import Budget, Holding
from drengine.nbd.file_export import FileProvider
from drengine.nbd.limits import NbdLimits
from tests.nbd import wire as nbd
from tests.nbd.conftest import Client, Serve, until

pytestmark = pytest.mark.fault(72)
MIB = 1 << 20
POOL, SHARE = 1000, 10


class Peer:
    """A connection in the model: it takes what fits, else it waits; its replies leave when the test says so."""

    def __init__(self, budget: Budget) -> None:
        self.held = self.wanted = self.served = 0
        self.holding = Holding(budget, self.retry)

    def ask(self, length: int) -> None:
        if not self.wanted:
            self.wanted = length
            self.retry()

    def retry(self) -> None:
        if self.wanted and self.wanted <= self.holding.room(self.held):
            self.held, self.wanted = self.held + self.wanted, 0
            self.served += 1
        self.holding.note(self.held, waits=self.wanted > 0)

    def leave(self, length: int) -> None:
        self.held -= min(length, self.held)
        self.retry()


ACTS = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["ask", "leave"]), st.integers(1, POOL)), max_size=100)


@settings(max_examples=300)
@given(ACTS)
def test_no_order_of_requests_passes_the_bound_starves_a_share_or_forgets_who_waits(
    acts: list[tuple[int, str, int]],
) -> None:
    turn: list[object] = []
    budget = Budget(POOL, SHARE, turn.append)
    peers = [Peer(budget) for _ in range(8)]
    for number, act, length in acts:
        getattr(peers[number], act)(length)
        while turn:
            turn.pop()()  # type: ignore[operator]
        assert budget.pooled_bytes == sum(max(0, each.held - SHARE) for each in peers) <= POOL
        assert all(each.holding.room(each.held) >= SHARE - each.held for each in peers)
    for _ in range(2 * len(peers)):  # whoever takes the replies gets all
        for each in peers:
            each.leave(each.held)
            while turn:
                turn.pop()()  # type: ignore[operator]
    assert not budget.waiting and not any(each.wanted or each.held for each in peers)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    path = tmp_path / "full.img"
    path.write_bytes(os.urandom(MIB) * 32)
    return path


async def test_clients_that_never_read_hold_a_bounded_memory_and_others_go_on(serve: Serve, full_disk: Path) -> None:
    limits = NbdLimits(bytes_held_max=96 * MIB)
    server, path = await serve(FileProvider({"disk": full_disk}), limits=limits)
    before = resident_bytes()
    greedy = [await Client.connect(path) for _ in range(20)]
    for each in greedy:
        await each.go()
        each.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for cookie in range(1, 100):
            each.ask(nbd.READ, cookie, 0, 32 * MIB)
    await until(lambda: server.held_bytes >= 32 * MIB)
    other = await Client.connect(path)
    await other.go()
    async with asyncio.timeout(20):
        for _ in range(50):
            assert (await other.call(nbd.READ, 4096, 65536)).error == 0
            assert server.held_bytes <= limits.bytes_held_max
            assert resident_bytes() - before < 400 * MIB, "asked for: 62 GiB"
    # A long request waits until those that take nothing are cut.
    other.ask(nbd.READ, 7, 0, 32 * MIB)
    answer = asyncio.create_task(other.answer(7))
    async with asyncio.timeout(30):
        while not answer.done():
            server.cut_stalled()
            for _ in range(300):
                await asyncio.sleep(0)
    assert (await answer).error == 0
    for each in greedy:
        each.close()
    assert server.stats.ended["stalled"] > 0


async def test_a_payload_that_does_not_come_is_not_waited_for_for_good(serve: Serve) -> None:
    server, path = await serve()
    slow, idle = await Client.connect(path), await Client.connect(path)
    await slow.go()
    await idle.go()
    slow.writer.write(nbd.request(nbd.WRITE, 1, 0, 2 * MIB, b"")[:28])
    await until(lambda: server.held_bytes)
    server.cut_stalled()
    assert server.connections == 2, "it may just have begun"
    server.cut_stalled()
    assert await slow.ended() == b""
    await until(lambda: server.connections == 1)
    assert (server.held_bytes, server.stats.ended["stalled"]) == (0, 1)
    assert (await idle.call(nbd.READ, 0, 4096)).error == 0, "nothing waits for a client that asks for nothing"


async def test_a_client_that_takes_its_replies_slowly_is_not_cut(serve: Serve, full_disk: Path) -> None:
    server, path = await serve(FileProvider({"disk": full_disk}))
    client = await Client.connect(path)
    await client.go()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for cookie in range(1, 5):
        client.ask(nbd.READ, cookie, 0, 32 * MIB)
    await until(lambda: server.held_bytes)
    taken = 0
    sock = client.writer.get_extra_info("socket")
    for _ in range(20):
        server.cut_stalled()
        until_now = taken
        while taken < until_now + 2 * MIB:
            try:
                taken += len(os.read(sock.fileno(), MIB))
            except BlockingIOError:
                await asyncio.sleep(0)
    assert server.connections == 1
    client.close()
