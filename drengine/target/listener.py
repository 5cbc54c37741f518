"""Letting agents in: greeting, generation, admission, one session a source, and one for each errand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from drengine.audit import Refusals
from drengine.linux.loopback import local_user_ids, user_of
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.extents import OFFSET_MAX
from drengine.model.grants import Access
from drengine.model.homes import SOURCE_MOVED
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.model.states import ReplicationState
from drengine.policy.errors import SOURCE_RETIRED
from drengine.store.errors import BRANCH_BUSY, FENCED, STORE_IO, TOO_MANY_SOURCES, UNKNOWN_BRANCH, UNKNOWN_POINT
from drengine.store.log.writer import BranchWriter
from drengine.store.store import SourceInfo, Store
from drengine.target import metrics as m
from drengine.target.admission import Admission, CreditBudget, CutBudget, decide_admission
from drengine.target.errors import GRANT_MISSING, QUOTA_EXCEEDED, SOURCE_BUSY, STORE_BEHIND, TARGET_BUSY
from drengine.target.ingest import IngestLimits
from drengine.target.members import Members
from drengine.target.metrics import TargetMetrics
from drengine.target.ownership import Ownership, SentOn
from drengine.target.quotas import QuotaOptions, Quotas
from drengine.target.reversal import Reversal
from drengine.target.session import Replaced, ReplicationSession
from drengine.target.sources import Sources, SourceState
from drengine.target.watch import DESCRIPTORS_KEPT, require_descriptors
from drengine.transport.errors import PLAIN_REFUSED, TransportError, reason_of
from drengine.transport.framed import FramedStream
from drengine.transport.networks import is_loopback
from drengine.transport.peers import PeerRules, refused_source, shown_certificate
from drengine.wire.connection import negotiate_version
from drengine.wire.events import Hello, Purpose

log = logging.getLogger("drengine.target")

_AT_THE_DOOR = (SOURCE_MOVED, GRANT_MISSING, QUOTA_EXCEEDED, SOURCE_RETIRED, TOO_MANY_SOURCES)
"""Refusals of what a source may not, beside those of its certificate; not those of a target that can't."""

REPLACE_SECONDS = 10.0
"""How long an old session may take to end when a newer one takes its place."""

LOOK_SECONDS = 0.25
"""How often it is looked meanwhile whether the old one's lock is over."""

PROBE_SECONDS = 3.0
"""How long an agent may take to answer when another one wants its place (fault 41)."""


