"""Coming home: a source's disk made equal to the recovered side's newest point, by how much was changed there."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks.bench import Bench
from benchmarks.image import random_blocks
from benchmarks.peers import run
from benchmarks.results import Contestant, Measured, Table, contest
from benchmarks.site import Target, check_replica, wait_for
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.nbd.client import NbdClient
from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store
from drengine_agent.config import parse_config
from drengine_agent.daemon.service import Agent

SHARES = (0.001, 0.01, 0.1)
LOG, HASHES, NBDCOPY = (
    "drengine, a later round (by the log)",
    "drengine, the first round (by hashes)",
    "nbdcopy, all of it",
)
SOURCE = "source"
_T = TypeVar("_T")


@dataclass
class Home:
    """A fenced source, and the branch that the recovered side writes."""

    agent: Agent
    loop: asyncio.AbstractEventLoop
    target: Target
    store: Store
    branch: BranchInfo
    seed: int = 0

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Have the agent do something."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def change(self, share: float) -> RecoveryPoint:
        """The recovered side overwrites a share of its 4 KiB blocks at random; the point that shows all of it."""
        self.seed += 1
        with NbdClient(str(self.target.nbd), f"{SOURCE}/disk#{self.branch.number}") as disk:
            for offset, data in random_blocks(disk.size_bytes, share, seed=self.seed):
                disk.write(offset, data)
            disk.flush()
        point = wait_for("the last point", self._last, self.target)
        assert point is not None
        return point

    def _last(self) -> RecoveryPoint | None:
        durable = {each.number: each.durable_sequence for each in self.store.branches(SOURCE)}[self.branch.number]
        points = self.store.points(SOURCE, branch=self.branch.number)
        return points[-1] if points and points[-1].sequence == durable else None

    def reverse(self, share: float, *, known: bool) -> Measured:
        """One round, timed: disks synced and read back at its end."""
        point = self.change(share)
        fence = self.agent.way_home.fence
        if not known:
            fence.replace(msgspec.structs.replace(fence.record, equals="", stamps={}))
        begun = time.perf_counter()
        report = self.do(self.agent.reverse(point.id, force=True))
        seconds = time.perf_counter() - begun
        return Measured(seconds, report.bytes_shipped, f"{report.bytes_written >> 10} KiB differed")


def measure(bench: Bench) -> list[Table]:
    """One table for each share of the disk that the recovered side changed."""
    with _fenced(bench) as home:
        image, copy = bench.folder / "home.img", bench.folder / "copied.img"

        def nbdcopy(share: float) -> Measured:
            point = home.change(share)
            begun = time.perf_counter()
            uri = f"nbd+unix:///{SOURCE}/disk%40{point.id}?socket={home.target.nbd}"
            run("nbdcopy", "--flush", uri, copy)
            return Measured(time.perf_counter() - begun, image.stat().st_size)

        tables = []
        for share in SHARES:
            contestants = [
                Contestant(LOG, lambda share=share: home.reverse(share, known=True), ours=True),  # type: ignore[misc]
                Contestant(HASHES, lambda share=share: home.reverse(share, known=False), ours=True),  # type: ignore[misc]
                Contestant(NBDCOPY, lambda share=share: nbdcopy(share)),  # type: ignore[misc]
            ]
            home.reverse(share, known=True)  # whoever comes first has no more to ship than the others
            tables.append(
                Table(
                    f"failback_{share:g}".replace(".", "_"),
                    f"Failback of {bench.image_bytes >> 20} MiB, {share:.1%} changed at random",
                    "s",
                    contest(contestants, bench.rounds),
                    baseline=HASHES,
                    remark="Ours: until the disk is synced and read back. A later round also meets what other "
                    "contestants' rounds changed since the one before it.",
                )
            )
        home.reverse(0.001, known=True)
        check_replica(home.target, SOURCE, image)
        copy.unlink(missing_ok=True)
    return tables


@contextmanager
def _fenced(bench: Bench) -> Iterator[Home]:
    """A source that was failed over and has come back, its disk kept."""
    image, folder = bench.folder / "home.img", bench.fresh("failback")
    shutil.copyfile(bench.image, image)
    with bench.site(folder) as here:
        target = here.start_target(point_interval="50ms")
        since_ns = time.time_ns()
        with _agent(folder, target, image) as (agent, loop), Store.open(target.store) as store:
            target.wait_point(SOURCE, since_ns)
            point = store.find_point(SOURCE, PointSelector())
            branch = store.promote(point, expected_generation=1)
            home = Home(agent, loop, target, store, branch)
            home.do(agent.fence(1))
            beyond = store.create_branch(point, role="divergent")
            home.do(agent.preserve(beyond.number, beyond.generation))
            yield home
    image.unlink()


@contextmanager
def _agent(folder: Path, target: Target, image: Path) -> Iterator[tuple[Agent, asyncio.AbstractEventLoop]]:
    """An agent in a thread of this process: what is measured is asked of it directly."""
    config = parse_config(
        {
            "source": SOURCE,
            "target": f"127.0.0.1:{target.port}",
            "state_directory": str(folder / "state"),
            "nbd": {"listen": f"unix:{folder}/tap.sock"},
            "volume": [{"name": "disk", "path": str(image)}],
        }
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[Agent, asyncio.Task[None]]:
        agent = Agent(config)
        return agent, asyncio.create_task(agent.run())

    async def stop(agent: Agent, running: asyncio.Task[None]) -> None:
        agent.stop()
        await running

    agent, running = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield agent, loop
    finally:
        asyncio.run_coroutine_threadsafe(stop(agent, running), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
