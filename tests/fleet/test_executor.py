"""An upgrade carried out over a real broker, to parties that answer as agents do and become well, sick or silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from drengine.audit import AuditLog
from drengine.audit.verify import read_entries
from drengine.config import Address
from drengine.control.agents import BrokerAgents
from drengine.control.broker import embedded_broker
from drengine.control.config import OrchestratorBrokerOptions
from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.messages import AgentReport, Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.enrolment.handout import AGENT_FILE
from drengine.enrolment.messages import AgentAnswer
from drengine.failover.config import FleetOptions, OrchestratorConfig
from drengine.failover.registry import Registry
from drengine.failover.witness import Witness
from drengine.fleet.answers import RolloutAnswer
from drengine.fleet.errors import DOWNGRADE, ROLLOUT_ACTIVE, UPGRADE_IMPOSSIBLE
from drengine.fleet.look import Parts, look
from drengine.fleet.orders import FleetOrders
from drengine.fleet.rollout import Executor, Rollouts, State, _carry, duty_of, rollout_answer
from drengine.identity.names import Identity, Role
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.notifications import Notice, Notifier, Topic
from drengine.people.errors import NOT_PERMITTED
from tests.control.identities import BOSS, Site
from tests.control.site import free_port, until
from tests.persons import BOB, VIC

pytestmark = pytest.mark.timeout(180)
OLD, NEW = "a" * 64, "b" * 64
VERSION = "99.0"


@dataclass
class Host:
    """An agent, as far as orders and reports go. `becomes`: what an order leads to."""

    name: str
    becomes: str = "well"
    sha256: str = OLD
    state: str = "CONTINUOUS"
    tracker: str = "ebpf"
    orders: list[str] = field(default_factory=list)

    async def upgrade(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self.orders.append(command.id)
        if self.becomes == "unwilling":
            raise ValueError("it does not want to")
        if self.becomes in ("well", "lost", "other"):
            self.sha256 = str(command.arguments["sha256"])
        self.state = "RESCAN" if self.becomes == "lost" else self.state
        self.tracker = "scan" if self.becomes == "other" else self.tracker
        return {}

    def report(self) -> AgentReport:
        return AgentReport(
            name="", kind=PartyKind.AGENT, state=self.state, reason="none", generation=1, fenced=False, serving=True,
            lag_seconds=0.0, backlog_bytes=0, at_ns=0, sequence=0,
            details={"tracker": self.tracker, "upgrade": {"sha256": self.sha256}},
        )  # fmt: skip


@dataclass
class World:
    parts: Parts
    hosts: dict[str, Host]
    folder: Path

    def orders(self, who: Any = BOB) -> FleetOrders:
        return FleetOrders(self.parts, Witness(AuditLog.open(self.folder / "audit")), who)

    async def begin(self, *rings: str, **more: Any) -> RolloutAnswer:
        given = {"limit_seconds": 20.0, "at_once": 4, **more}
        return await asyncio.to_thread(lambda: self.orders().upgrade(VERSION, "", rings, **given))

    async def carried(self) -> RolloutAnswer:
        return rollout_answer(await Executor(self.parts, duty_of(self.parts)).run())

    def ordered(self) -> set[str]:
        return {name for name, host in self.hosts.items() if host.orders}


def phases(rollout: RolloutAnswer) -> dict[str, str]:
    return {each.source: each.phase for ring in rollout.rings for each in ring.agents}


@contextlib.asynccontextmanager
async def world(folder: Path, *hosts: Host) -> AsyncIterator[World]:
    site, port = Site.make(folder), free_port()
    (site.authority.folder / AGENT_FILE).write_bytes(msgspec.json.encode(AgentAnswer(VERSION, NEW, 1000)))
    files = site.files(BOSS)
    options = OrchestratorBrokerOptions(
        address=Address("127.0.0.1", port), certificate=files.certificate, key=files.key, ca=files.ca, crl=files.crl
    )
    config = OrchestratorConfig(
        store=folder / "store", state=folder / "state", broker=options, fleet=FleetOptions(ca=site.authority.folder)
    )
    broker = embedded_broker(Address("127.0.0.1", port), files=site.files(Identity("main", Role.BROKER, "broker")))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(broker)
        agents = await stack.enter_async_context(BrokerAgents(options))
        for host in hosts:
            (folder / host.name).mkdir()
            made = Party(
                site.options(port, Identity("main", Role.AGENT, host.name)), PartyKind.AGENT, host.name,
                actions={Verb.UPGRADE: Action(host.upgrade, Generations.ANY)}, report=host.report,
                log=folder / host.name / "commands", clock=SystemClock(), random=Random(1), report_seconds=0.2,
            )  # fmt: skip
            running = asyncio.create_task(made.run())
            stack.push_async_callback(_ended, running)
        await until(lambda: all(agents.is_online(host.name) for host in hosts) and len(agents.reports()) == len(hosts))
        registry = stack.enter_context(contextlib.closing(Registry.open(config.registry_url, clock=SystemClock())))
        yield World(Parts(config, SystemClock(), None, registry, agents), {host.name: host for host in hosts}, folder)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_rings_follow_each_other_and_the_audit_log_tells_who_ordered_it(tmp_path: Path) -> None:
    async with world(tmp_path, *(Host(name) for name in ("a", "b", "c"))) as here:
        shown = await here.begin("a", "rest", dry_run=True)
        assert (shown.rollout, set(phases(shown).values())) == ("", {"waiting"})
        assert not here.ordered()
        await here.begin("a", "rest")
        done = await here.carried()
        assert (done.state, set(phases(done).values())) == ("done", {"done"})
        assert here.ordered() == {"a", "b", "c"}
        assert all(len(host.orders) == 1 for host in here.hosts.values())
        assert "fleet.upgrade" in [line.entry.did for line in read_entries(tmp_path / "audit")]


@pytest.mark.parametrize(
    ("becomes", "said"),
    [
        ("unwilling", "it does not want to"),
        ("lost", "what it tracked was lost: RESCAN"),
        ("other", "its tracker was ebpf, and is scan"),
        ("deaf", "it did not tell the new version within 3 s"),
    ],
)
async def test_nobody_is_ordered_after_one_that_is_sick_and_resuming_goes_on(
    tmp_path: Path, becomes: str, said: str
) -> None:
    hosts = [Host("a"), Host("b", becomes), Host("c"), Host("away", state="STALLED")]
    async with world(tmp_path, *hosts) as here:
        await here.begin("a", "b", "rest", limit_seconds=3.0)
        stopped = await here.carried()
        assert (stopped.state, phases(stopped)) == (
            "stopped",
            {"a": "done", "b": "sick", "away": "waiting", "c": "waiting"},
        )
        assert said in stopped.message
        assert here.ordered() == {"a", "b"}
        mended = here.hosts["b"]
        mended.becomes, mended.state, mended.tracker, mended.sha256 = "well", "CONTINUOUS", "ebpf", OLD
        await until(lambda: _told(here, "b") == ("CONTINUOUS", "ebpf", OLD))
        await asyncio.to_thread(here.orders().resume_rollout)
        done = await here.carried()
        assert (done.state, phases(done)) == ("done", {"a": "done", "b": "done", "away": "skipped", "c": "done"})
        assert len(here.hosts["a"].orders) == 1
        here.hosts["away"].state = "CONTINUOUS"
        await until(lambda: _told(here, "away")[0] == "CONTINUOUS")
        await asyncio.to_thread(here.orders().resume_rollout)
        assert phases(await here.carried())["away"] == "done", "who was left out is taken up"


def _told(here: World, name: str) -> tuple[str, str, str]:
    (found,) = (each for each in look(here.parts).sources if each.source == name)
    return found.state, found.tracker, (found.upgrade or {})["sha256"]


async def test_an_executor_that_is_killed_is_gone_on_with_and_two_are_never_at_work(tmp_path: Path) -> None:
    async with world(tmp_path, Host("a", "deaf"), Host("b")) as here:
        await here.begin("a", "b")
        first = asyncio.create_task(Executor(here.parts, duty_of(here.parts)).run())
        await until(lambda: here.ordered() == {"a"})
        with pytest.raises(DrengineError) as refused:
            await Executor(here.parts, duty_of(here.parts)).run()
        assert refused.value.kind is ROLLOUT_ACTIVE
        with pytest.raises(DrengineError) as refused:
            await here.begin("b")
        assert refused.value.kind is ROLLOUT_ACTIVE
        assert not (await asyncio.to_thread(here.orders().rollout)).is_left
        await _ended(first)
        assert (await asyncio.to_thread(here.orders().rollout)).is_left
        assert Rollouts(here.parts.registry).newest().state is State.RUNNING
        here.hosts["a"].becomes = "well"
        done = await here.carried()
        assert (done.state, set(phases(done).values())) == ("done", {"done"})
        assert len(here.hosts["a"].orders) == 2, "it is ordered again, because nobody knows what it heard"


async def test_somebody_may_stop_it_and_an_older_version_or_another_file_is_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path, Host("a", "deaf"), Host("b")) as here:
        with pytest.raises(DrengineError) as refused:
            await asyncio.to_thread(lambda: here.orders(VIC).upgrade(VERSION, "", ["rest"], limit_seconds=9, at_once=1))
        assert refused.value.kind is NOT_PERMITTED
        for version, sha256 in (("1.0", ""), (VERSION, OLD)):
            with pytest.raises(DrengineError) as refused:
                await asyncio.to_thread(
                    lambda: here.orders().upgrade(version, sha256, ["rest"], limit_seconds=9, at_once=1)  # noqa: B023
                )
            assert refused.value.kind is UPGRADE_IMPOSSIBLE
        offer: Callable[[str], int] = lambda version: (tmp_path / "ca" / AGENT_FILE).write_bytes(  # noqa: E731
            msgspec.json.encode(AgentAnswer(version, NEW, 1000))
        )
        offer("0.0.1")
        with pytest.raises(DrengineError) as refused:
            await asyncio.to_thread(lambda: here.orders().upgrade("0.0.1", "", ["rest"], limit_seconds=9, at_once=1))
        assert refused.value.kind is DOWNGRADE
        offer(VERSION)
        await here.begin("a", "b")
        running = asyncio.create_task(here.carried())
        await until(lambda: here.ordered() == {"a"})
        assert (await asyncio.to_thread(here.orders().stop_rollout)).state == "stopped"
        stopped = await running
        assert (stopped.state, stopped.message) == ("stopped", "bob stopped it")
        assert here.ordered() == {"a"}


async def test_an_orchestrator_that_runs_carries_out_what_was_ordered_or_left(tmp_path: Path) -> None:
    async with world(tmp_path, Host("a"), Host("b", "unwilling")) as here:
        told: list[Notice] = []
        topics, send = frozenset({Topic.UPGRADE}), lambda notice: not told.append(notice)
        notifier = Notifier({"list": send}, topics, 1)
        carrying = asyncio.create_task(_carry(here.parts, duty_of(here.parts), notifier))
        newest = Rollouts(here.parts.registry).newest
        await here.begin("a", "b")
        await until(lambda: newest().state is State.STOPPED)
        here.hosts["b"].becomes = "well"
        await asyncio.to_thread(here.orders().resume_rollout)
        await until(lambda: newest().state is State.DONE)
        await until(lambda: len(told) == 2)
        await _ended(carrying)
        notifier.close()
        assert [each.title.rpartition("99.0 ")[2] for each in told] == ["has stopped", "is through"]
        assert "it does not want to" in told[0].text
