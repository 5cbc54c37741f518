"""A small world for runs: a real store, sources that obey commands like agents do, workloads that write what they are
given, and a judge who sees every change and allows one writer at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from drengine.control.errors import BROKER_UNREACHABLE, NO_ANSWER
from drengine.control.messages import AgentReport, Answer, PartyKind, Verb
from drengine.failover.drivers.driver import Instance, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.readiness import Checked
from drengine.failover.runbook.values import Fence, Launch, Runbook, Source, Step, Wave
from drengine.failover.steps.step import Case, Site
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.grants import Access
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint, VolumeGeometry
from drengine.store.errors import FENCED
from drengine.store.store import Store
from tests.target.agent import data_batch

BLOCK = 4096
SIZE = 64 * BLOCK
MARK = Mark(b"w" * 16, 1)


async def unseen(site: Site, case: Case) -> list[Checked]:
    """For worlds in which there is nothing to look at before."""
    return []


class SplitBrain(AssertionError):
    """Two sides could write at one moment."""


@dataclass
class Judge:
    """Who may write each source's data for users: never two (rule 4)."""

    writers: dict[str, set[str]] = field(default_factory=dict)
    history: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, source: str, who: str) -> None:
        self._change(source, lambda writers: writers.add(who))

    def end(self, source: str, who: str) -> None:
        self._change(source, lambda writers: writers.discard(who))

    def _change(self, source: str, change: Callable[[set[str]], None]) -> None:
        with self.lock:
            writers = self.writers.setdefault(source, set())
            change(writers)
            self.history.append((source, frozenset(writers)))

    def verdict(self) -> None:
        for source, writers in self.history:
            if len(writers) > 1:
                raise SplitBrain(f"{source} was written by {', '.join(sorted(writers))} at once")


