"""One agent's session: greeting, receiving, acknowledging, and an end with a reason.

Three parties: a task that receives and queues (`_receive`), a task that sends (`_send`), and the ingest thread, which
reports through `loop.call_soon_threadsafe`. The first failure ends the session; other sessions never hear of it.
Silence and peers that take nothing are the transport's to notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.damage import DamagedRange
from drengine.store.errors import LOCK_LOST
from drengine.store.log.writer import BranchWriter
from drengine.store.store import Store
from drengine.target import metrics as m
from drengine.target.admission import CutBudget
from drengine.target.errors import SOURCE_BUSY, TARGET_FAILED
from drengine.target.ingest import Ingest, IngestLimits, Stored
from drengine.target.inventories import InventoryKeeper
from drengine.target.metrics import TargetMetrics
from drengine.target.peer import AdmittedAgent
from drengine.target.quotas import Quota
from drengine.target.sources import Sources, SourceState
from drengine.transport.errors import reason_of
from drengine.transport.framed import FramedStream
from drengine.wire.events import (
    Ack,
    BatchEvent,
    Credit,
    CutEvent,
    Event,
    Geometry,
    Goodbye,
    Hashes,
    HashQuery,
    Hello,
    InventoryReport,
    MetricsReport,
    Purpose,
    Resend,
    Status,
)

log = logging.getLogger("drengine.target")

OUTBOX_MAX = 256
QUEUED_MAX = 4200
QUERIES_MAX = 64
UNCREDITED_BYTES_MAX = 4 << 20
"""Of what is queued without credit: declarations of volumes may be long."""
LAST_WORDS_SECONDS = 2.0


class Replaced(DrengineError):
    """A newer session has taken this one's place."""

    def __init__(self) -> None:
        super().__init__(SOURCE_BUSY, "a newer session of this agent took its place")


