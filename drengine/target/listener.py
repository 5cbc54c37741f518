"""Letting agents in: greeting, generation, admission, one session a source."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import Executor
from dataclasses import dataclass, field

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.errors import FENCED, STORE_IO
from drengine.store.log import BranchWriter
from drengine.store.store import SourceInfo, Store
from drengine.target.admission import Admission, CreditBudget, decide_admission
from drengine.target.errors import SOURCE_BUSY, TARGET_BUSY
from drengine.target.ingest import IngestLimits
from drengine.target.metrics import TargetMetrics
from drengine.target.reread import reread_newest
from drengine.target.session import Replaced, Session
from drengine.target.sources import Sources
from drengine.transport import FramedStream
from drengine.wire.connection import negotiate_version
from drengine.wire.events import Hello

log = logging.getLogger("drengine.target")

REPLACE_SECONDS = 10.0
"""How long an old session may take to end when a newer one takes its place."""

PROBE_SECONDS = 3.0
"""How long an agent may take to answer when another one wants its place (fault 41)."""


@dataclass
class Reception:
    """Takes each accepted connection from its HELLO to the end of its session."""

    store: Store
    sources: Sources
    metrics: TargetMetrics
    pool: Executor
    budget: CreditBudget
    clock: Clock
    probe_seconds: float = PROBE_SECONDS
    ingest_limits: IngestLimits = field(default_factory=IngestLimits)
    sessions: dict[str, Session] = field(default_factory=dict)
    _doors: dict[str, asyncio.Lock] = field(default_factory=dict)
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
        await self._run(*await self._admit(stream, hello))

    async def close(self, seconds: float) -> None:
        """End every session in peace: what arrived is committed and acknowledged, at most for so long."""
        self._closing = True
        living = list(self.sessions.values())
        for session in living:
            session.end(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(session.ended.wait() for session in living))

    async def _admit(self, stream: FramedStream, hello: Hello) -> tuple[Session, BranchWriter, int]:
        door = self._doors.setdefault(hello.source, asyncio.Lock())
        async with door:  # newcomers for one source queue up here, so two never decide at once
            if self._closing:
                raise DrengineError(TARGET_BUSY, "the target is stopping")
            await self._make_way(hello)
            writer = await asyncio.to_thread(self._open_writer, hello)
            credit = self.budget.grant()
            if not credit:
                await asyncio.to_thread(writer.close)
                raise DrengineError(TARGET_BUSY, f"{len(self.sessions)} sessions hold all of the memory budget")
            state = self.sources.get(hello.source)
            session = Session(stream, hello, state, self.metrics, clock=self.clock, probe_seconds=self.probe_seconds)
            self.sessions[hello.source] = session
            Sources.note_opened(state, stream.peer)
            told = {"source": hello.source, "peer": stream.peer, "durable": writer.durable.sequence}
            log.info("session opened", extra=told)
            return session, writer, credit

    async def _run(self, session: Session, writer: BranchWriter, credit: int) -> None:
        try:
            damaged = await asyncio.to_thread(self.store.damaged_ranges, session.source)
            await session.run(
                self.store,
                writer,
                self.pool,
                credit_bytes=credit,
                ingest_limits=self.ingest_limits,
                damaged=damaged,
            )
        except BaseException as error:
            if isinstance(error, DrengineError) and error.kind is STORE_IO:
                self._suspect.add(session.source)
            await asyncio.shield(asyncio.to_thread(writer.close))
            Sources.note_broken(self.sources.get(session.source))
            raise
        finally:
            self.budget.give_back(credit)
            if self.sessions.get(session.source) is session:
                del self.sessions[session.source]
            session.ended.set()

    async def _make_way(self, hello: Hello) -> None:
        """Decide between the newcomer and who is there.

        Raises:
            DrengineError: SOURCE_BUSY.
        """
        present = self.sessions.get(hello.source)
        choice = decide_admission(hello.instance, present.instance if present else None)
        if present is None or choice is Admission.ADMIT:
            return
        if choice is Admission.PROBE and await present.is_alive():
            log.error("two agents ship one source: the newcomer is refused", extra={"source": hello.source})
            raise DrengineError(SOURCE_BUSY, f"another living agent ships {hello.source!r}")
        present.end(Replaced())
        try:
            async with asyncio.timeout(REPLACE_SECONDS):
                await present.ended.wait()
        except TimeoutError as error:
            raise DrengineError(SOURCE_BUSY, f"the old session of {hello.source!r} does not end") from error

    def _open_writer(self, hello: Hello) -> BranchWriter:
        info: SourceInfo = self.store.ensure_source(hello.source)
        if hello.generation != info.generation:
            raise DrengineError(
                FENCED,
                f"{hello.source!r} ships generation {hello.generation}, the store is at {info.generation}",
            )
        if hello.source in self._suspect:
            damaged = reread_newest(self.store, hello.source)
            told = {"source": hello.source, "records_damaged": damaged}
            log.warning("the store is used again after a failure of its disk", extra=told)
            self._suspect.discard(hello.source)
        return self.store.writer(hello.source, generation=info.generation, branch=info.active_branch)

    async def ask_again(self) -> None:
        """A scrub has ended: ask the connected sources for what it found unreadable."""
        for source, session in list(self.sessions.items()):
            session.ask_again(await asyncio.to_thread(self.store.damaged_ranges, source))

    @property
    def is_busy(self) -> bool:
        """Whether any session has batches waiting; from any thread."""
        return any(session.is_busy for session in list(self.sessions.values()))