class SimulatedSource:
    """A source server and its agent: a disk, a generation, and obedience."""

    def __init__(self, name: str, store_path: Path, judge: Judge, clock: Clock | None = None) -> None:
        self.name = self.party = name
        self.who = "source"
        self.disk = bytearray(SIZE)
        self.generation, self.branch = 1, 1
        self.serving, self.fenced = True, False
        self.reachable = True
        self.cuts_clients = True
        self.lease_seconds = 0.0
        self.preserved = False
        self.answers: dict[str, Answer] = {}
        self.commands: list[Verb] = []
        self.refused: set[Verb] = set()
        self.shipped_back = 0
        self.ran: list[list[str]] = []
        self.details: dict[str, Any] = {}
        self._clock = clock or SystemClock()
        self._path, self._judge = store_path, judge
        self._lock = threading.RLock()
        self._pending: list[tuple[int, bytes]] = []
        judge.begin(name, "source")

    def write(self, block: int, data: bytes) -> None:
        """What its users do."""
        with self._lock:
            assert self.serving, f"{self.name} does not serve"
            self.disk[block * BLOCK : block * BLOCK + len(data)] = data
            self._pending.append((block * BLOCK, data))

    def ship(self, label: str = "") -> RecoveryPoint | None:
        """Replicate what was written, and cut a point; None when the store refuses: a stale agent learns it so."""
        with self._lock, Store.open(self._path) as store:
            store.ensure_source(self.name)
            try:
                if store.home(self.name).agent != self.party:  # as the target asks it
                    raise DrengineError(FENCED, f"{self.name} lives elsewhere")  # noqa: TRY301
                return self._append(store, self.branch, self.generation, self._pending, label)
            except DrengineError as error:
                if error.kind is not FENCED:
                    raise
                self._stop_serving()
                self.fenced = True
                return None

    def obey(self, id: str, verb: Verb, arguments: Mapping[str, Any], generation: int) -> Answer:
        """A command, once: repeated it gets the same answer."""
        with self._lock:
            if not self.reachable:
                raise DrengineError(NO_ANSWER, f"{self.name} does not answer")
            if id not in self.answers:
                self.commands.append(verb)
                try:
                    if generation < self.generation and verb is not Verb.SETTLE:
                        raise DrengineError(FENCED, "stale command")  # noqa: TRY301
                    if verb in self.refused:
                        raise DrengineError(NO_ANSWER, f"{self.name} does not want to {verb.value}")  # noqa: TRY301
                    result = getattr(self, f"_{verb.value}")(**arguments)
                    self.answers[id] = Answer(id=id, done=True, ok=True, result=result)
                except DrengineError as error:
                    self.answers[id] = Answer(id=id, done=True, ok=False, code=error.kind.id, message=error.message)
            return self.answers[id]

    def report(self) -> AgentReport:
        return AgentReport(
            name=self.party,
            kind=PartyKind.AGENT,
            state="CONTINUOUS",
            reason="none",
            generation=self.generation,
            fenced=self.fenced,
            serving=self.serving,
            lag_seconds=0.0,
            backlog_bytes=0,
            at_ns=self._clock.now_ns(),
            sequence=1,
            details={"lease_seconds": self.lease_seconds, **self.details},
        )

    def die(self) -> None:
        """The disaster."""
        with self._lock:
            self.reachable = False
            self._stop_serving()

    def come_back(self) -> None:
        """The machine is switched on again, as it was: it serves at once unless it was fenced."""
        with self._lock:
            self.reachable = True
            if not self.fenced:
                self.serving = True
                self._judge.begin(self.name, self.who)

    def cut_off(self) -> None:
        """Only its network is gone: it goes on serving."""
        self.reachable = False

    def _stop_serving(self) -> None:
        self.serving = False
        self._judge.end(self.name, self.who)

    def _run(self, command: list[str], seconds: float) -> dict[str, Any]:
        self.ran.append(command)
        return {"exit": 0, "output": f"{command[-1]} done"}

    def _fence(self, generation: int, by: str = "") -> dict[str, Any]:
        self._stop_serving()
        self.fenced = True
        return {"generation": generation, "cuts_clients": self.cuts_clients}

    def _quiesce(self, label: str, by: str = "") -> dict[str, Any]:
        self._stop_serving()
        point = self.ship(label)
        assert point is not None
        return {"sequence": point.sequence, "point": point.id}

    def _preserve(self, branch: int, generation: int) -> dict[str, Any]:
        assert self.fenced
        with Store.open(self._path) as store:
            found = next(each for each in store.branches(self.name) if each.number == branch)
            if found.closed:
                self.preserved = True
                return {"bytes_shipped": 0, "bytes_compared": SIZE}
            self._require_grant(store, Access.PRESERVE, branch)
            with store.head_view(self.name, branch) as view:
                held = view.read(1, 0, SIZE)
            changes = self._differences(held)
            if changes:
                self._append(store, branch, generation, changes, "preserved")
            store.close_branch(self.name, branch)
        self.preserved = True
        return {"bytes_shipped": sum(len(data) for _, data in changes), "bytes_compared": SIZE}

    def _reverse(self, branch: int, point: str, force: bool = False) -> dict[str, Any]:
        assert self.fenced, "the disks of a source that serves must not be overwritten"
        assert self.preserved or force, "the source's own writes were not kept"
        with Store.open(self._path) as store:
            self._require_grant(store, Access.REVERSE, store.source(self.name).active_branch)
            found = next(each for each in store.points(self.name, branch=None) if each.id == point)
            with store.view(found) as view:
                wanted = view.read(1, 0, SIZE)
        changes = [
            offset
            for offset in range(0, SIZE, BLOCK)
            if wanted[offset : offset + BLOCK] != self.disk[offset : offset + BLOCK]
        ]
        self.disk[:] = wanted
        self.preserved = True
        self.shipped_back += len(changes) * BLOCK
        return {"bytes_shipped": len(changes) * BLOCK, "bytes_compared": SIZE, "unmodified": not changes}

    def _require_grant(self, store: Store, access: Access, branch: int) -> None:
        """As the target asks for it."""
        held = [
            (grant.access, grant.branch, grant.holder) for grant in store.grants.living() if grant.source == self.name
        ]
        assert (access, branch, f"agent/{self.party}") in held, held

    def _release(self, generation: int, branch: int) -> dict[str, Any]:
        self.generation, self.branch = generation, branch
        self.fenced, self.preserved, self.serving = False, False, True
        self._pending = []
        self._judge.begin(self.name, self.who)
        return {"generation": generation}

    def _differences(self, held: bytes) -> list[tuple[int, bytes]]:
        blocks = range(0, SIZE, BLOCK)
        return [
            (at, bytes(self.disk[at : at + BLOCK]))
            for at in blocks
            if self.disk[at : at + BLOCK] != held[at : at + BLOCK]
        ]

    def _append(
        self, store: Store, branch: int, generation: int, writes: list[tuple[int, bytes]], label: str
    ) -> RecoveryPoint:
        writer = store.writer(self.name, generation=generation, branch=branch)
        try:
            sequence = writer.appended_sequence
            if not writer.geometry:
                sequence += 1
                volumes = (VolumeGeometry(1, "data", "file:1", SIZE),)
                writer.append_geometry(sequence, MARK, volumes, generation=generation)
            if writes:
                sequence += 1
                writer.append_batch(sequence, MARK, data_batch(writes), generation=generation)
            sequence += 1
            cut = Cut(self._clock.now_ns(), PointKind.WRITE_ORDER, label)
            writer.append_cut(sequence, MARK, cut, generation=generation)
            writer.commit(generation=generation)
        finally:
            writer.close()
        if writes is self._pending:
            self._pending = []
        return store.points(self.name, branch=branch)[-1]


