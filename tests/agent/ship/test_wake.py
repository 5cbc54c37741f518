"""The tap calls the pipeline: a write after quiet needs no clock to travel, and a burst calls once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from drengine.model.points import Mark
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.tap.tracker import Tap
from tests.agent.capture.tap.rig import Replica as Follower
from tests.agent.capture.tap.rig import Site, write
from tests.agent.replica import Replica
from tests.agent.source import DEADLINE_SECONDS, Source
from tests.clock import ManualClock

BLOCK = 4096


class TapSource(Source):
    """A source whose volume is served by a tap; it counts what the pipeline asked of `call_on_change` and got."""

    def open(self) -> None:
        self.volumes = {
            number: Volume.open(number, f"v{number}", path, writable=True) for number, path in self.paths.items()
        }
        self.tap = self.tracker = Tap(list(self.volumes.values()), self.folder / "tap")
        self.tap.open(self.geometry)
        self.requested = asyncio.Event()
        self.progress_made = asyncio.Event()
        self.calls = 0
        loop = asyncio.get_running_loop()
        self.tap.on_progress = lambda: loop.call_soon_threadsafe(self.progress_made.set)
        self._loop = loop

    def call_on_change(self, since: Mark, call: Callable[[], None]) -> bool:
        def counted() -> None:
            self.calls += 1
            call()

        promised = self.tap.call_on_change(since, counted)
        self._loop.call_soon_threadsafe(self.requested.set)
        return promised

    async def settle(self) -> None:
        """Wait until all that was written is acknowledged."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.tap.acknowledged < self.tap.position:
                self.progress_made.clear()
                if self.tap.acknowledged < self.tap.position:
                    await self.progress_made.wait()


@contextlib.asynccontextmanager
async def replicating(path: Path, replica: Replica, *, point_interval: float) -> AsyncIterator[TapSource]:
    """A source whose pipeline rests and has asked to be called; its clock stands still, and idle means for ever."""
    source = TapSource(path, {1: 1 << 20}, clock=ManualClock())
    source.open()
    pipeline, _ = await source.pipeline(
        replica,
        call_on_change=source.call_on_change,  # type: ignore[arg-type]
        point_interval_seconds=point_interval,
        idle_seconds=3600.0,
    )
    running = asyncio.create_task(pipeline.run())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await source.requested.wait()
        yield source
        pipeline.finish()
        await asyncio.wait_for(running, DEADLINE_SECONDS)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        source.tap.close()


async def test_a_write_after_quiet_travels_and_is_cut_without_the_clock(tmp_path: Path) -> None:
    replica = Replica()
    async with replicating(tmp_path, replica, point_interval=0.0) as source:
        for number in range(1, 4):
            source.requested.clear()
            points = len(replica.points)
            data = bytes([number]) * BLOCK
            source.tap.apply(source.volumes[1], [write(0, data)])
            async with asyncio.timeout(DEADLINE_SECONDS):
                await source.requested.wait()
            assert source.calls == number
            assert len(replica.points) == points + 1, "one point for the write, in the same answer"
            assert replica.points[-1].images[1][:BLOCK] == data


async def test_a_thousand_writes_call_once(tmp_path: Path) -> None:
    replica = Replica()
    async with replicating(tmp_path, replica, point_interval=3600.0) as source:
        for number in range(1000):
            await asyncio.to_thread(
                source.tap.apply, source.volumes[1], [write(number % 256 * BLOCK, number.to_bytes(2, "big") * 2048)]
            )
        await source.settle()
        assert source.calls == 1, "no further call is asked for before the burst is durable and cut"
        assert replica.image() == source.contents()


def test_a_write_between_the_answer_and_the_request_is_not_slept_over(tmp_path: Path) -> None:
    site = Site(tmp_path)
    follower = Follower(site)
    mark = follower.catch_up().mark
    calls: list[str] = []
    site.apply(1, write(0, b"between"))
    assert not site.tap.call_on_change(mark, lambda: calls.append("in vain"))
    site.apply(1, write(0, b"later"))
    assert calls == []
    mark = follower.catch_up().mark
    assert site.tap.call_on_change(mark, lambda: calls.append("forgotten"))
    assert site.tap.call_on_change(mark, lambda: calls.append("newest"))
    site.apply(1, write(0, b"again"))
    site.apply(1, write(0, b"and again"))
    assert calls == ["newest"], "a request is good for one call"
    mark = follower.catch_up().mark
    assert site.tap.call_on_change(mark, lambda: calls.append("doubt"))
    site.tap.request_rescan("operator")
    assert calls == ["newest", "doubt"]
    assert not site.tap.call_on_change(mark, lambda: calls.append("in vain"))
