"""An upgrade of the fleet, ring by ring: kept in the registry, done by one process at a time, gone on with by any.

What is next is decided by `step`, which is pure; the executor looks, keeps what was decided, and then gives the orders.
A killed executor leaves agents that were ordered: whoever goes on orders them again, which an agent that has the
program already answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from drengine.control.errors import BROKER_UNREACHABLE
from drengine.control.messages import Verb
from drengine.failover.daemon import Orchestrator
from drengine.failover.duties import Duty, duty_lease
from drengine.failover.registry import Registry
from drengine.fleet.answers import AgentAnswer, FleetAnswer, RingAnswer, RolloutAnswer, SourceAnswer
from drengine.fleet.errors import ROLLOUT_ACTIVE, ROLLOUT_UNUSABLE, UNKNOWN_ROLLOUT
from drengine.fleet.look import Parts, look
from drengine.fleet.rings import Phase, Progress, Ring, Wanted, judged, unfit
from drengine.model.errors import DrengineError
from drengine.notifications import SILENT, Notice, Notifier, Topic

log = logging.getLogger("drengine.orchestrator")

DOCUMENT, DUTY = "rollout", "upgrades"
NO_REGISTRY = "it lies in the registry, which can't be read: `drengine fleet` says why"
LOOK_SECONDS = 1.0
_NS = 1_000_000_000


class State(enum.StrEnum):
    """Of a rollout."""

    RUNNING = "running"
    STOPPED = "stopped"
    """An agent was sick, or somebody stopped it; it can be gone on with."""
    DONE = "done"


class Rollout(msgspec.Struct, frozen=True):
    """One upgrade.

    Attributes:
        id: begins with the moment, so that the newest has the greatest.
        version, sha256, size_bytes: what agents shall run.
        rings: in their order.
        agents: how far each is.
        by: who ordered it.
        limit_seconds: an agent that was ordered has so long to be back and well.
        at_once: so many agents of a ring are ordered at the same time.
        message: why it stopped.
    """

    id: str
    version: str
    sha256: str
    size_bytes: int
    rings: tuple[Ring, ...]
    agents: dict[str, Progress]
    by: str
    created_ns: int
    limit_seconds: float
    at_once: int
    state: State = State.RUNNING
    message: str = ""

    @property
    def wanted(self) -> Wanted:
        """What agents shall run."""
        return Wanted(self.version, self.sha256)


def step(rollout: Rollout, sources: Mapping[str, SourceAnswer], now_ns: int) -> tuple[Rollout, list[str]]:
    """What holds now, and who is to be ordered next. After an agent that is sick nobody is."""
    limit_ns = int(rollout.limit_seconds * _NS)
    agents = {
        name: judged(each, sources.get(name), rollout.wanted, now_ns, limit_ns) if each.phase is Phase.ORDERED else each
        for name, each in rollout.agents.items()
    }
    orders: list[str] = []
    sick = [name for name, each in agents.items() if each.phase is Phase.SICK]
    under_way = sum(each.phase is Phase.ORDERED for each in agents.values())
    ring = next((each for each in rollout.rings if not _is_over(each, agents)), None)
    for name in ring.sources if ring and not sick else ():
        if agents[name].phase is Phase.WAITING and under_way + len(orders) < rollout.at_once:
            agents[name] = _begun(agents[name], sources.get(name), rollout.wanted, now_ns)
            orders += [name] if agents[name].phase is Phase.ORDERED else []
    state, message = rollout.state, ""
    if sick and not under_way:
        state, message = State.STOPPED, "; ".join(f"{name}: {agents[name].message}" for name in sick)
    elif not sick and all(_is_over(each, agents) for each in rollout.rings):
        state = State.DONE
    return msgspec.structs.replace(rollout, agents=agents, state=state, message=message), orders


def resumed(rollout: Rollout, now_ns: int) -> tuple[Rollout, list[str]]:
    """To go on with: who was sick or left out is tried again, and who was ordered is ordered again."""

    def again(each: Progress) -> Progress:
        if each.phase in (Phase.SICK, Phase.SKIPPED):
            return Progress(before=each.before, tracker=each.tracker)
        return msgspec.structs.replace(each, began_ns=now_ns) if each.phase is Phase.ORDERED else each

    agents = {name: again(each) for name, each in rollout.agents.items()}
    ordered = [name for name, each in agents.items() if each.phase is Phase.ORDERED]
    return msgspec.structs.replace(rollout, agents=agents, state=State.RUNNING, message=""), ordered


def new_id(now_ns: int) -> str:
    """``20261123T081500.123456-upgrade``."""
    moment = datetime.fromtimestamp(now_ns // 10**9, UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{now_ns // 1000 % 10**6:06d}-upgrade"


def foreseen(rollout: Rollout, sources: Mapping[str, SourceAnswer]) -> Rollout:
    """A rollout with who would be left out as things stand, and why."""
    agents = {}
    for name, each in rollout.agents.items():
        begun = _begun(each, sources.get(name), rollout.wanted, rollout.created_ns)
        agents[name] = each if begun.phase is Phase.ORDERED else begun
    return msgspec.structs.replace(rollout, id="", agents=agents)


def _begun(progress: Progress, source: SourceAnswer | None, wanted: Wanted, now_ns: int) -> Progress:
    if source is not None and (source.upgrade or {}).get("sha256") == wanted.sha256:
        return msgspec.structs.replace(progress, phase=Phase.DONE, message="it has it already", ended_ns=now_ns)
    if why := unfit(source):
        return msgspec.structs.replace(progress, phase=Phase.SKIPPED, message=why, ended_ns=now_ns)
    assert source is not None
    formerly = dict(source.upgrade or {})
    return Progress(Phase.ORDERED, source.version, source.tracker, began_ns=now_ns, formerly=formerly)


def _is_over(ring: Ring, agents: Mapping[str, Progress]) -> bool:
    return all(agents[name].phase in (Phase.DONE, Phase.SKIPPED) for name in ring.sources)


class Rollouts:
    """The newest rollout, in the registry, so that any orchestrator can carry it out."""

    def __init__(self, registry: Registry | None) -> None:
        """Raises ROLLOUT_UNUSABLE where there is no registry."""
        if registry is None:
            raise DrengineError(ROLLOUT_UNUSABLE, NO_REGISTRY)
        self._registry, self._document = registry, registry.document(DOCUMENT)

    def newest(self) -> Rollout:
        """The one that was begun last.

        Raises:
            DrengineError: UNKNOWN_ROLLOUT, ROLLOUT_UNUSABLE, REGISTRY_UNAVAILABLE.
        """
        return self._read(self._document.read())

    @contextlib.contextmanager
    def changing(self) -> Iterator[Change]:
        """The newest one, while nobody else changes it; another is kept when that is left.

        Raises:
            DrengineError: ROLLOUT_UNUSABLE, REGISTRY_UNAVAILABLE.
        """
        with self._document.changing() as draft:
            change = Change(self._read(draft.content) if draft.content else None)
            yield change
            if change.rollout is not None:
                draft.content = msgspec.json.encode(change.rollout)

    def is_left(self) -> bool:
        """Whether nobody carries one out now.

        Raises:
            DrengineError: REGISTRY_UNAVAILABLE.
        """
        return not self._registry.is_held(duty_lease(DUTY))

    def _read(self, content: bytes | None) -> Rollout:
        if not content:
            raise DrengineError(UNKNOWN_ROLLOUT, "no upgrade of the fleet was begun yet")
        try:
            return msgspec.json.decode(content, type=Rollout)
        except msgspec.MsgspecError as error:
            raise DrengineError(ROLLOUT_UNUSABLE, f"{self._document.where}: {error}") from error


@dataclass(slots=True)
class Change:
    """The newest rollout as it is, None for none, and as it shall be."""

    rollout: Rollout | None


@dataclass
class Executor:
    """Carries the newest rollout out. Belongs to one event loop; `watch` is told of each change."""

    parts: Parts
    duty: Duty
    watch: Callable[[RolloutAnswer], object] = lambda _: None

    async def run(self) -> Rollout:
        """Until it is done or stopped.

        Raises:
            DrengineError: UNKNOWN_ROLLOUT; ROLLOUT_ACTIVE, another carries it out; ROLLOUT_UNUSABLE.
        """
        rollouts, clock = Rollouts(self.parts.registry), self.parts.clock
        giving: dict[asyncio.Task[str], str] = {}
        await self._require_duty()
        rollout, orders = resumed(await asyncio.to_thread(rollouts.newest), clock.now_ns())
        try:
            while True:
                for name in orders:
                    giving[asyncio.create_task(self._order(rollout, name))] = name
                fleet = await asyncio.to_thread(look, self.parts)
                refused = {giving.pop(task): task.result() for task in list(giving) if task.done()}
                await self._require_duty()
                rollout, orders = await asyncio.to_thread(self._kept, rollouts, rollout, fleet, refused)
                self.watch(rollout_answer(rollout))
                if rollout.state is not State.RUNNING:
                    return rollout
                await clock.sleep(LOOK_SECONDS)
        finally:
            for task in giving:
                task.cancel()
            await asyncio.gather(*giving, return_exceptions=True)
            await self.duty.leave()

    async def _require_duty(self) -> None:
        if not await self.duty.take():
            raise DrengineError(ROLLOUT_ACTIVE, "another process carries an upgrade out")

    def _kept(
        self, rollouts: Rollouts, rollout: Rollout, fleet: FleetAnswer, refused: Mapping[str, str]
    ) -> tuple[Rollout, list[str]]:
        """What holds now, kept, and who is to be ordered next; nobody where somebody has stopped it meanwhile."""
        with rollouts.changing() as change:
            if change.rollout is not None and change.rollout.state is not State.RUNNING:
                return change.rollout, []
            change.rollout, orders = self._next(rollout, fleet, refused)
            return change.rollout, orders

    def _next(self, rollout: Rollout, fleet: FleetAnswer, refused: Mapping[str, str]) -> tuple[Rollout, list[str]]:
        now_ns = self.parts.clock.now_ns()
        sick = {
            name: msgspec.structs.replace(rollout.agents[name], phase=Phase.SICK, message=why, ended_ns=now_ns)
            for name, why in refused.items()
            if why and rollout.agents[name].phase is Phase.ORDERED
        }
        rollout = msgspec.structs.replace(rollout, agents={**rollout.agents, **sick})
        return step(rollout, {each.source: each for each in fleet.sources}, now_ns)

    async def _order(self, rollout: Rollout, name: str) -> str:
        """Why an agent does not do it; empty when it does, or nobody knows: then its reports tell."""
        store = self.parts.store
        agent = (await asyncio.to_thread(store.home, name)).agent if store else name
        report = self.parts.agents.reports().get(agent)
        try:
            answer = await self.parts.agents.command(
                agent,
                Verb.UPGRADE,
                {"version": rollout.version, "sha256": rollout.sha256, "size_bytes": rollout.size_bytes},
                generation=report.generation if report else 0,
                id=f"upgrade.{rollout.id}.{name}.{secrets.token_hex(4)}",
                timeout_seconds=rollout.limit_seconds,
            )
        except DrengineError as error:
            log.warning("%s: %s", name, error.message)
            return "" if error.kind is BROKER_UNREACHABLE else error.message
        return "" if answer.ok else f"{answer.message} [{answer.code}]"


def duty_of(parts: Parts) -> Duty:
    """Of a process that carries one rollout out for a person.

    Raises:
        DrengineError: ROLLOUT_UNUSABLE.
    """
    if parts.registry is None:
        raise DrengineError(ROLLOUT_UNUSABLE, NO_REGISTRY)
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    return Duty(parts.registry, parts.clock, DUTY, owner=owner, seconds=parts.config.lease)


@asynccontextmanager
async def keep_rollouts(orchestrator: Orchestrator) -> AsyncIterator[None]:
    """Carry out what somebody has ordered, also after a restart or where another orchestrator died, until left."""
    engine = orchestrator.engine
    parts = Parts(engine.config, engine.site.clock, engine.site.store, engine.registry, engine.agents)
    duty = orchestrator.duty(DUTY)
    carrying = asyncio.create_task(_carry(parts, duty, engine.notifier))
    try:
        yield
    finally:
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
        await duty.leave()


async def _carry(parts: Parts, duty: Duty, notifier: Notifier = SILENT) -> None:
    rollouts = Rollouts(parts.registry)
    while True:
        await parts.clock.sleep(LOOK_SECONDS)
        try:
            if (await asyncio.to_thread(rollouts.newest)).state is State.RUNNING:
                ended = await Executor(parts, duty).run()
                log.info("upgrade to %s: %s", ended.version, ended.message or ended.state.value)
                notifier.notify(_notice(ended))
        except DrengineError as error:
            if error.kind not in (UNKNOWN_ROLLOUT, ROLLOUT_ACTIVE):
                log.error("the upgrade does not go on: %s", error.message)  # noqa: TRY400 - the line says all
        except Exception:
            log.exception("the upgrade does not go on")


def _notice(ended: Rollout) -> Notice:
    title = f"agents' upgrade to {ended.version} {'is through' if ended.state is State.DONE else 'has stopped'}"
    text = f"{ended.message}\n\ndrengine fleet upgrade --status".strip()
    return Notice(Topic.UPGRADE, title, text, about="upgrade", state=f"{ended.id} {ended.state.value} {ended.message}")


def rollout_answer(rollout: Rollout, *, is_left: bool = False) -> RolloutAnswer:
    """As people and programs are told of it."""
    return RolloutAnswer(
        rollout=rollout.id,
        version=rollout.version,
        sha256=rollout.sha256,
        state=rollout.state.value,
        message=rollout.message,
        by=rollout.by,
        created_ns=rollout.created_ns,
        limit_seconds=rollout.limit_seconds,
        is_left=is_left and rollout.state is State.RUNNING,
        rings=[
            RingAnswer(name=ring.name, agents=[_agent_answer(name, rollout.agents[name]) for name in ring.sources])
            for ring in rollout.rings
        ],
    )


def _agent_answer(name: str, each: Progress) -> AgentAnswer:
    seconds = (each.ended_ns - each.began_ns) / _NS if each.began_ns and each.ended_ns else None
    return AgentAnswer(
        source=name,
        phase=each.phase.value,
        before=each.before,
        tracker=each.tracker,
        seconds=seconds,
        message=each.message,
    )
