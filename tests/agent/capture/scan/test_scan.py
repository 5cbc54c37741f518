"""Scanning: what the replica holds afterwards is the source, byte for byte, and no more was sent than had to be."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drengine.model.extents import ExtentKind
from drengine.model.points import PointKind
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.scan.tracker import ScanTracker, StillnessLease
from tests.agent.replica import Replica
from tests.agent.source import Source

MIB = 1 << 20


async def test_a_new_source_is_copied_and_becomes_a_point(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 3 * MIB + 512})
    source.write(0, os.urandom(MIB))
    source.write(2 * MIB + 100, b"x" * 5000)
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
    assert replica.image() == source.contents()
    assert [point.cut.kind for point in replica.points] == [PointKind.QUIET]
    assert replica.points[0].images[1] == source.contents()
    assert source.progress.rescans == {}


async def test_a_scan_with_a_warm_index_sends_only_changed_grains_and_asks_nothing(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 4 * MIB})
    source.write(0, os.urandom(4 * MIB))
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
    sent = replica.received_plain_bytes
    source.write(MIB + 4096 * 3 + 7, b"changed")
    with source.opened():
        await source.replicate(replica)
    assert replica.image() == source.contents()
    assert replica.received_plain_bytes - sent == 4096
    assert replica.queries == 0


@pytest.mark.fault(22)
async def test_after_an_unclean_stop_the_target_is_compared_and_only_differences_are_sent(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 40 * MIB + 100})
    source.write(3 * MIB, os.urandom(5 * MIB))
    replica = Replica()
    with source.opened(clean=False):
        await source.replicate(replica)
    sent = replica.received_plain_bytes
    source.write(4 * MIB + 5000, b"changed")
    source.write(39 * MIB, b"was a hole")
    with source.opened():
        await source.replicate(replica)
    assert replica.image() == source.contents()
    assert source.progress.rescans == {"index-lost": 1}
    assert replica.received_plain_bytes - sent == 2 * 4096
    queries = replica.queries
    with source.opened():
        await source.replicate(replica)
    assert replica.queries == queries, "the comparison taught the index everything"


@pytest.mark.fault(24)
async def test_zeros_holes_and_discards_become_zeros_without_payload(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 8 * MIB})
    source.write(0, os.urandom(8 * MIB))
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
    sent = replica.received_plain_bytes
    source.write(MIB, bytes(2 * MIB))
    volume = Volume.open(1, "v1", source.paths[1], writable=True)
    volume.zero(5 * MIB, 2 * MIB, hole=True)
    volume.close()
    with source.opened():
        await source.replicate(replica)
    assert replica.image() == source.contents()
    assert replica.received_plain_bytes == sent


@pytest.mark.fault(24)
@pytest.mark.fault(28)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 2 * MIB + 70_000), min_size=1, max_size=3),
    rounds=st.lists(st.sampled_from(["clean", "unclean", "lost"]), min_size=1, max_size=3),
)
def test_any_history_of_changes_and_stops_is_byte_exact(seed: int, sizes: list[int], rounds: list[str]) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        numbered = dict(enumerate(sizes, 1))
        source, replica = Source(Path(folder), numbered), Replica()
        for how in rounds:
            for number, size in numbered.items():
                for _ in range(random.randrange(4)):
                    offset = random.randrange(size)
                    length = min(random.choice([1, 511, 4096, 70_000]), size - offset)
                    source.write(offset, random.choice([random.randbytes, bytes])(length), number)
            with source.opened(clean=how == "clean"):
                asyncio.run(source.replicate(replica))
            for number in numbered:
                assert replica.image(number) == source.contents(number), f"volume {number} differs, seed {seed}"
                assert replica.points[-1].images[number] == source.contents(number)
            if how == "lost":
                shutil.rmtree(Path(folder) / "index")


class Ailing:
    """A volume whose disk fails in some places."""

    def __init__(self, volume: Volume, broken: set[int]) -> None:
        self._volume = volume
        self._broken = broken

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if any(offset <= place < offset + len(buffer) for place in self._broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._volume.read_into(offset, buffer)

    def data_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        return self._volume.data_extents(offset, length)


@pytest.mark.fault(26)
async def test_what_cannot_be_read_is_not_invented_and_withholds_the_point(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 3 * MIB})
    source.write(0, os.urandom(3 * MIB))
    broken = {MIB + 100_000}
    source.wrap = lambda volume: Ailing(volume, broken)
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
        assert source.tracker is not None
        assert source.tracker.reason == "read-error"
        assert replica.points == []
        block = (MIB + 100_000) // 65536 * 65536
        expected = bytearray(source.contents())
        expected[block : block + 65536] = bytes(65536)
        assert replica.image() == expected, "everything else was shipped, nothing was made up"
        broken.clear()
        await source.replicate(replica)
        assert source.tracker.reason == "none"
    assert replica.image() == source.contents()
    assert replica.points[-1].images[1] == source.contents()


async def test_a_writer_with_the_file_open_means_no_point(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: MIB})
    replica = Replica()
    with source.opened():
        with source.paths[1].open("r+b"):
            await source.replicate(replica)
        assert source.tracker is not None
        assert source.tracker.reason == "no-cut"
        assert replica.points == []
        await source.replicate(replica)
    assert len(replica.points) == 1


async def test_a_writer_that_comes_during_the_round_waits_for_a_moment_and_spoils_the_point(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    lease = StillnessLease([path])
    assert lease.held

    def write() -> None:
        with path.open("r+b") as file:
            file.write(b"new")

    await asyncio.wait_for(asyncio.to_thread(write), 10)
    assert not lease.release()


async def test_an_operator_may_vouch_for_stillness(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: MIB})
    source.assume_quiescent = True
    replica = Replica()
    with source.opened(), source.paths[1].open("r+b"):
        await source.replicate(replica)
    assert len(replica.points) == 1


@pytest.mark.fault(31)
async def test_a_target_that_takes_nothing_holds_the_scan_in_bounded_memory(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 64 * MIB})
    source.write(0, os.urandom(64 * MIB))
    replica = Replica(credit_bytes=2 * MIB)
    replica.withhold_credit = True
    with source.opened():
        pipeline, stream = await source.pipeline(replica)
        running = asyncio.create_task(pipeline.run())
        for _ in range(200):
            before = source.progress.sweep.read_bytes
            await asyncio.sleep(0.02)
            if before and source.progress.sweep.read_bytes == before:
                break
        assert source.progress.sweep.read_bytes <= 16 * MIB, "read ahead of the network without bound"
        replica.withhold_credit = False
        stream.give_credit(64 * MIB)
        pipeline.finish()
        await asyncio.wait_for(running, 30)
    assert replica.image() == source.contents()


@pytest.mark.fault(35)
@pytest.mark.parametrize("seed", range(5))
async def test_a_sync_that_breaks_anywhere_is_resumed_until_it_is_whole(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    source = Source(tmp_path, {1: 12 * MIB + 300, 2: 700})
    source.write(0, random.randbytes(6 * MIB))
    source.write(0, random.randbytes(700), 2)
    replica = Replica()
    source.open()
    for _ in range(12):
        replica.events_until_break = lambda: random.randrange(1, 30)
        replica.batches_are_not_acknowledged = random.random() < 0.5
        try:
            await source.replicate(replica)
        except EOFError:
            source.write(random.randrange(6 * MIB), random.randbytes(5000))
        if random.random() < 0.3:
            source.close(clean=random.random() < 0.5)
            source.open()
    replica.events_until_break = lambda: None
    replica.batches_are_not_acknowledged = False
    await source.replicate(replica)
    source.close()
    for number in (1, 2):
        assert replica.image(number) == source.contents(number), f"seed {seed}"
        assert replica.points[-1].images[number] == source.contents(number)


async def test_a_range_that_the_target_lost_is_sent_again(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 2 * MIB})
    source.write(0, os.urandom(2 * MIB))
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
        replica.state.images[1][5000:9000] = bytes(4000)
        pipeline, stream = await source.pipeline(replica)
        running = asyncio.create_task(pipeline.run())
        stream.resend(1, 4096, 8192)
        while replica.image() != source.contents():
            await asyncio.sleep(0.005)
            assert not running.done()
        pipeline.finish()
        await asyncio.wait_for(running, 30)
    assert replica.received_extents[-1][:2] == (1, ExtentKind.DATA)


def test_a_scan_promises_only_quiet_points_and_no_liveness(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 4096})
    with source.opened():
        assert isinstance(source.tracker, ScanTracker)
        abilities = source.tracker.abilities
        assert (abilities.live, abilities.ordered, abilities.point_kinds) == (False, False, (PointKind.QUIET,))


async def test_a_block_that_was_sent_without_an_ack_and_then_changed_back_is_sent_again(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: MIB})
    source.write(0, b"a" * 4096)
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
        source.write(0, b"b" * 4096)
        replica.batches_are_not_acknowledged = True
        replica.events_until_break = lambda: 2  # HELLO and the batch; the cut breaks the link
        with pytest.raises(EOFError):
            await source.replicate(replica)
        assert replica.image().startswith(b"b")
        replica.batches_are_not_acknowledged = False
        replica.events_until_break = lambda: None
        source.write(0, b"a" * 4096)
        await source.replicate(replica)
    assert replica.image() == source.contents()