class ReplicationSession(AdmittedAgent):
    """An admitted session, from WELCOME to its end."""

    def __init__(
        self,
        stream: FramedStream,
        hello: Hello,
        state: SourceState,
        metrics: TargetMetrics,
        *,
        clock: Clock,
        probe_seconds: float,
    ) -> None:
        super().__init__(stream, hello, probe_seconds=probe_seconds)
        self.state = state
        self._metrics = metrics
        self._clock = clock
        self._ingest: Ingest | None = None
        self._writer: BranchWriter | None = None
        self._outbox: deque[Event] = deque()
        self._to_send = asyncio.Event()
        self._progress = asyncio.Event()
        self._queries = 0
        self._arrivals: deque[tuple[int, float]] = deque()

    async def run(
        self,
        store: Store,
        writer: BranchWriter,
        pool: Executor,
        *,
        questions: Executor,
        credit_bytes: int,
        ingest_limits: IngestLimits,
        quota: Quota,
        cuts: CutBudget,
        damaged: list[DamagedRange],
    ) -> None:
        """Serve the agent until the session ends; the writer is closed then.

        Raises:
            DrengineError: why it ended, unless in peace; the agent has not been told yet.
        """
        await self._welcome(
            generation=writer.generation,
            sequence=writer.durable.sequence,
            mark=writer.durable.mark,
            geometry=tuple(writer.geometry.values()),
            credit_bytes=credit_bytes,
        )
        self.state.durable_sequence = writer.durable.sequence
        self._writer = writer
        self._ingest = Ingest(
            store,
            writer,
            self,
            pool,
            questions=questions,
            clock=self._clock,
            limits=ingest_limits,
            quota=quota,
            cuts=cuts,
        )
        self.ask_again(damaged)
        self._inventories = InventoryKeeper(store, writer, questions, self._clock)
        work = (self._receive(), self._send(), self._inventories.run())
        tasks = [asyncio.ensure_future(task) for task in work]
        try:
            await asyncio.wait([*tasks, self._ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._say_that_it_is_lost()
            # What arrived is worth keeping, and the writer must be free before anyone is let in again.
            await asyncio.shield(self._loop.run_in_executor(None, self._ingest.finish))
            self._writer = None  # its lock is let go, not lost
        cause = next((why for done in [self._ending, *tasks] if (why := _failure(done))), None)
        Sources.note_closed(self.state, goodbye=cause is None, error=cause)
        await self._say_last(None if cause else Goodbye())
        if cause:
            raise cause
        log.info("session ended", extra={"source": self.source})

    def require_held(self) -> None:
        """See `AdmittedAgent.require_held`."""
        if self._writer is not None:
            self._writer.require_held()

    def end_if_lost(self) -> None:
        """End the session once the source's lock is over here: somebody else may have it."""
        try:
            self.require_held()
        except DrengineError as error:
            self.end(error)

    async def _say_that_it_is_lost(self) -> None:
        """Tell the agent at once: what is under way may wait long for a store that is out of reach."""
        why = _failure(self._ending)
        if why is not None and why.kind is LOCK_LOST:
            with contextlib.suppress(DrengineError, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self._stream.refuse(why)

    @property
    def is_empty(self) -> bool:
        """Whether its source has never made anything durable, and is not about to."""
        return not (self.state.durable_sequence or self.is_busy)

    @property
    def is_busy(self) -> bool:
        """Whether anything that was received waits to be stored."""
        return bool(self._ingest and self._ingest.queued)

    def ask_again(self, damaged: list[DamagedRange]) -> None:
        """Ask the source to send unreadable ranges of its newest data again."""
        if "resend" in self._hello.abilities:
            for damage in damaged[: OUTBOX_MAX // 2]:
                self._post(Resend(damage.volume, damage.offset, damage.length))

    # What the ingest thread and the pool tell.

    def on_durable(self, stored: Stored) -> None:
        """See IngestSink."""
        self._tell(self._stored, stored)

    def on_hashes(self, query: int, digests: bytes) -> None:
        """See IngestSink."""
        self._tell(self._answered, Hashes(query, digests))

    def on_failed(self, error: DrengineError) -> None:
        """See IngestSink."""
        self._tell(self.end, error)

    def on_idle(self) -> None:
        """See IngestSink."""
        self._tell(self._progress.set)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the session with it
            self._loop.call_soon_threadsafe(function, *arguments)

    # The tasks.

    async def _receive(self) -> None:
        assert self._ingest
        while True:
            await self._await_room(self._ingest)
            match event := await self._next_work():
                case None:
                    return
                case BatchEvent() | CutEvent() | Geometry():
                    self._arrivals.append((event.sequence, self._clock.monotonic()))
                    self._ingest.put(event)
                case HashQuery():
                    self._queries += 1
                    self._ingest.put(event)
                case MetricsReport(samples=samples):
                    self.state.samples = samples
                case InventoryReport(inventory=inventory) if self._hello.purpose is Purpose.REPLICATE:
                    self._inventories.put(inventory)
                case Status():
                    Sources.note_status(self.state, event, self._clock.now_ns())
                    self._ingest.put(event)

    async def _send_event(self, event: Event) -> None:
        self._post(event)

    async def _send(self) -> None:
        while True:
            while self._outbox:
                await self._stream.send(self._outbox.popleft())
                self._progress.set()
            self._to_send.clear()
            await self._to_send.wait()

    async def _await_room(self, ingest: Ingest) -> None:
        """Receive no more while too much is queued: TCP then holds the agent back."""
        while self._is_crowded(ingest):
            self._progress.clear()
            if self._is_crowded(ingest):
                await self._progress.wait()

    def _is_crowded(self, ingest: Ingest | None) -> bool:
        if ingest and (ingest.queued > QUEUED_MAX or ingest.queued_bytes > UNCREDITED_BYTES_MAX):
            return True
        return len(self._outbox) > OUTBOX_MAX or self._queries > QUERIES_MAX

    def _post(self, event: Event) -> None:
        self._outbox.append(event)
        self._to_send.set()

    def _answered(self, hashes: Hashes) -> None:
        self._queries -= 1
        self._post(hashes)

    def _stored(self, stored: Stored) -> None:
        durable, now = stored.committed, self._clock.monotonic()
        if durable.sequence > self.state.durable_sequence:
            self.state.durable_sequence = durable.sequence
            self._post(Ack(durable.sequence, durable.mark))
        if stored.credit_bytes:
            self._post(Credit(stored.credit_bytes))
        Sources.note_points(self.state, stored.committed.points)
        self._progress.set()
        metrics = self._metrics
        metrics.count(m.COMMITS, 1, self.source)
        metrics.count(m.BATCHES, stored.batches, self.source)
        metrics.count(m.PLAIN, stored.plain_bytes, self.source)
        metrics.count(m.STORED, stored.payload_bytes, self.source)
        metrics.count(m.CUTS, len(stored.committed.points), self.source)
        metrics.observe(m.COMMIT_SECONDS, stored.commit_seconds)
        oldest = None
        while self._arrivals and self._arrivals[0][0] <= durable.sequence:
            _, arrived = self._arrivals.popleft()
            oldest = arrived if oldest is None else oldest
        if oldest is not None:
            metrics.observe(m.ACK_SECONDS, now - oldest)

    async def _say_last(self, last: Goodbye | None) -> None:
        """Send what is left (the last acknowledgements), and the goodbye."""
        await asyncio.sleep(0)  # what the ingest thread told last arrives now
        with contextlib.suppress(DrengineError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                while self._outbox:
                    await self._stream.send(self._outbox.popleft())
                if last:
                    await self._stream.send(last)


def _failure(done: asyncio.Future[None]) -> DrengineError | None:
    """Why a part of the session ended, or None: it has not, or in peace."""
    if not done.done() or done.cancelled():
        return None
    error = done.exception()
    if error is None or isinstance(error, DrengineError):
        return error
    log.error("a session failed", exc_info=error)
    return DrengineError(TARGET_FAILED, f"{type(error).__name__}: {error}")


def ended_because(error: DrengineError) -> str:
    """A bounded word for metrics."""
    return "session-replaced" if isinstance(error, Replaced) else reason_of(error)
