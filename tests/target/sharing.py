"""Several targets on one store in one process: real daemons and a real store, with named locks and a directory between
them as a shared catalogue keeps them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from drengine.config import Address
from drengine.model.errors import DrengineError
from drengine.store.errors import BRANCH_BUSY, TARGET_LIVING, UNKNOWN_TARGET
from drengine.store.locks import Holder
from drengine.store.locks.flock import FileLock, FileLocks
from drengine.store.store import Store
from drengine.store.targets import Introduction, TargetInfo, TargetState
from drengine.target.config import MaintenanceOptions, TargetConfig
from drengine.target.daemon import TargetDaemon
from drengine.transport.endpoints import connect
from drengine.transport.networks import DataNetworks
from drengine.wire.events import ABILITIES, Hello, Moved, Refuse, Welcome
from tests.system.test_hang_up import free_port
from tests.target.agent import Agent, Site


@dataclass
class Between:
    """What a shared catalogue holds of locks and targets. Time passes when a test says so."""

    now: float = 0.0
    held: dict[tuple[str, int], Holder] = field(default_factory=dict)
    known: dict[str, tuple[Introduction, float]] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    places: dict[str, str] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    """Their locks and their word stay as they were."""
    unreachable: bool = False

    def expire(self, name: str) -> None:
        """The locks of a target that was killed are over."""
        self.held = {what: holder for what, holder in self.held.items() if holder.name != name}


class NamedLocks(FileLocks):
    """Of one target."""

    def __init__(self, directory: Path, me: Holder, between: Between) -> None:
        super().__init__(directory)
        self._me = me
        self._between = between

    def branch(self, source: str, branch: int) -> FileLock:
        held = self._between.held
        if held.get((source, branch), self._me).name != self._me.name:
            raise DrengineError(BRANCH_BUSY, f"branch {branch} of {source!r} has a writer")
        lock = super().branch(source, branch)
        held[source, branch] = self._me
        let_go = lock.release

        def release() -> None:
            if self._me.name not in self._between.killed and held.get((source, branch)) is self._me:
                del held[source, branch]
            let_go()

        lock.release = release  # type: ignore[method-assign]
        return lock

    def branch_holder(self, source: str, branch: int) -> Holder | None:
        return self._between.held.get((source, branch))

    def branch_holders(self) -> dict[tuple[str, int], Holder]:
        return dict(self._between.held)


class Directory:
    """The directory of targets, as one of them reaches it."""

    is_shared = True

    def __init__(self, between: Between) -> None:
        self._between = between

    def report(self, me: Introduction) -> list[TargetInfo]:
        if self._between.unreachable:
            raise DrengineError(BRANCH_BUSY, "no catalogue")
        if me.name not in self._between.killed:
            self._between.known[me.name] = me, self._between.now
            self._between.stopped.discard(me.name)
        return self.all()

    def leave(self, name: str) -> None:
        if name not in self._between.killed:
            self._between.stopped.add(name)

    def all(self) -> list[TargetInfo]:
        return [self._info(name) for name in sorted(self._between.known)]

    def drain(self, name: str, draining: bool) -> None:
        self._require(name)
        (self._between.draining.add if draining else self._between.draining.discard)(name)

    def forget(self, name: str) -> None:
        self._require(name)
        if self._info(name).is_living:
            raise DrengineError(TARGET_LIVING, name)
        del self._between.known[name]

    def placed(self) -> Mapping[str, str]:
        return dict(self._between.places)

    def placed_at(self, source: str) -> str:
        return self._between.places.get(source, "")

    def place(self, source: str, target: str) -> None:
        if target:
            self._between.places[source] = target
        else:
            self._between.places.pop(source, None)

    def close(self) -> None:
        pass

    def _require(self, name: str) -> None:
        if name not in self._between.known:
            raise DrengineError(UNKNOWN_TARGET, name)

    def _info(self, name: str) -> TargetInfo:
        between = self._between
        introduction, seen = between.known[name]
        state = TargetState.DRAINING if name in between.draining else TargetState.SERVING
        state = TargetState.STOPPED if name in between.stopped else state
        here = sum(place == name for place in between.places.values())
        return TargetInfo(*introduction, state, between.now - seen, here)


@dataclass
class Targets:
    """Running targets of one store."""

    folder: Path
    between: Between = field(default_factory=Between)
    sites: dict[str, Site] = field(default_factory=dict)

    async def start(self, name: str) -> Site:
        """Start one, or start it again."""
        store = Store.open(self.folder)
        address = Address("127.0.0.1", free_port())
        me = Holder(name, (str(address),))
        locks = NamedLocks(self.folder, me, self.between)
        return await self.serve(
            name, address, Store(replace(store.context, locks=locks, targets=Directory(self.between)))
        )

    async def serve(self, name: str, address: Address, store: Store) -> Site:
        """Begin one that has a store open already."""
        quiet = MaintenanceOptions(retention_interval=1e6, compaction_interval=1e6)
        config = TargetConfig(store=self.folder, name=name, listen=address, maintenance=quiet, free_space_min=0)
        daemon = TargetDaemon(config, store=store)
        where = await daemon.start()
        site = self.sites[name] = Site(daemon, where.replication, store, config, where.nbd)
        return site

    async def stop(self, name: str) -> None:
        """End one in order."""
        site = self.sites.pop(name)
        await site.daemon.stop()
        for agent in site.agents:
            await agent.close()
        site.store.close()

    async def kill(self, name: str) -> None:
        """End one as if it had been killed: its locks stay until they expire."""
        self.between.killed.add(name)
        for agent in self.sites[name].agents:
            await agent.close()
        await self.stop(name)

    async def ask(
        self, name: str, source: str = "shop", *, abilities: frozenset[str] = ABILITIES, instance: bytes = b"i" * 16
    ) -> Agent | Moved | Refuse:
        """What a target answers to an agent's HELLO; a session that it opens is kept."""
        site = self.sites[name]
        stream = await connect(*site.address, networks=DataNetworks(), tls=None)
        await stream.send(Hello(2, 2, abilities, source, instance, 1))
        answer = await stream.receive()
        if isinstance(answer, Welcome):
            agent = Agent(stream, answer, answer.durable_sequence).start()
            site.agents.append(agent)
            return agent
        stream.abort()
        assert isinstance(answer, Moved | Refuse)
        return answer

    async def join(self, name: str, source: str = "shop") -> tuple[str, Agent]:
        """Open a session as an agent does: with whom the first one sends it to."""
        for _ in range(4):
            answer = await self.ask(name, source)
            if isinstance(answer, Agent):
                return name, answer
            assert isinstance(answer, Moved), answer
            name = answer.owner
        raise AssertionError(f"{source} is sent round in a circle")


T = TypeVar("T", bound=Targets)


@asynccontextmanager
async def sharing(folder: Path, *names: str) -> AsyncIterator[Targets]:
    """So many targets on one store; all are ended afterwards."""
    Store.create(folder / "store").close()
    async with running(Targets(folder / "store"), *names) as targets:
        yield targets


@asynccontextmanager
async def running(targets: T, *names: str) -> AsyncIterator[T]:
    """Begin so many; all are ended afterwards."""
    try:
        for name in names:
            await targets.start(name)
        yield targets
    finally:
        for name in list(targets.sites):
            with contextlib.suppress(DrengineError):
                await targets.stop(name)
