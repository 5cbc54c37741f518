"""An agent with several targets of one store: it finds the owner, moves with it, and is never at two of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from drengine.config import Address
from drengine.model.states import ReplicationState
from drengine.wire.events import Endpoint, Event, Hello, Moved, Refuse
from drengine_agent.daemon import replication
from drengine_agent.daemon.service import Agent
from tests.agent.daemon.test_service import configured, until, write
from tests.agent.replica import Replica, ReplicaStream


class Site:
    """Targets of one store: each takes the source, sends it on, refuses, or is gone. The store is one replica."""

    def __init__(self, *names: str) -> None:
        self.replica = Replica()
        self.addresses = {name: Address(f"{name}.example", 7440) for name in names}
        self.does: dict[str, str] = dict.fromkeys(names, "take")
        self.calls: Counter[str] = Counter()
        self.open: dict[str, _Stream] = {}
        self.at_once = 0

    async def connect(self, address: Address) -> _Stream:
        name = next(name for name, each in self.addresses.items() if each == address)
        self.calls[name] += 1
        if self.does[name] == "gone":
            raise ConnectionRefusedError(f"{name} is gone")
        return _Stream(self.replica, self, name)

    def answer(self, name: str, hello: Hello) -> Event | None:
        """In place of WELCOME."""
        does = self.does[name]
        if does == "take":
            return None
        if does == "busy":
            return Refuse("store-away", "cut off", True)
        if "moved" not in hello.abilities:
            return None if does.startswith("prefer ") else Refuse("source-elsewhere", does, True)
        return self.moved(does.rpartition(" ")[2])

    def moved(self, owner: str) -> Moved:
        address = self.addresses[owner]
        return Moved(owner, (Endpoint(address.host, address.port),), "it has the source")


@dataclass
class _Stream:
    replica: Replica
    site: Site
    name: str
    is_proved: bool = True
    _inner: ReplicaStream = field(init=False)
    _sent_on: asyncio.Future[Event] = field(init=False)
    _refusal: Event | None = None

    def __post_init__(self) -> None:
        self._inner = ReplicaStream(self.replica)
        self._sent_on = asyncio.get_running_loop().create_future()

    async def send(self, event: Event) -> None:
        if isinstance(event, Hello):
            self._refusal = self.site.answer(self.name, event)
            if self._refusal is None:
                self.site.open[self.name] = self
                self.site.at_once = max(self.site.at_once, len(self.site.open))
        await self._inner.send(event)

    async def receive(self) -> Event:
        if self._refusal is not None:
            return self._refusal
        receiving = asyncio.ensure_future(self._inner.receive())
        try:
            done, _ = await asyncio.wait({receiving, self._sent_on}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not receiving.done():
                receiving.cancel()
        return self._sent_on.result() if self._sent_on in done else receiving.result()

    async def close(self) -> None:
        if self.site.open.get(self.name) is self:
            del self.site.open[self.name]
        await self._inner.close()

    def end(self, event: Event | None) -> None:
        """Say the last word, or break."""
        if event is None:
            self._sent_on.set_exception(EOFError("killed"))
        else:
            self._sent_on.set_result(event)


class Running:
    """The agent, while the block lasts."""

    def __init__(self, folder: Path, site: Site, seed: int = 1) -> None:
        self.config = configured(folder, target=[str(each) for each in site.addresses.values()], drain="5s")
        self.agent = Agent(self.config, connector=site.connect, random=Random(seed))

    async def __aenter__(self) -> Running:
        self._task = asyncio.create_task(self.agent.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.agent.stop()
        await asyncio.wait_for(self._task, 30)

    async def continuous(self) -> None:
        await until(lambda: self.agent.status()["state"] == ReplicationState.CONTINUOUS)


@pytest.mark.parametrize("seed", range(4))
async def test_an_agent_finds_the_owner_wherever_it_begins(tmp_path: Path, seed: int) -> None:
    site = Site("a", "b", "c")
    site.does = {"a": "owner: b", "b": "take", "c": "owner: b"}
    async with Running(tmp_path, site, seed) as running:
        await running.continuous()
        assert running.agent.status()["target"] == "b.example:7440"
    assert site.calls["b"] == 1
    assert site.calls.total() <= 2
    assert site.at_once == 1


async def test_a_source_whose_owner_is_gone_is_taken_by_another_and_ships_what_was_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "OWNED_CAP_SECONDS", 0.05)
    site = Site("a", "b", "c")
    site.does = {"a": "take", "b": "owner: a", "c": "owner: a"}
    async with Running(tmp_path, site) as running:
        await running.continuous()
        site.does = {"a": "gone", "b": "owner: a", "c": "owner: a"}  # its lock is not over yet
        site.open["a"].end(None)
        await write(running.config, 0, b"written while nobody owned it")
        await until(lambda: running.agent.status()["reason"] == "source-elsewhere")
        site.does = dict.fromkeys(site.does, "take") | {"a": "gone"}
        await running.continuous()
        assert running.agent.status()["target"] != "a.example:7440"
        await until(lambda: site.replica.points and site.replica.points[-1].images[1].startswith(b"written while"))
    assert site.at_once == 1


async def test_a_target_that_drains_hands_the_source_over_without_a_comparison(tmp_path: Path) -> None:
    site = Site("a", "b")
    site.does = {"a": "take", "b": "owner: a"}
    async with Running(tmp_path, site) as running:
        await running.continuous()
        site.does = {"a": "owner: b", "b": "take"}
        site.open["a"].end(site.moved("b"))
        await until(lambda: "b" in site.open)
        await running.continuous()
        await write(running.config, 0, b"after")
        await until(lambda: site.replica.points[-1].images[1].startswith(b"after"))
        assert running.agent.status()["rescans"] == {}
    assert site.replica.queries == 0
    assert site.at_once == 1


async def test_targets_that_disagree_are_asked_to_decide_and_no_agent_runs_between_them(tmp_path: Path) -> None:
    site = Site("a", "b")
    site.does = {"a": "prefer b", "b": "prefer a"}
    async with Running(tmp_path, site) as running:
        await running.continuous()
    assert site.calls.total() <= 3


async def test_a_source_is_not_sent_to_a_target_that_it_can_not_reach(tmp_path: Path) -> None:
    site = Site("a", "b")
    site.does = {"a": "prefer b", "b": "gone"}
    async with Running(tmp_path, site) as running:
        await running.continuous()
        assert running.agent.status()["target"] == "a.example:7440"


async def test_targets_that_take_a_source_only_to_send_it_on_are_visited_ever_more_rarely(tmp_path: Path) -> None:
    site = Site("a", "b")
    async with Running(tmp_path, site) as running:
        for _ in range(6):
            await until(lambda: site.open and running.agent.replication.pipeline is not None)
            (name,) = site.open
            site.open[name].end(site.moved("b" if name == "a" else "a"))
            await until(lambda name=name: name not in site.open)
        await until(lambda: site.open)
        assert running.agent.replication._attempts.moved >= 6
    assert site.at_once == 1


async def test_one_that_is_cut_off_is_left_for_one_that_is_not(tmp_path: Path) -> None:
    site = Site("a", "b", "c")
    site.does = {"a": "busy", "b": "gone", "c": "take"}
    async with Running(tmp_path, site) as running:
        await running.continuous()
        assert running.agent.status()["target"] == "c.example:7440"
