"""Disks made equal to a point: whatever both sides wrote, wherever it is interrupted, and only what differs travels."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.config import Address
from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.errors import DrengineError
from drengine.model.extents import GRAIN_BYTES, Batch, Extent, ExtentKind, iter_table, pack_table
from drengine.store.log.branches import BranchInfo
from drengine.wire.events import Fetched, Span
from drengine.wire.payload import digest
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.capture.backing import Volume
from drengine_agent.daemon.service import Agent
from drengine_agent.failback.reverse import FETCH_BYTES, FETCH_SPANS, grouped, joined
from drengine_agent.fencing.fence import Fence
from drengine_agent.ship.session import Stream
from tests.agent.failback.home import MIB, SIZE, Home, at_home, until
from tests.clock import ManualClock

pytestmark = pytest.mark.timeout(180)


def differing_bytes(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    """In whole grains."""
    return sum(
        GRAIN_BYTES
        for name in one
        for at in range(0, len(one[name]), GRAIN_BYTES)
        if one[name][at : at + GRAIN_BYTES] != other[name][at : at + GRAIN_BYTES]
    )


def some_writes(rng: random.Random, count: int, size: int = SIZE) -> list[tuple[int, bytes]]:
    writes = []
    for _ in range(count):
        length = rng.choice((1, 512, 4096, 4097, 30_000, 70_000))
        offset = rng.randrange(size - length)
        kind = rng.random()
        data = bytes(length) if kind < 0.2 else b"ab" * length if kind < 0.4 else rng.randbytes(length)
        writes.append((offset, data[:length]))
    return writes


async def parted(home: Home, rng: random.Random, here: int = 6, there: int = 6) -> BranchInfo:
    """Both sides have written since they parted; the source is fenced, and what it has is preserved."""
    agent = home.agent
    assert agent is not None
    await home.caught_up()
    agent.pause()
    await until(lambda: agent.pipeline is None)
    for name in home.names:
        for offset, data in some_writes(rng, here):
            if home.config.tracker == "nbd":
                await home.write(offset, data, name)
            else:
                with home.path(name).open("r+b") as file:
                    file.seek(offset)
                    file.write(data)
    branch = home.promote()
    for name in home.names:
        if there:
            await home.work(branch, some_writes(rng, there), name)
    await agent.fence(1)
    agent.resume()
    return branch


async def preserved(home: Home) -> None:
    agent = home.agent
    assert agent is not None
    beyond = home.diverge()
    await agent.preserve(beyond.number, beyond.generation)
    home.store.close_branch("shop", beyond.number)


@pytest.mark.fault(45)
@pytest.mark.parametrize(("tracker", "seed"), [("nbd", 1), ("nbd", 2), ("scan", 4)])
async def test_whatever_both_sides_wrote_the_disks_end_equal_and_only_what_differs_travels(
    tmp_path: Path, tracker: str, seed: int
) -> None:
    """Several rounds while the recovered side goes on; then the switch, and the session after it ships nothing."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    async with at_home(tmp_path, tracker=tracker, volumes=2) as home:
        branch = await parted(home, rng)
        agent = home.agent
        assert agent is not None
        had = home.disks()
        await preserved(home)
        kept = next(p for b in home.store.branches("shop") if b.role == "divergent"
                    for p in home.store.points("shop", branch=b.number))  # fmt: skip
        assert home.shown(kept) == had
        for number in range(3):
            point = await home.last_point(branch)
            differ = differing_bytes(home.disks(), home.shown(point))
            report = await agent.reverse(point.id)
            assert home.disks() == home.shown(point)
            assert report.bytes_compared == report.bytes_total == 2 * SIZE
            assert report.bytes_written <= 1.3 * differ + (0 if number == 0 else 8 * GRAIN_BYTES * 2)
            assert report.bytes_shipped <= report.bytes_written
            for name in home.names:
                await home.work(branch, some_writes(rng, 2), name)
        last = await home.last_point(branch)
        await agent.reverse(last.id)
        handed = home.promote(last)
        before = agent.traffic.plain_bytes
        await agent.release(handed.generation, handed.number)
        assert home.disks() == home.shown(last)
        await until(lambda: agent.progress.rescans and agent.status()["state"] == "CONTINUOUS")
        if tracker == "nbd":
            await until(lambda: home.store.points("shop", branch=handed.number))
        assert agent.traffic.plain_bytes == before, "something was resent"
        assert home.disks() == home.shown(home.newest())