@dataclass(slots=True)
class _Door:
    """Where newcomers for one place queue up; it goes with the last of them."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass
class Reception:
    """Takes each accepted connection from its HELLO to the end of its session."""

    store: Store
    sources: Sources
    metrics: TargetMetrics
    pool: Executor
    questions: Executor
    budget: CreditBudget
    clock: Clock
    peers: PeerRules = field(default_factory=PeerRules)
    probe_seconds: float = PROBE_SECONDS
    ingest_limits: IngestLimits = field(default_factory=IngestLimits)
    sessions: dict[str, ReplicationSession] = field(default_factory=dict)
    """Those that ship a source's stream, by source."""
    errands: dict[str, ReplicationSession | Reversal] = field(default_factory=dict)
    """Those of fenced sources, by what they are for."""
    sources_max: int = sys.maxsize
    refusals: Refusals | None = None
    quotas: Quotas = field(default_factory=lambda: Quotas(QuotaOptions()))
    members: Members | None = None
    """Who was retired; None: nobody."""
    ownership: Ownership | None = None
    """Which target has which source; None where there is only this one."""
    local_users: tuple[str, ...] | None = None
    """Without TLS on loopback, whose processes may ship beside root's and ours; None: anybody's."""
    _doors: dict[str, _Door] = field(default_factory=dict)
    _cuts: dict[str, CutBudget] = field(default_factory=dict)
    _suspect: set[str] = field(default_factory=set)
    """Sources whose last write failed: what is stored is read again before anything is added."""
    _closing: bool = False

    async def receive(self, stream: FramedStream) -> None:
        """Handle one connection to its end.

        Raises:
            DrengineError: why it ended, for the transport to tell the peer; other sessions do not notice.
        """
        hello = await stream.receive()
        if not isinstance(hello, Hello):
            return  # it went before it had come
        negotiate_version(hello)
        try:
            await self._serve(stream, hello)
        except SentOn as sent:
            if "moved" not in hello.abilities:
                raise
            log.info("a source is sent on: %s", sent.message, extra={"source": hello.source, "peer": stream.peer})
            self.metrics.count(m.ENDED, 1, reason_of(sent))
            with contextlib.suppress(DrengineError):
                await stream.send(sent.moved)
        except DrengineError as error:
            if error.kind in _AT_THE_DOOR or reason_of(error).startswith(("identity-", "tls-peer-", "local-")):
                self._note_refused(stream, hello, error)
            raise

    async def _serve(self, stream: FramedStream, hello: Hello) -> None:
        """From HELLO on.

        Whatever the session is for, only the agent of the host on which the source lives may open it, or one whom a
        run lets read what it is to become the home of.
        """
        await self._require_local(stream)
        agent = self.peers.agent_of(stream.peer_certificate)
        is_proved = await self._require_home(stream, hello, agent)
        if self.members is not None:
            await asyncio.to_thread(self.members.require, hello.source, stream.peer_certificate)
        known = is_proved or self.sources.is_known(hello.source)
        self.quotas.of(hello.source, known=known).take_session(self.clock.monotonic())
        if hello.purpose is Purpose.REVERSE:
            await self._reverse(stream, hello, agent)
        else:
            try:
                admitted = await self._admit(stream, hello, agent)
            except DrengineError as error:
                self.sources.note_refused(hello.source, error)
                raise
            await self._run(*admitted)

    async def _require_home(self, stream: FramedStream, hello: Hello, agent: str) -> bool:
        """Only where the source lives its disks are; whether the peer has proved to be there.

        Who has proved nothing is held to the generation alone, so one that does not know its own is not told it.

        Raises:
            DrengineError: SOURCE_MOVED (FENCED to agents of older versions), of a host where it lived before.
            TransportError: TLS_FAILED, `identity-source`.
        """
        home = await asyncio.to_thread(self.store.home, hello.source)
        if agent == home.agent or (not agent and (hello.generation or home.agent == hello.source)):
            return bool(agent)
        if not agent or agent in home.former:
            kind = SOURCE_MOVED if "homes" in hello.abilities else FENCED
            raise DrengineError(kind, f"{hello.source!r} lives with agent {home.agent!r} now")
        if hello.purpose is Purpose.REVERSE and await self._grant_of(hello, agent):
            return True
        raise refused_source(stream.peer_certificate, hello.source)

    async def _require_local(self, stream: FramedStream) -> None:
        """Loopback is shared by all users of a machine: there, without TLS, an agent is known by the user it runs as.

        Raises:
            TransportError: PLAIN_REFUSED.
        """
        if stream.peer_certificate is not None or self.local_users is None or not is_loopback(stream.peer):
            return
        own, peer = stream.ends
        user = await asyncio.to_thread(user_of, peer, own)
        if user not in local_user_ids(self.local_users):
            raise TransportError(
                PLAIN_REFUSED,
                "local-stranger",
                f"a process of user {user} of this machine",
                hint="If that is an agent, name its user in the target's `agent_users`, or use TLS.",
            )

    def end_revoked(self) -> None:
        """End the sessions of agents whose certificates were revoked since they came."""
        for session in [*self.sessions.values(), *self.errands.values()]:
            try:
                self.peers.require_unrevoked(session.peer_certificate)
            except TransportError as error:
                session.end(error)

    def end_grants(self, gone: set[str]) -> None:
        """End the sessions that rest on these grants, which count no more."""
        for session in list(self.errands.values()):
            if session.grant in gone:
                session.end(DrengineError(GRANT_MISSING, f"the grant of {session.source!r} for this was taken back"))

    def _note_refused(self, stream: FramedStream, hello: Hello, error: DrengineError) -> None:
        """Count it and note it in the audit log; the transport tells the peer, and the log."""
        reason = reason_of(error)
        self.metrics.count(m.REFUSED, 1, reason)
        shown = shown_certificate(stream.peer_certificate)
        if self.refusals is not None:
            self.refusals.note(
                who=shown or f"source {hello.source}",
                proved="certificate" if shown else "",
                did=f"target.{hello.purpose.name.lower()}",
                on=hello.source,
                error=reason,
                details={"peer": stream.peer},
            )

    async def close(self, seconds: float) -> None:
        """End every session in peace: what arrived is committed and acknowledged, at most for so long."""
        self._closing = True
        living = [*self.sessions.values(), *self.errands.values()]
        for session in living:
            session.end(self.ownership.relief(session.source) if self.ownership else None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(session.ended.wait() for session in living))

    def end_source(self, source: str, why: DrengineError) -> None:
        """End the sessions of a source for this reason."""
        for session in [*self.sessions.values(), *self.errands.values()]:
            if session.source == source:
                session.end(why)

    def end_all(self, why: DrengineError) -> None:
        """End every session for this reason; agents come back when it is over."""
        for session in [*self.sessions.values(), *self.errands.values()]:
            session.end(why)

    async def _admit(
        self, stream: FramedStream, hello: Hello, agent: str
    ) -> tuple[ReplicationSession, BranchWriter, int]:
        async with self._door(_place(hello)):
            self._require_open()
            require_descriptors(DESCRIPTORS_KEPT)
            grant = await self._require_grant(hello, agent)
            await self._make_way(hello)
            began = self.clock.monotonic()
            writer, taken_over = await asyncio.to_thread(self._take, hello)
            try:
                credit = await self._grant(has_data=writer.durable.sequence > 0)
            except DrengineError:
                await asyncio.to_thread(writer.close)
                await self._forget_empty(hello.source)
                raise
            # What a divergent branch gets says nothing about the source's replication.
            preserving = hello.purpose is Purpose.PRESERVE
            state = SourceState(hello.source) if preserving else self.sources.get(hello.source)
            session = ReplicationSession(
                stream, hello, state, self.metrics, clock=self.clock, probe_seconds=self.probe_seconds
            )
            if preserving:
                session.grant = grant
                self.errands[_place(hello)] = session
            else:
                self.sessions[hello.source] = session
            Sources.note_opened(state, stream.peer)
            opened = {"source": hello.source, "peer": stream.peer, "durable": writer.durable.sequence}
            log.info("session opened", extra=opened)
            if taken_over:
                self.metrics.count(m.TAKEOVERS)
                self.metrics.observe(m.TAKEOVER_SECONDS, self.clock.monotonic() - began)
            return session, writer, credit

    async def _run(self, session: ReplicationSession, writer: BranchWriter, credit: int) -> None:
        shipping = self.sessions.get(session.source) is session
        try:
            damaged = await asyncio.to_thread(self.store.damaged_ranges, session.source) if shipping else []
            await session.run(
                self.store,
                writer,
                self.pool,
                questions=self.questions,
                credit_bytes=credit,
                ingest_limits=self.ingest_limits,
                quota=self.quotas.of(session.source, known=True),
                cuts=self._cuts.setdefault(session.source, CutBudget()),
                damaged=damaged,
            )
        except BaseException as error:
            if isinstance(error, DrengineError) and error.kind is STORE_IO:
                self._suspect.add(session.source)
            await asyncio.shield(asyncio.to_thread(writer.close))
            Sources.note_broken(session.state)
            raise
        finally:
            self.budget.give_back(credit)
            self._forget(session)
            # Where the target's own trouble ended it, people are to see the source and why.
            ours = self._closing or session.state.state is ReplicationState.STALLED
            if shipping and session.state.durable_sequence == 0 and not ours:
                async with self._door(session.source):
                    await asyncio.shield(self._forget_empty(session.source))

    async def _forget_empty(self, source: str) -> None:
        """A source that has only said HELLO leaves nothing behind, neither in the store nor in metrics."""
        try:
            if await asyncio.to_thread(self.store.forget_empty, source):
                await asyncio.to_thread(self.store.targets.place, source, "")
                self.sources.forget(source)
                self.quotas.forget(source)
                self._cuts.pop(source, None)
        except DrengineError as error:
            log.info("an empty source stays", extra={"source": source, "detail": error.message})

    async def _reverse(self, stream: FramedStream, hello: Hello, agent: str) -> None:
        async with self._door(_place(hello)):
            self._require_open()
            require_descriptors(DESCRIPTORS_KEPT)
            grant = await self._require_grant(hello, agent)
            await self._make_way(hello)
            point = await asyncio.to_thread(self._point_to_read, hello)
            credit = await self._grant(has_data=True)
            session = Reversal(stream, hello, probe_seconds=self.probe_seconds)
            session.grant = grant
            self.errands[_place(hello)] = session
        log.info("a source reads a point", extra={"source": hello.source, "peer": stream.peer, "point": point.id})
        try:
            await session.run(self.store, point, self.pool, credit_bytes=credit)
        finally:
            self.budget.give_back(credit)
            self._forget(session)

    async def _require_grant(self, hello: Hello, agent: str) -> str:
        """Id of the grant on which this session rests; empty for replication, which needs none.

        Raises:
            DrengineError: GRANT_MISSING.
        """
        if hello.purpose is Purpose.REPLICATE:
            return ""
        if grant := await self._grant_of(hello, agent):
            return grant
        what = f"ship to branch {hello.branch}" if hello.purpose is Purpose.PRESERVE else "read its points"
        raise DrengineError(GRANT_MISSING, f"{hello.source!r} may not {what}: no run has ordered it")

    async def _grant_of(self, hello: Hello, agent: str) -> str:
        """Id of a living grant for this errand; empty: there is none.

        Who has proved no name may be the source's agent, or one whose host a run makes the source's home.
        """
        preserves = hello.purpose is Purpose.PRESERVE
        access = Access.PRESERVE if preserves else Access.REVERSE
        for grant in await asyncio.to_thread(self.store.grants.living):
            ours = grant.holder == f"agent/{agent or hello.source}"
            ours |= not agent and access is Access.REVERSE and bool(grant.instance)
            if (
                ours
                and (grant.source, grant.access) == (hello.source, access)
                and (grant.branch == hello.branch or not preserves)
            ):
                return grant.id
        return ""

    @contextlib.asynccontextmanager
    async def _door(self, place: str) -> AsyncIterator[None]:
        """Newcomers for one place queue up here, so two never decide at once."""
        door = self._doors.setdefault(place, _Door())
        door.users += 1
        try:
            async with door.lock:
                yield
        finally:
            door.users -= 1
            if not door.users:
                del self._doors[place]

    def _require_open(self) -> None:
        if self._closing:
            raise DrengineError(TARGET_BUSY, "the target is stopping")
        if self.ownership is not None and (trouble := self.ownership.trouble):
            raise DrengineError(trouble.kind, trouble.message, hint=trouble.hint)

    async def _grant(self, *, has_data: bool) -> int:
        """Credit for a session. Sources of which there is nothing yet make way for one that `has_data`."""
        credit = self.budget.grant()
        idle = next((each for each in self.sessions.values() if each.is_empty), None)
        if not credit and has_data and idle is not None:
            idle.end(DrengineError(TARGET_BUSY, "a source that has data here took the place of one that has none"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPLACE_SECONDS):
                    await idle.ended.wait()
            credit = self.budget.grant()
        if not credit:
            living = len(self.sessions) + len(self.errands)
            raise DrengineError(TARGET_BUSY, f"{living} sessions hold all of the memory budget")
        return credit

    def _forget(self, session: ReplicationSession | Reversal) -> None:
        places: list[dict[str, Any]] = [self.sessions, self.errands]
        for sessions in places:
            for place, present in list(sessions.items()):
                if present is session:
                    del sessions[place]
        session.ended.set()

    async def _make_way(self, hello: Hello) -> None:
        """Decide between a new session and the present one.

        A session whose lock is over is not waited for: it may hang at what is out of reach, and another target may
        have the source by now.

        Raises:
            DrengineError: SOURCE_BUSY, LOCK_LOST.
        """
        present = self.errands.get(_place(hello)) if hello.purpose else self.sessions.get(hello.source)
        choice = decide_admission(hello.instance, present.instance if present else None)
        if present is None or choice is Admission.ADMIT:
            return
        present.require_held()
        if choice is Admission.PROBE and await present.is_alive():
            log.error("two agents ship one source: the newcomer is refused", extra={"source": hello.source})
            raise DrengineError(SOURCE_BUSY, f"another living agent ships {hello.source!r}")
        present.end(Replaced())
        try:
            async with asyncio.timeout(REPLACE_SECONDS):
                while not await present.has_ended(LOOK_SECONDS):
                    present.require_held()
        except TimeoutError as error:
            raise DrengineError(SOURCE_BUSY, f"the old session of {hello.source!r} does not end") from error

    def _take(self, hello: Hello) -> tuple[BranchWriter, bool]:
        """The writer of the branch that a session is for; and whether a target had the source that is gone.

        Raises:
            SentOn: another target has the source, or had better have it; and as `Store.writer`.
        """
        ownership = self.ownership
        if ownership is None or hello.purpose is not Purpose.REPLICATE:
            return self._open_writer(hello), False
        taken_over = ownership.require_ours(hello)
        try:
            writer = self._open_writer(hello)
        except DrengineError as error:
            if error.kind is BRANCH_BUSY:
                ownership.require_ours(hello)  # another target was quicker: the agent is to hear which one
            raise
        try:
            ownership.took(hello.source)
        except BaseException:
            writer.close()
            raise
        return writer, taken_over

    def _open_writer(self, hello: Hello) -> BranchWriter:
        if hello.purpose is Purpose.PRESERVE:
            return self._open_divergent(hello)
        if not 0 <= hello.generation < OFFSET_MAX:
            raise DrengineError(STORE_BEHIND, f"{hello.generation} is no generation of {hello.source!r}")
        info: SourceInfo = self.store.ensure_source(
            hello.source, generation=hello.generation or 1, sources_max=self.sources_max
        )
        if not hello.generation:
            self._require_sources_own(info)
        elif hello.generation != info.generation:
            behind = hello.generation > info.generation
            raise DrengineError(
                STORE_BEHIND if behind else FENCED,
                f"{hello.source!r} ships generation {hello.generation}, the store is at {info.generation}",
            )
        if hello.source in self._suspect:
            damaged = self.store.reread_newest(hello.source)
            found = {"source": hello.source, "records_damaged": damaged}
            log.warning("the store is used again after a failure of its disk", extra=found)
            self._suspect.discard(hello.source)
        return self.store.writer(hello.source, generation=info.generation, branch=info.active_branch)

    def _require_sources_own(self, info: SourceInfo) -> None:
        """An agent that does not know its generation, because its state is lost, goes on where the source is in charge.

        Raises:
            DrengineError: FENCED, somebody else writes the active branch.
        """
        active = next(each for each in self.store.branches(info.name) if each.number == info.active_branch)
        if not active.is_sources_own:
            raise DrengineError(FENCED, f"{info.name!r} was failed over; the store is at generation {info.generation}")
        if info.generation > 1:
            found = {"source": info.name, "generation": info.generation}
            log.warning("an agent whose state is lost is told its generation: the source is in charge", extra=found)

    def _open_divergent(self, hello: Hello) -> BranchWriter:
        branches = self.store.branches(hello.source)
        branch = next((each for each in branches if each.number == hello.branch), None)
        if branch is None or branch.role != "divergent":
            raise DrengineError(UNKNOWN_BRANCH, f"{hello.source!r} has no divergent branch {hello.branch}")
        return self.store.writer(hello.source, generation=hello.generation, branch=hello.branch)

    def _point_to_read(self, hello: Hello) -> RecoveryPoint:
        """Only what the source's history holds: not a drill's branch, nor what a promotion left behind."""
        if hello.sequence > OFFSET_MAX:
            raise DrengineError(UNKNOWN_POINT, f"{hello.source!r} has no position {hello.sequence}")
        selector = PointSelector(branch=hello.branch, sequence=hello.sequence)
        point = self.store.find_point(hello.source, selector)
        if not self.store.is_in_history(point):
            raise DrengineError(UNKNOWN_POINT, f"point {point.id} is not of the branch that {hello.source!r} runs on")
        return point

    async def ask_again(self) -> None:
        """A scrub has ended: ask the connected sources for what it found unreadable."""
        for source, session in list(self.sessions.items()):
            session.ask_again(await asyncio.to_thread(self.store.damaged_ranges, source))

    @property
    def is_busy(self) -> bool:
        """Whether any session has batches waiting; from any thread."""
        return any(session.is_busy for session in list(self.sessions.values()))


def _place(hello: Hello) -> str:
    """What only one session at a time may be for."""
    match hello.purpose:
        case Purpose.PRESERVE:
            return f"{hello.source}#{hello.branch}"
        case Purpose.REVERSE:
            return f"{hello.source}@"
    return hello.source
