"""Taking one source's stream into the store: verified, in order, durable before it is acknowledged.

For each session one thread owns the branch's writer. What the session receives is queued in order; the hashes of a
batch are recomputed in a shared pool while it waits, so both cores work and the order stays. The thread appends, and
commits when its queue is empty, or when enough has been gathered or enough time has passed (group commit): one
fdatasync and one transaction for many batches. Invariants:

- `on_durable` is called only with what `BranchWriter.commit` returned (rule 2), never with what was appended;
- a batch whose hashes differ is never appended, nor is anything behind it;
- after any failure nothing more is appended, and the session learns why.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.store.errors import from_os_error
from drengine.store.log.writer import BranchWriter, Committed
from drengine.store.store import Store
from drengine.target.admission import CUT_BYTES, CutBudget
from drengine.target.errors import TARGET_FAILED
from drengine.target.queries import HashAnswers, SharedView, answer
from drengine.target.quotas import Quota
from drengine.wire.events import BatchEvent, CutEvent, Geometry, HashQuery, Status
from drengine.wire.frames import batch_frame_bytes
from drengine.wire.payload import check_batch

log = logging.getLogger("drengine.target")

WAIT_SECONDS = 0.1
"""While cuts are held back: from one look at the clock to the next."""

ANSWERS_MAX = 2
"""Of one session under way at a time: others that ask wait for no more."""

Item = BatchEvent | CutEvent | Geometry | HashQuery | Status


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """When to commit.

    Attributes:
        commit_bytes: a commit is made once so many bytes were appended since the last one.
        commit_seconds: ... or so much time has passed since a recovery point was among them.
        bulk_commit_seconds: ... or since the first of them: bulk data, for which nobody waits, takes fewer syncs.
        free_bytes_min: below so much free space nothing is taken in: compaction needs room to make room.
    """

    commit_bytes: int = 32 << 20
    commit_seconds: float = 0.02
    bulk_commit_seconds: float = 0.1
    free_bytes_min: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """What one commit made durable.

    Attributes:
        committed: the position to acknowledge, and the recovery points that became visible.
        credit_bytes: frame bytes that are held no longer.
        batches, plain_bytes, payload_bytes: what it added to the store.
        commit_seconds: how long the commit took.
    """

    committed: Committed
    credit_bytes: int
    batches: int
    plain_bytes: int
    payload_bytes: int
    commit_seconds: float


class IngestSink(Protocol):
    """What the ingest reports to; called on the ingest thread (hashes: on the pool's)."""

    def on_durable(self, stored: Stored) -> None:
        """Something became durable: acknowledge it."""
        ...

    def on_hashes(self, query: int, digests: bytes) -> None:
        """The answer to a query."""
        ...

    def on_idle(self) -> None:
        """Nothing is queued any more."""
        ...

    def on_failed(self, error: DrengineError) -> None:
        """This can't go on: end the session with this reason. It may be called several times; the first counts."""
        ...


class Ingest:
    """The ingest of one session."""

    def __init__(
        self,
        store: Store,
        writer: BranchWriter,
        sink: IngestSink,
        pool: Executor,
        *,
        questions: Executor,
        clock: Clock,
        limits: IngestLimits,
        quota: Quota,
        cuts: CutBudget,
    ) -> None:
        """Take over `writer`, which is closed when the ingest ends, and start the thread."""
        self._store = store
        self._writer = writer
        self._sink = sink
        self._pool = pool
        self._questions = questions
        self._asked: deque[tuple[HashQuery, SharedView]] = deque()
        self._answering = 0
        self._lock = threading.Lock()
        self._clock = clock
        self._limits = limits
        self._queue: queue.SimpleQueue[tuple[Item, Future[None] | None] | None] = queue.SimpleQueue()
        self._answers = HashAnswers(store, writer.source, writer.branch)
        self._batches = self._plain_bytes = self._payload_bytes = self._held_bytes = 0
        self._due_at = 0.0
        self._quota = quota
        self._cuts = cuts
        self._geometry_bytes = _geometry_bytes(writer.geometry.values())
        self._ending = threading.Event()
        self._put_bytes = self._handled_bytes = 0
        self._thread = threading.Thread(target=self._run, name=f"ingest-{writer.source}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Items not yet handled."""
        return self._queue.qsize()

    @property
    def queued_bytes(self) -> int:
        """About what items in the queue hold for which agents need no credit."""
        return self._put_bytes - self._handled_bytes

    def put(self, item: Item) -> None:
        """Queue what was received, in order; a batch's hashes begin to be recomputed at once."""
        verified = self._pool.submit(_verify, item) if isinstance(item, BatchEvent) else None
        self._put_bytes += _uncredited_bytes(item)
        self._queue.put((item, verified))

    def finish(self) -> None:
        """Handle what is queued, commit it, close the writer; returns when the thread has ended. Not on the loop.

        Behind a cut that is held back nothing is handled: the agent sends it again.
        """
        self._ending.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except DrengineError as error:
            self._sink.on_failed(error)
        except Exception as error:  # a thread that died in silence would look like a slow disk for ever
            log.exception("ingest failed", extra={"source": self._writer.source})
            self._sink.on_failed(_unexpected(error))
        finally:
            self._ending.set()
            self._answer_next()
            self._answers.close()
            self._writer.close()

    def _work(self) -> None:
        while True:
            entry = self._next()
            if entry is None:
                self._commit()
                return
            item, verified = entry
            self._handled_bytes += _uncredited_bytes(item)
            if isinstance(item, HashQuery):
                self._ask(item)
            elif isinstance(item, Status):
                # A source that has nothing to ship hears of a promotion as well (fault 45).
                self._writer.require_current()
            elif item.sequence <= self._writer.appended_sequence:
                self._drop_duplicate(item)
            else:
                self._await_verdict(verified)
                self._require_quota(item)
                if isinstance(item, CutEvent) and not self._may_cut():
                    self._commit()
                    return
                self._append(item)
                if self._held_bytes >= self._limits.commit_bytes or self._is_late():
                    self._commit()

    def _next(self) -> tuple[Item, Future[None] | None] | None:
        """The next item; what was appended is committed before waiting for more."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            self._commit()
            self._sink.on_idle()
            return self._queue.get()

    def _await_verdict(self, verified: Future[None] | None) -> None:
        """Return when the batch has proved itself; otherwise what came before it is still made durable."""
        try:
            if verified:
                verified.result()
        except DrengineError:
            self._commit()
            raise

    def _require_quota(self, item: Item) -> None:
        """
        Raises:
            DrengineError: QUOTA_EXCEEDED; what came before it is durable.
        """
        try:
            if isinstance(item, CutEvent):
                self._quota.take_point(self._clock.monotonic())
            elif isinstance(item, Geometry):
                self._quota.require_volumes(item.volumes)
        except DrengineError:
            self._commit()
            raise

    def _may_cut(self) -> bool:
        """Wait until the source may make a point; False when the session ends meanwhile."""
        cost_bytes = CUT_BYTES + self._geometry_bytes
        while (seconds := self._cuts.wait_seconds(cost_bytes, self._clock.monotonic())) > 0:
            self._commit()
            if self._ending.wait(min(seconds, WAIT_SECONDS)):
                return False
        return True

    def _is_late(self) -> bool:
        return self._clock.monotonic() >= self._due_at

    def _append(self, item: BatchEvent | CutEvent | Geometry) -> None:
        writer = self._writer
        if not self._is_uncommitted():
            self._due_at = self._clock.monotonic() + self._limits.bulk_commit_seconds
            self._store.require_room(self._limits.free_bytes_min)
        if isinstance(item, BatchEvent):
            writer.append_batch(item.sequence, item.mark, item.batch, generation=writer.generation)
            self._answers.note_table(item.batch.table)
            self._batches += 1
            self._plain_bytes += item.batch.plain_length
            self._payload_bytes += len(item.batch.payload)
            self._held_bytes += batch_frame_bytes(item.batch)
        elif isinstance(item, CutEvent):
            writer.append_cut(item.sequence, item.mark, item.cut, generation=writer.generation)
            self._due_at = min(self._due_at, self._clock.monotonic() + self._limits.commit_seconds)
        else:
            writer.append_geometry(item.sequence, item.mark, item.volumes, generation=writer.generation)
            self._geometry_bytes = _geometry_bytes(item.volumes)
            self._answers.note_geometry()

    def _drop_duplicate(self, item: BatchEvent | CutEvent | Geometry) -> None:
        """A position that is here already (fault 32): only its credit is given back, with the next commit."""
        if isinstance(item, BatchEvent):
            self._held_bytes += batch_frame_bytes(item.batch)

    def _is_uncommitted(self) -> bool:
        return self._writer.appended_sequence > self._writer.durable.sequence

    def _commit(self) -> None:
        if not self._is_uncommitted() and not self._held_bytes:
            return
        writer, begin = self._writer, self._clock.monotonic()
        committed = writer.commit(generation=writer.generation)
        seconds = self._clock.monotonic() - begin
        stored = Stored(
            committed=committed,
            credit_bytes=self._held_bytes,
            batches=self._batches,
            plain_bytes=self._plain_bytes,
            payload_bytes=self._payload_bytes,
            commit_seconds=seconds,
        )
        self._batches = self._plain_bytes = self._payload_bytes = self._held_bytes = 0
        self._sink.on_durable(stored)

    def _ask(self, query: HashQuery) -> None:
        if not self._answers.is_current(query):
            self._commit()
        with self._lock:
            self._asked.append((query, self._answers.begin(query)))
        self._answer_next()

    def _answer_next(self) -> None:
        """Begin as many answers as may be under way; when the session ends nobody waits for them."""
        with self._lock:
            while self._asked and (self._answering < ANSWERS_MAX or self._ending.is_set()):
                query, shared = self._asked.popleft()
                if self._ending.is_set():
                    shared.release()
                else:
                    self._answering += 1
                    self._questions.submit(self._answer, query, shared)

    def _answer(self, query: HashQuery, shared: SharedView) -> None:
        try:
            digests = answer(shared.view, query)
        except DrengineError as error:
            self._sink.on_failed(error)
        except Exception as error:
            log.exception("a hash query failed", extra={"source": self._writer.source})
            self._sink.on_failed(_unexpected(error))
        else:
            self._sink.on_hashes(query.query, digests)
        finally:
            shared.release()
            with self._lock:
                self._answering -= 1
            self._answer_next()


def _geometry_bytes(volumes: Iterable[VolumeGeometry]) -> int:
    """About what a declaration of these volumes takes in the catalogue."""
    return sum(32 + len(volume.name) + len(volume.identity) for volume in volumes)


def _uncredited_bytes(item: Item) -> int:
    """About what an item holds in memory, if credit does not bound it."""
    match item:
        case BatchEvent():
            return 0
        case Geometry():
            return sum(256 + len(volume.name) + len(volume.identity) for volume in item.volumes)
    return 256


def _unexpected(error: Exception) -> DrengineError:
    if isinstance(error, OSError):
        return from_os_error(error, "ingest")
    return DrengineError(TARGET_FAILED, f"{type(error).__name__}: {error}")


def _verify(item: BatchEvent) -> None:
    """Recompute the hashes; the plain bytes are not kept."""
    check_batch(item.batch)
