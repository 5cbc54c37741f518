"""The whole way: a source is lost, its data is promoted, it comes back, and it is brought home by differences."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from tests.agent.failback.home import MIB, SIZE, at_home, until

pytestmark = pytest.mark.timeout(120)


@pytest.mark.fault(45)
async def test_a_source_goes_over_and_comes_home_with_what_both_sides_wrote_kept(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.write(4096, b"both have this" * 100)
        point = await home.caught_up()
        agent = home.agent
        assert agent is not None
        agent.pause()  # the link is gone
        await until(lambda: agent.pipeline is None)
        await home.write(MIB, b"only the source has this" * 1000)
        divergent = home.disks()

        branch = home.promote(point)
        await home.work(branch, [(8192, b"only the recovered side has this" * 2000), (0, os.urandom(70_000))])

        agent.resume()  # the stale source finds out by itself
        await until(lambda: agent.is_fenced)
        assert agent.status()["reason"] == "fenced"
        with pytest.raises((DrengineError, OSError)):
            await asyncio.to_thread(NbdClient, str(tmp_path / "n.sock"), "disk1")
        with pytest.raises(DrengineError, match="preserved"):
            await agent.reverse((await home.last_point(branch)).id)
        assert home.disks() == divergent

        beyond = home.diverge()
        kept = await agent.preserve(beyond.number, beyond.generation)
        assert 0 < kept.bytes_shipped < 40_000
        home.store.close_branch("shop", beyond.number)
        saved = next(p for p in home.store.points("shop", branch=beyond.number))
        assert (saved.sequence, home.shown(saved)) == (kept.sequence, divergent)

        first = await agent.reverse((await home.last_point(branch)).id)
        assert first.bytes_compared == SIZE
        await home.work(branch, [(MIB + 5000, b"while it was brought home" * 10)])
        last = await home.last_point(branch)
        second = await agent.reverse(last.id)
        assert second.bytes_written <= 4096
        assert home.disks() == home.shown(last)

        handed = home.promote(last)
        shipped = agent.traffic.plain_bytes
        await agent.release(handed.generation, handed.number)
        await until(lambda: agent.status()["state"] == "CONTINUOUS" and home.store.points("shop", branch=handed.number))
        assert agent.traffic.plain_bytes == shipped, "nothing was resent"
        await home.write(0, b"home again")
        newest = await home.caught_up()
        assert newest.branch == handed.number
        with pytest.raises(DrengineError):
            await home.work(branch, [(0, b"the recovered side is not in charge any more")])
