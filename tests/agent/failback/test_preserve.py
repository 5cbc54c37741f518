"""What only the source has is kept: all of it, as one point, on a branch that nobody else writes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine_agent.capture.backing import Volume
from tests.agent.failback.home import MIB, at_home, until
from tests.agent.failback.test_reverse import differing_bytes, parted

pytestmark = pytest.mark.timeout(120)


@pytest.mark.fault(45)
@pytest.mark.parametrize(("tracker", "seed"), [("nbd", 1), ("nbd", 2), ("scan", 3)])
async def test_the_divergent_point_shows_the_disks_as_they_were_when_the_source_came_back(
    tmp_path: Path, tracker: str, seed: int
) -> None:
    async with at_home(tmp_path, tracker=tracker, volumes=2) as home:
        await parted(home, random.Random(seed), here=8)
        agent = home.agent
        assert agent is not None
        beyond = home.diverge()
        (base,) = [p for p in home.store.points("shop", branch=1) if p.sequence == beyond.base_sequence]
        differ = differing_bytes(home.disks(), home.shown(base))
        told: list[Any] = []
        before = home.active
        kept = await agent.preserve(beyond.number, beyond.generation, told.append)
        (point,) = home.store.points("shop", branch=beyond.number)
        assert (point.sequence, point.kind) == (kept.sequence, PointKind.QUIET)
        assert home.shown(point) == home.disks()
        assert kept.bytes_shipped <= 1.3 * differ
        assert home.active == before, "the history has noticed"
        assert told
        home.store.close_branch("shop", beyond.number)
        again = await agent.preserve(beyond.number, beyond.generation)
        assert (again.sequence, again.bytes_shipped) == (kept.sequence, 0)
        other = home.diverge()
        twice = await agent.preserve(other.number, other.generation)
        assert home.shown(home.store.points("shop", branch=other.number)[-1]) == home.disks()
        assert twice.sequence


async def test_a_write_that_was_called_done_and_not_yet_on_the_disk_is_kept_as_well(tmp_path: Path) -> None:
    """The agent was killed between the journal and the disk: what the journal has belongs to what is kept."""
    async with at_home(tmp_path) as home:
        await home.caught_up()
        agent = home.agent
        assert agent is not None
        agent.pause()
        await until(lambda: agent.pipeline is None)
        await home.write(MIB, b"called done" * 100)
        home.promote()
        expected = home.disks()
        await agent.fence(1)
        agent.resume()
        beyond = home.diverge()
        await agent.preserve(beyond.number, beyond.generation)
        assert home.shown(home.store.points("shop", branch=beyond.number)[-1]) == expected


@pytest.mark.fault(26)
async def test_a_block_that_cannot_be_read_withholds_the_point_and_the_reversal(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(4))
        agent = home.agent
        assert agent is not None
        beyond = home.diverge()
        real = Volume.read_into

        def failing(self: Volume, offset: int, buffer: Any) -> None:
            if offset <= 70_000 < offset + len(buffer):
                raise OSError(5, "Input/output error")
            real(self, offset, buffer)

        before = home.disks()
        with monkeypatch.context() as patched:
            patched.setattr(Volume, "read_into", failing)
            with pytest.raises(DrengineError, match="can't be read whole: volume 1 at 65536"):
                await agent.preserve(beyond.number, beyond.generation)
        assert home.store.points("shop", branch=beyond.number) == []
        with pytest.raises(DrengineError, match="preserved"):
            await agent.reverse((await home.last_point(branch)).id)
        assert home.disks() == before
        await agent.preserve(beyond.number, beyond.generation)
        assert home.shown(home.store.points("shop", branch=beyond.number)[-1]) == before


async def test_a_disk_that_somebody_has_open_for_writing_is_neither_kept_nor_overwritten(tmp_path: Path) -> None:
    async with at_home(tmp_path, tracker="scan") as home:
        branch = await parted(home, random.Random(5))
        agent = home.agent
        assert agent is not None
        beyond = home.diverge()
        before = home.disks()
        with home.path().open("r+b"):
            for work in (
                agent.preserve(beyond.number, beyond.generation),
                agent.reverse((await home.last_point(branch)).id, force=True),
            ):
                with pytest.raises(DrengineError, match="open for writing") as refused:
                    await work
                assert refused.value.kind.id == "reverse-refused"
        assert home.disks() == before
        await agent.preserve(beyond.number, beyond.generation)


async def test_nothing_is_left_to_keep_where_the_disks_are_the_targets_already(tmp_path: Path) -> None:
    """A failback after a reprotect asks once more: the disks hold what the target sent, and nothing of their own."""
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(6))
        agent = home.agent
        assert agent is not None
        first = home.diverge()
        await agent.preserve(first.number, first.generation)
        await agent.reverse((await home.last_point(branch)).id)
        second = home.diverge()
        kept = await agent.preserve(second.number, second.generation)
        assert (kept.sequence, kept.bytes_shipped, kept.bytes_compared) == (0, 0, 0)
        assert home.store.points("shop", branch=second.number) == []
        await agent.reverse((await home.last_point(branch)).id)
        agent = await home.restart()
        assert (await agent.preserve(second.number, second.generation)).bytes_shipped == 0


async def test_the_branch_of_another_is_not_written(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        branch = await parted(home, random.Random(7))
        agent = home.agent
        assert agent is not None
        for number, generation in ((branch.number, branch.generation), (1, 1), (99, 1)):
            with pytest.raises(DrengineError):
                await agent.preserve(number, generation)
        beyond = home.diverge()
        with pytest.raises(DrengineError, match="fenced"):
            await agent.preserve(beyond.number, beyond.generation + 1)
        await agent.preserve(beyond.number, beyond.generation)