class Death(NamedTuple):
    """An agent is killed once: at the command of this number, before it does anything or when it has done it; either
    way it answers nobody. Its supervisor starts it again at once, and the next life knows of no answer.
    """

    command: int
    done: bool


class SimulatedSpare(SimulatedSource):
    """A host that stands ready: once it was told to, it is the home of a source, under its own name."""

    def __init__(self, name: str, store_path: Path, judge: Judge) -> None:
        super().__init__(name, store_path, judge)
        self._stop_serving()
        self.who, self.fenced, self.generation = name, True, 0
        self.details = {"spare": True, "home_of": ""}
        self.disk[:] = b"\xff" * SIZE
        self.fail_after = -1
        """So many reversals go well."""
        self.death: Death | None = None
        self.orders = 0
        """Commands that came, however often the same."""

    def obey(self, id: str, verb: Verb, arguments: Mapping[str, Any], generation: int) -> Answer:
        with self._lock:
            number, self.orders = self.orders, self.orders + 1
            dies = self.death is not None and self.death.command == number
            if dies and self.death and not self.death.done:
                raise DrengineError(NO_ANSWER, f"{self.party} was killed before it did anything")
            answer = super().obey(id, verb, arguments, generation)
            if dies:
                self.answers.clear()
                raise DrengineError(NO_ANSWER, f"{self.party} was killed when it had done it")
            return answer

    def _reverse(self, branch: int, point: str, force: bool = False) -> dict[str, Any]:
        if not self.fail_after:
            raise DrengineError(NO_ANSWER, "its disk is broken")
        self.fail_after -= 1
        return super()._reverse(branch, point, force)

    def _settle(
        self, source: str, generation: int, volumes: list[dict[str, Any]], disks: dict[str, str], by: str
    ) -> dict[str, Any]:
        assert self.details["home_of"] in ("", source), "a host is the home of one source"
        if not self.details["home_of"]:
            self.name, self.generation, self.preserved = source, generation, True
            self.details = {"spare": False, "home_of": source}
        return {"source": source, "disks": {each["name"]: each["name"] for each in volumes}}


class SimulatedAgents:
    """The broker's parties, without a broker."""

    def __init__(self, sources: Mapping[str, SimulatedSource], *, broker: bool = True) -> None:
        self.sources = sources
        self.broker = broker
        self.age_seconds: float | None = 0.0

    def reports(self) -> Mapping[str, AgentReport]:
        return {name: source.report() for name, source in self.sources.items()} if self.broker else {}

    def is_online(self, name: str) -> bool:
        return self.broker and self.sources[name].reachable

    def is_away(self, name: str) -> bool:
        return self.broker and not self.is_online(name)

    def report_age_seconds(self, name: str) -> float | None:
        return self.age_seconds if self.broker else None

    async def command(
        self,
        name: str,
        verb: Verb,
        arguments: Mapping[str, Any],
        *,
        generation: int,
        id: str,
        timeout_seconds: float,
        progress: Callable[[Answer], None] = lambda _: None,
        run: str = "",
        approver: str = "",
    ) -> Answer:
        if not self.broker:
            raise DrengineError(BROKER_UNREACHABLE, "no broker")
        return await asyncio.to_thread(self.sources[name].obey, id, verb, arguments, generation)