@pytest.mark.fault(46)
async def test_a_source_that_wrote_nothing_is_recognised_and_nothing_travels(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.caught_up()
        agent = home.agent
        assert agent is not None
        branch = home.promote()
        await agent.fence(1)
        beyond = home.diverge()
        kept = await agent.preserve(beyond.number, beyond.generation)
        assert kept.bytes_shipped == 0
        stamp = agent.capture.volumes[1].stamp()
        report = await agent.reverse((await home.last_point(branch)).id)
        assert report.unmodified and report.bytes_shipped == 0 and report.bytes_compared == SIZE
        assert agent.capture.volumes[1].stamp() == stamp, "an equal disk was written"
        handed = home.promote(await home.last_point(branch))
        await agent.release(handed.generation, handed.number)
        await home.write(0, b"home again")
        await home.caught_up()
        assert not agent.is_fenced


@pytest.mark.fault(46)
async def test_of_an_unmodified_source_only_the_recovered_sides_writes_travel(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(1), here=0, there=0)
        agent = home.agent
        assert agent is not None
        await home.work(branch, [(MIB, os.urandom(10_000))])
        await preserved(home)
        report = await agent.reverse((await home.last_point(branch)).id)
        assert 10_000 <= report.bytes_written <= 4 * GRAIN_BYTES


async def test_a_later_round_reads_only_what_the_log_says_changed(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(2))
        agent = home.agent
        assert agent is not None
        await preserved(home)
        await agent.reverse((await home.last_point(branch)).id)
        await home.work(branch, [(1000, b"x" * 100), (MIB + 1, os.urandom(200_000)), (SIZE - 3, b"end")])
        reads = []
        real = Volume.read_into

        def read_into(self: Volume, offset: int, buffer: Any) -> None:
            reads.append(len(buffer))
            real(self, offset, buffer)

        Volume.read_into = read_into  # type: ignore[method-assign]
        try:
            last = await home.last_point(branch)
            report = await agent.reverse(last.id)
        finally:
            Volume.read_into = real  # type: ignore[method-assign]
        assert reads == [] and report.bytes_written == 200_103
        assert home.disks() == home.shown(last)
        again = await agent.reverse(last.id)
        assert again.unmodified


async def test_a_disk_that_somebody_wrote_in_between_is_compared_whole_and_given_up_by_nobody(tmp_path: Path) -> None:
    async with at_home(tmp_path, tracker="scan") as home:
        branch = await parted(home, random.Random(3))
        agent = home.agent
        assert agent is not None
        await preserved(home)
        last = await home.last_point(branch)
        await agent.reverse(last.id)
        with home.path().open("r+b") as file:
            file.seek(70_000)
            file.write(b"an unasked hand")
        with pytest.raises(DrengineError, match="preserved"):
            await agent.reverse(last.id)
        written = home.disks()
        beyond = home.diverge()
        kept = await agent.preserve(beyond.number, beyond.generation)
        point = next(p for p in home.store.points("shop", branch=beyond.number) if p.sequence == kept.sequence)
        assert home.shown(point) == written
        await agent.reverse(last.id)
        assert home.disks() == home.shown(last)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_write_it_converges_when_it_is_run_again(tmp_path: Path, seed: int) -> None:
    """Real processes, killed in the middle of writes, again and again; nobody serves what is half done."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    async with at_home(tmp_path, volumes=2) as home:
        branch = await parted(home, rng, here=12, there=12)
        await preserved(home)
        point = await home.last_point(branch)
        await home.stop()
        config = tmp_path / "config.json"
        config.write_text(json.dumps(home.options))
        fatal = [rng.randrange(1, 12) for _ in range(2)] + [0]
        program = [
            sys.executable,
            "-m",
            "tests.agent.failback.home_child",
            str(config),
            "reverse",
            json.dumps([point.id]),
        ]
        for writes in fatal:
            done = await asyncio.to_thread(
                subprocess.run, [*program, str(writes)], capture_output=True, text=True, timeout=60, check=False
            )
            record = Fence(tmp_path / "state").record
            if done.returncode == 0:
                assert (record.reversing, record.equals) == ("", point.id)
                break
            assert done.returncode == 137, done.stderr
            assert record.reversing == point.id
            agent = home.start()
            with pytest.raises(DrengineError, match="neither"):
                await agent.release(2)
            assert agent.capture.server is None
            await home.stop()
        assert home.disks() == home.shown(point)
        agent = home.start()
        handed = home.promote(point)
        await agent.release(handed.generation, handed.number)
        await until(lambda: home.store.points("shop", branch=handed.number))
        assert agent.traffic.plain_bytes == 0
        assert home.disks() == home.shown(home.newest())


class Cut:
    """A link that breaks after so many events."""

    def __init__(self, agent: Agent, rng: random.Random) -> None:
        self._connect = agent.uplink.connect
        self._rng = rng
        self.breaks = 6

    async def __call__(self, address: Address) -> Stream:
        stream = await self._connect(address)
        left = self._rng.randrange(2, 6) if self.breaks else 10**9
        self.breaks -= 1 if self.breaks else 0
        real = stream.receive

        async def receive() -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                await stream.close()
                raise EOFError("the link broke")
            return await real()

        stream.receive = receive  # type: ignore[method-assign]
        return stream


@pytest.mark.parametrize("seed", range(3))
async def test_a_link_that_breaks_at_any_answer_ends_the_round_and_never_the_disk(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with at_home(tmp_path) as home:
        branch = await parted(home, rng)
        agent = home.agent
        assert agent is not None
        agent.uplink.connect = cut = Cut(agent, rng)
        beyond = home.diverge()
        while True:
            try:
                await agent.preserve(beyond.number, beyond.generation)
                break
            except DrengineError as error:
                assert error.kind.retryable, error
        point = await home.last_point(branch)
        cut.breaks = 6
        rounds = 0
        while True:
            rounds += 1
            try:
                await agent.reverse(point.id)
                break
            except DrengineError as error:
                assert error.kind.retryable, error
        assert rounds > 1
        assert home.disks() == home.shown(point)


async def test_other_geometry_is_refused_in_words_and_nothing_is_written(tmp_path: Path) -> None:
    async with at_home(tmp_path, tracker="scan") as home:
        branch = await parted(home, random.Random(4))
        await preserved(home)
        point = await home.last_point(branch)
        await home.stop()
        os.truncate(home.path(), SIZE + 4096)
        agent = home.start()
        before = home.disks()
        with pytest.raises(DrengineError, match=f"has {SIZE} bytes at the point, and {SIZE + 4096} here") as refused:
            await agent.reverse(point.id)
        assert refused.value.kind.id == "reverse-refused" and "size" in refused.value.hint
        await home.stop()
        os.truncate(home.path(), SIZE)
        shutil.copy(home.path(), tmp_path / "disk2.img")
        home.options["volume"].append({"name": "disk2", "path": str(tmp_path / "disk2.img")})
        agent = home.start()
        with pytest.raises(DrengineError, match="no such volume"):
            await agent.reverse(point.id)
        assert home.disk() == before["disk1"][:SIZE]


@pytest.mark.fault(2)
async def test_bytes_that_are_not_what_their_hashes_say_are_never_written(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(5))
        agent = home.agent
        assert agent is not None
        await preserved(home)
        point = await home.last_point(branch)
        connect = agent.uplink.connect

        def spoilt(event: Fetched, how: str) -> Fetched:
            batch, rows = event.batch, list(iter_table(event.batch.table))
            match how:
                case "lie":
                    rows = [row._replace(digest=digest(b"x")) if any(row.digest) else row for row in rows]
                case "elsewhere":
                    rows = [row._replace(offset=row.offset ^ 512) for row in rows]
                case "digest":
                    rows = [row._replace(kind=ExtentKind.ZERO, digest=b"d" * 16) for row in rows]
                    batch = Batch(b"")
                case _:
                    rows = [Extent(row.volume, ExtentKind.DISCARD, row.offset, row.length) for row in rows]
                    batch = Batch(b"")
            return Fetched(event.query, replace(batch, table=pack_table(rows)))

        for how in ("lie", "elsewhere", "digest", "zeros"):

            async def lying(address: Address, how: str = how) -> Stream:
                stream = await connect(address)
                real = stream.receive

                async def receive() -> Any:
                    event = await real()
                    return spoilt(event, how) if isinstance(event, Fetched) else event

                stream.receive = receive  # type: ignore[method-assign]
                return stream

            before = home.disks()
            agent.uplink.connect = lying
            with pytest.raises(DrengineError):
                await agent.reverse(point.id, force=True)
            assert home.disks() == before, how
        agent.uplink.connect = connect
        await agent.reverse(point.id)
        assert home.disks() == home.shown(point)


@pytest.mark.fault(5)
async def test_a_disk_that_does_not_keep_what_was_written_is_found_out(tmp_path: Path, monkeypatch: Any) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(6))
        agent = home.agent
        assert agent is not None
        await preserved(home)
        point = await home.last_point(branch)
        real = Volume.write

        def lossy(self: Volume, offset: int, data: bytes) -> None:
            real(self, offset, bytes(data[:-1]) + b"?" if len(data) > 1 else data)

        with monkeypatch.context() as patched:
            patched.setattr(Volume, "write", lossy)
            with pytest.raises(DrengineError, match="did not keep"):
                await agent.reverse(point.id)
        assert agent.status()["reversing"] == point.id

        def failing(self: Volume) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(Volume, "sync", failing)
            with pytest.raises(DrengineError, match="Input/output"):
                await agent.reverse(point.id)
        with pytest.raises(DrengineError, match="neither"):
            await agent.release(2)
        await agent.reverse(point.id)
        assert home.disks() == home.shown(point)


async def test_an_agent_that_stops_in_the_middle_of_a_write_waits_for_it_and_goes_on_next_time(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(8), there=12)
        await preserved(home)
        agent = home.agent
        assert agent is not None
        point = await home.last_point(branch)
        writing, go_on = threading.Event(), threading.Event()
        real = Volume.write

        def slow(self: Volume, offset: int, data: bytes) -> None:
            writing.set()
            assert go_on.wait(30)
            real(self, offset, data)

        with monkeypatch.context() as patched:
            patched.setattr(Volume, "write", slow)
            work = asyncio.create_task(agent.reverse(point.id))
            await until(writing.is_set)
            stopping = asyncio.create_task(home.stop())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stopping), 0.2)
            go_on.set()
            await stopping
            with pytest.raises(DrengineError, match="broken off") as stopped:
                await work
        assert stopped.value.kind.retryable
        agent = home.start()
        assert agent.status()["reversing"] == point.id
        await agent.reverse(point.id)
        assert home.disks() == home.shown(point)


async def test_the_way_home_keeps_to_the_bandwidth_limit(tmp_path: Path) -> None:
    """The limit's own clock is the test's: what is counted is how long the reversal would have waited."""
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(9), here=0, there=0)
        agent = home.agent
        assert agent is not None
        await home.work(branch, [(0, os.urandom(MIB))])
        await preserved(home)
        waits: list[float] = []

        class Bucket(TokenBucket):
            def reserve(self, length: int) -> float:
                waits.append(super().reserve(length))
                return 0.0

        agent.uplink.bandwidth = Bucket(BandwidthSchedule.parse("1MiB/s"), ManualClock())
        report = await agent.reverse((await home.last_point(branch)).id)
        assert report.bytes_shipped >= MIB
        assert 0.85 <= waits[-1] <= 1.2


async def test_only_one_thing_at_a_time_happens_to_the_disks(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(10))
        await preserved(home)
        agent = home.agent
        assert agent is not None
        point = await home.last_point(branch)
        told: list[Any] = []
        work = asyncio.create_task(agent.reverse(point.id, told.append))
        await asyncio.sleep(0)
        for other in (agent.reverse(point.id), agent.release(2), agent.release(2, force=True)):
            with pytest.raises(DrengineError, match="busy") as refused:
                await other
            assert refused.value.kind.retryable
        await agent.fence(1, "twice fenced is fenced")
        await work
        assert told and {"compared_bytes", "shipped_bytes", "total_bytes", "written_bytes"} <= told[-1].keys()


@pytest.mark.parametrize("seed", range(3))
def test_questions_cover_what_differs_exactly_and_stay_within_their_bounds(seed: int) -> None:
    rng = random.Random(seed)
    lengths = (1, 4096, 70_000, 5 << 20)
    spans = [Span(rng.randrange(1, 4), rng.randrange(1 << 24), rng.choice(lengths)) for _ in range(300)]
    spans += [Span(1, (1 << 30) + at * 8192, 4096) for at in range(3000)]
    wanted = joined(spans)
    assert joined(piece for group in grouped(wanted) for piece in group) == wanted
    covered = sum(piece.length for group in grouped(wanted) for piece in group)
    assert covered == sum(span.length for span in wanted)
    for group in grouped(wanted):
        assert 0 < sum(piece.length for piece in group) <= FETCH_BYTES and len(group) <= FETCH_SPANS
