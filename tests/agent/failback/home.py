"""A whole site for tests of the way home: a real target with its store, a real agent, files as disks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from drengine.model.clock import SystemClock
from drengine.model.grants import Access
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.nbd.client import NbdClient
from drengine.store.log.branches import BranchInfo
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.daemon.service import Agent
from tests.target.agent import Site
from tests.target.agent import running as target_running

MIB = 1 << 20
SIZE = 2 * MIB + 512
"""Not whole blocks, nor whole grains."""

DEADLINE_SECONDS = 30.0


async def until(what: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    while not (answer := what()):
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.005)
    return answer


class Home:
    """The source's host and the target; whichever of them is on."""

    def __init__(self, folder: Path, target: Site, *, tracker: str = "nbd", volumes: int = 1, **options: Any) -> None:
        self.folder = folder
        self.target = target
        self.source: str = options.pop("source", "shop")
        self.store = target.store
        self.names = [f"disk{number}" for number in range(1, volumes + 1)]
        self.seeded = random.Random(7)
        self.clock = SystemClock()
        for name in self.names:
            if not self.path(name).exists():
                self.path(name).write_bytes(self.seeded.randbytes(MIB) + bytes(MIB) + b"tail" * 128)
        self.options = {
            "source": self.source,
            "target": "{}:{}".format(*target.address),
            "state_directory": str(folder / "state"),
            "tracker": tracker,
            "nbd": {"listen": f"unix:{folder}/n.sock", "journal": "4MiB"},
            "volume": [{"name": name, "path": str(self.path(name))} for name in self.names],
            "point_interval": "5ms",
            **options,
        }
        if tracker == "scan":
            self.options.setdefault("scan", {"interval": "1h"})
        self.agent: Agent | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def config(self) -> AgentConfig:
        return parse_config(self.options)

    @property
    def nbd(self) -> Path:
        """The target's socket."""
        socket = self.target.config.nbd_socket
        assert socket is not None
        return socket

    def path(self, name: str = "disk1") -> Path:
        return self.folder / f"{name}.img"

    def disk(self, name: str = "disk1") -> bytes:
        return self.path(name).read_bytes()

    def disks(self) -> dict[str, bytes]:
        return {name: self.disk(name) for name in self.names}

    # ---- the source's host -----------------------------------------------------------------------------------

    def start(self) -> Agent:
        """Switch the agent on."""
        self.agent = Agent(self.config, random=random.Random(1))
        self._running = asyncio.create_task(self.agent.run())
        return self.agent

    async def stop(self) -> None:
        """Switch it off in order."""
        if self.agent is not None and self._running is not None:
            self.agent.stop()
            await asyncio.wait_for(self._running, DEADLINE_SECONDS)
        self.agent = self._running = None

    async def restart(self) -> Agent:
        await self.stop()
        return self.start()

    async def write(self, offset: int, data: bytes, name: str = "disk1") -> None:
        """As production does."""

        def work() -> None:
            with NbdClient(str(self.folder / "n.sock"), name) as client:
                client.write(offset, data)
                client.flush()

        await asyncio.to_thread(work)

    async def caught_up(self) -> RecoveryPoint:
        """Wait until the newest point shows the disks as they are."""

        def newest() -> RecoveryPoint | None:
            points = self.store.points(self.source, branch=self.active.number) if self.store.sources() else []
            return points[-1] if points and self.shown(points[-1]) == self.disks() else None

        found: RecoveryPoint = await until(newest)
        return found

    # ---- the target ------------------------------------------------------------------------------------------

    @property
    def active(self) -> BranchInfo:
        return next(branch for branch in self.store.branches(self.source) if branch.active)

    def shown(self, point: RecoveryPoint) -> dict[str, bytes]:
        """What a point shows."""
        with self.store.view(point) as view:
            return {each.name: view.read(each.volume, 0, each.size_bytes) for each in point.geometry}

    def newest(self) -> RecoveryPoint:
        return self.store.find_point(self.source, PointSelector())

    def promote(self, point: RecoveryPoint | None = None) -> BranchInfo:
        """Fail over, as the orchestrator would; and let the source come home from what it is then."""
        generation = self.store.source(self.source).generation
        branch = self.store.promote(point or self.newest(), expected_generation=generation)
        self.store.grants.give(self.source, branch.number, Access.REVERSE, holder=f"agent/{self.source}")
        return branch

    def diverge(self) -> BranchInfo:
        """A branch for what the source has beyond its replica: at the newest point that the source itself wrote."""
        points = self.store.points(self.source, branch=self.wrote)
        branch = self.store.create_branch(points[-1], role="divergent", label="run:test")
        self.store.grants.give(self.source, branch.number, Access.PRESERVE, holder=f"agent/{self.source}")
        return branch

    @property
    def wrote(self) -> int:
        """The branch that the source wrote last."""
        assert self.agent is not None
        return self.agent.branch

    async def work(self, branch: BranchInfo, writes: list[tuple[int, bytes]], name: str = "disk1") -> None:
        """The recovered side writes."""

        def write() -> None:
            with NbdClient(str(self.nbd), f"{self.source}/{name}#{branch.number}") as client:
                for offset, data in writes:
                    client.write(offset, data)
                client.flush()

        await asyncio.to_thread(write)

    async def last_point(self, branch: BranchInfo) -> RecoveryPoint:
        """When nobody writes the branch any more: the point that shows all of it."""

        def newest() -> RecoveryPoint | None:
            now = next(each for each in self.store.branches(self.source) if each.number == branch.number)
            if now.durable_sequence == branch.base_sequence:
                return self.store.find_point(
                    self.source, PointSelector(branch=branch.parent, sequence=branch.base_sequence)
                )
            points = self.store.points(self.source, branch=branch.number)
            return points[-1] if points and points[-1].sequence == now.durable_sequence else None

        found: RecoveryPoint = await until(newest)
        return found


@asynccontextmanager
async def at_home(folder: Path, *, target: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Home]:
    """A target and a source, both on."""
    given = {"nbd_socket": folder / "t.sock", "point_interval": 0.02, **(target or {})}
    async with target_running(folder / "store", **given) as site:
        home = Home(folder, site, **options)
        home.start()
        try:
            yield home
        finally:
            with contextlib.suppress(Exception):
                await home.stop()