class SimulatedDriver:
    """Workloads that live in this process and write a block of their branch when they start."""

    name: ClassVar[str] = "simulated"

    def __init__(self, store_path: Path, judge: Judge) -> None:
        self.running: dict[str, LaunchRequest] = {}
        self.launches: list[str] = []
        self.broken: set[str] = set()
        self.seconds = 0.0
        self._path, self._judge = store_path, judge

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        if unknown := set(settings) - {"say", "isolated"}:
            raise DrengineError(LAUNCH_SETTINGS, f"unknown settings {unknown}")

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        time.sleep(self.seconds)
        if request.instance not in self.running:
            self.launches.append(request.instance)
            self.running[request.instance] = request
            if not request.isolated:
                self._judge.begin(request.source, request.instance)
        if request.source in self.broken:
            raise DrengineError(LAUNCH_FAILED, f"{request.source} does not boot")
        return self.inspect(request)

    def inspect(self, request: LaunchRequest) -> Instance:
        running = request.instance in self.running
        return Instance(
            request.instance, running, running and request.source not in self.broken, {"address": "10.0.0.1"}
        )

    def quiesce(self, request: LaunchRequest) -> None:
        self.stop(request)

    def stop(self, request: LaunchRequest) -> None:
        if self.running.pop(request.instance, None) is not None and not request.isolated:
            self._judge.end(request.source, request.instance)

    def write(self, instance: str, block: int, data: bytes) -> None:
        """What users of a recovered workload do, through its disk."""
        request = self.running[instance]
        branch = int(request.disks[0].uri.rpartition("#")[2].partition("~")[0])
        with Store.open(self._path) as store:
            view = store.writable(request.source, branch, generation=store.source(request.source).generation)
            try:
                view.write(1, block * BLOCK, data)
                view.flush()
                view.cut(PointKind.WRITE_ORDER)
            finally:
                view.close()


class World:
    """Sources with a replicated past, in a store of their own."""

    def __init__(self, directory: Path, *names: str, broker: bool = True) -> None:
        self.directory = directory
        self.path = directory / "store"
        Store.create(self.path).close()
        self.store = Store.open(self.path)
        self.judge = Judge()
        self.sources = {name: SimulatedSource(name, self.path, self.judge) for name in names or ("shop",)}
        self.driver = SimulatedDriver(self.path, self.judge)
        self.spare = SimulatedSpare("spare", self.path, self.judge)
        self.agents = SimulatedAgents({**self.sources, "spare": self.spare}, broker=broker)
        for number, source in enumerate(self.sources.values()):
            source.write(0, bytes([number + 1]) * BLOCK)
            source.ship("first")
            source.write(1, bytes([number + 101]) * BLOCK)
            source.ship()

    def site(self, clock: Clock | None = None) -> Site:
        return Site(
            store=self.store,
            agents=self.agents,
            drivers={"simulated": self.driver},
            exporting=lambda: lambda source, volume, branch, secret: f"nbd://test/{source}/{volume}#{branch}~{secret}",
            directory=self.directory / "instances",
            clock=clock or SystemClock(),
            preflight=unseen,
        )

    def facts(self, source: str = "shop") -> dict[str, Any]:
        """What a drill must leave as it was (fault 62)."""
        info = self.store.source(source)
        points = [(p.id, p.time_ns, p.kind, p.label, p.damaged, p.pinned) for p in self.store.points(source)]
        trunk = [(b.number, b.durable_sequence) for b in self.store.branches(source) if b.role != "drill"]
        return {"generation": info.generation, "active": info.active_branch, "points": points, "branches": trunk}

    def read(self, source: str, branch: int) -> bytes:
        with self.store.head_view(source, branch) as view:
            return view.read(1, 0, SIZE)


def runbook(
    *names: str,
    fence: list[str] | None = None,
    before: list[Step] | None = None,
    then: list[Step] | None = None,
    waves: list[Wave] | None = None,
    start: list[str] | None = None,
    **launch: Any,
) -> Runbook:
    sources = {
        name: Source(
            launch=Launch(driver="simulated", **launch),
            fence=Fence(command=fence, retries=0) if fence else None,
            start=["true"] if start is None else start,
        )
        for name in names or ("shop",)
    }
    all_in_one = [Wave(name="all", sources=list(sources), before_steps=before or [], after_steps=then or [])]
    return Runbook(version=1, name="test", sources=sources, waves=waves or all_in_one)
