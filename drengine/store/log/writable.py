"""A branch that can be written at random, as a disk is: a view of its head, and what was written since laid over it.

A write completes into a bounded buffer, which reads look through; `flush` makes everything written before it durable.

*Who waits for what.* One lock guards the lists in memory; nobody holds it while storage is read or written. The log has
one user at a time, the thread that logs: it takes the buffer away, leaving an empty one for other writers, and hashes,
appends and commits without the lock. A flush that comes meanwhile waits for the next commit, which serves all that
wait. Writes wait only when the buffer is full.

*What a failure leaves.* After a failed append or commit the log is back at its durable position; what is not durable
stays in memory, readable, and the next flush appends all of it again, in order.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

from drengine.model.errors import DrengineError
from drengine.model.extents import ExtentKind
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint
from drengine.store.context import StoreContext
from drengine.store.errors import DAMAGED, STORE_FULL
from drengine.store.locks import Position
from drengine.store.log.pending import (
    Change,
    Held,
    Pending,
    Recent,
    Record,
    cost_bytes,
    cut_changes,
    logged_maps,
)
from drengine.store.log.tail import Tail, TailLayer
from drengine.store.log.writer import BranchWriter, Committed
from drengine.store.segments.format import parse_geometry
from drengine.store.views.content import Part
from drengine.store.views.stack import StackLayer
from drengine.store.views.view import View

_log = logging.getLogger(__name__)

_KEPT_BUFFERS = 4
"""So many times the write buffer stays readable from memory after it became durable."""

_FENCE_SECONDS = 0.1
"""A writer that was fenced hears of it so soon, also when it does not flush."""


class WritableView(View):
    """Reads and writes a branch as its only writer. Threads may share it.

    `write_now`, `zero_now` and `discard_now` never wait, so an event loop may call them. Everything else may wait for
    storage. Memory: `uncommitted_bytes_max`, once more of it while it is encoded, and a few write buffers.
    """

    def __init__(self, context: StoreContext, writer: BranchWriter) -> None:
        durable = writer.durable
        position = Position(writer.source, writer.branch, durable.sequence)
        row = context.catalogue.branch(writer.source, writer.branch)
        geometry = parse_geometry(row.geometry)
        stack = context.layers.stack(position.source, position.branch, position.sequence, geometry)
        super().__init__(context.records, position, geometry, stack, lease=None)
        self._context = context
        self._options = context.options
        self._writer = writer
        self._epoch = secrets.token_bytes(16)
        self._changed = threading.Condition(threading.Lock())
        """Its lock guards everything below; it is notified when the log is free again."""
        self._logging = False
        self._commits_begun = self._commits_covered = 0
        """Commits are numbered; everything that was written before the covered one began is durable."""
        self._recent = [Recent()]
        """What readers find in memory, oldest first; writes go to the newest."""
        self._buffer = Pending(self._recent[-1])
        self._taken: list[Pending] = []
        """Taken by whoever logs, and not durable; oldest first."""
        self._tail = Tail()
        """Durable records that `_stack` does not show yet."""
        writer.makes_layers = False
        self._settled = 0
        """The stack shows what lies before this segment, and the tail only what comes from then on."""
        self._segment = 0
        """The newest one that commits went to; `_settled` follows it."""
        self._settling: threading.Thread | None = None
        self._must_replay = False
        self._fence_seen = context.clock.monotonic()
        self._uncut = context.catalogue.point(writer.source, writer.branch, durable.sequence) is None and (
            durable.sequence > row.base_sequence
        )

    @property
    def is_uncut(self) -> bool:
        """Whether anything was written since the newest point on the branch."""
        with self._changed:
            return self._uncut or bool(self._buffer.changes or self._taken)

    @property
    def branch(self) -> int:
        """Number of the branch."""
        return self._writer.branch

    def close(self) -> None:
        """Let the branch go. What was not flushed is gone, as on any disk."""
        with self._alone():
            self._writer.close()
            if self._settling is not None:
                self._settling.join()
        super().close()

    def write(self, volume: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes; durable after `flush`. Waits while the buffer is full.

        Raises:
            DrengineError: OUT_OF_RANGE, UNKNOWN_VOLUME, FENCED, STORE_FULL, STORE_IO; then nothing was written.
        """
        self._check_range(volume, offset, memoryview(data).nbytes)
        self._put(cut_changes(volume, offset, data))

    def zero(self, volume: int, offset: int, length: int) -> None:
        """Make a range read as zeros; see `write`."""
        self._put(self._cleared(volume, ExtentKind.ZERO, offset, length))

    def discard(self, volume: int, offset: int, length: int) -> None:
        """Say that a range is not needed; it reads as zeros. See `write`."""
        self._put(self._cleared(volume, ExtentKind.DISCARD, offset, length))

    def write_now(self, volume: int, offset: int, data: bytes | bytearray | memoryview) -> bool:
        """Write bytes, as `write`, unless that would wait for anything: then nothing is done, and the answer is False.

        Raises:
            DrengineError: OUT_OF_RANGE, UNKNOWN_VOLUME; any other failure is left for `write` to tell.
        """
        self._check_range(volume, offset, memoryview(data).nbytes)
        return self._put_now(cut_changes(volume, offset, data))

    def zero_now(self, volume: int, offset: int, length: int) -> bool:
        """As `zero`, unless that would wait; see `write_now`."""
        return self._put_now(self._cleared(volume, ExtentKind.ZERO, offset, length))

    def discard_now(self, volume: int, offset: int, length: int) -> bool:
        """As `discard`, unless that would wait; see `write_now`."""
        return self._put_now(self._cleared(volume, ExtentKind.DISCARD, offset, length))

    def flush(self) -> None:
        """Make everything written so far durable. Flushes that wait at the same time share one commit.

        Raises:
            DrengineError: FENCED, STORE_IO; STORE_FULL: what was written is kept and the next flush tries again.
        """
        with self._changed:
            # A commit under way took the buffer before this flush came.
            wanted = self._commits_begun + 1
            while self._logging:
                self._changed.wait()
                if self._commits_covered >= wanted:
                    return
            self._logging = True
        with self._freeing_log():
            self._commit()

    def cut(self, kind: PointKind, label: str = "") -> RecoveryPoint:
        """Flush, and make a recovery point of what was written so far; see `flush`."""
        with self._alone():
            return self._commit(Cut(self._context.clock.now_ns(), kind, label)).points[-1]

    def _layers(self) -> list[StackLayer]:
        with self._changed:
            memory = [StackLayer(self.branch, recent.maps()) for recent in reversed(self._recent)]
        return [*memory, *self._durable_layers()]

    def _durable_layers(self) -> list[StackLayer]:
        with self._changed:
            return [*(StackLayer(self.branch, layer.maps) for layer in reversed(self._tail)), *self._stack]

    def _held(self, volume: int, offset: int, length: int, *, wait: bool = True) -> list[Held] | None:
        if not self._changed.acquire(blocking=wait):
            return None
        try:
            held: list[Held] = []
            gaps = [(offset, length)] if length else []
            for recent in reversed(self._recent):
                found, gaps = recent.find(volume, gaps)
                held += found
        finally:
            self._changed.release()
        if len(self._recent) > 1:
            held.sort(key=itemgetter(0))
        return held

    def _parts(self, volume: int, offset: int, length: int) -> list[Part]:
        while True:
            position = self.position
            try:
                return super()._parts(volume, offset, length)
            except DrengineError as error:
                # What was overwritten meanwhile may be gone: compaction keeps only what the newest position shows.
                if error.kind is not DAMAGED or self.position == position:
                    raise

    def _cleared(self, volume: int, kind: ExtentKind, offset: int, length: int) -> list[Change]:
        self._check_range(volume, offset, length)
        return [Change(volume, kind, offset, length, None)] if length else []

    def _put(self, changes: list[Change]) -> None:
        """Take changes in, all or none, when there is room."""
        cost = cost_bytes(changes)
        while True:
            with self._changed:
                while not (takes := self._takes(cost)) and self._logging:
                    self._changed.wait()
                if takes:
                    self._buffer.add(changes, cost)
                    return
                self._logging = True
            with self._freeing_log():
                if not self._has_room(cost):
                    self._commit()
                elif self._is_full():
                    # A full disk shows at the next flush; until then the bytes are kept in memory.
                    with suppress_full():
                        self._append()
                self._writer.require_current()
                self._fence_seen = self._context.clock.monotonic()

    def _put_now(self, changes: list[Change]) -> bool:
        cost = cost_bytes(changes)
        if not self._changed.acquire(blocking=False):
            return False
        try:
            if not self._takes(cost):
                return False
            self._buffer.add(changes, cost)
            return True
        finally:
            self._changed.release()

    def _takes(self, cost: int) -> bool:
        """Whether changes can be taken in with nothing to be done before."""
        if self._writer.failed or not self._has_room(cost):
            return False
        # Whoever logs sees to the rest.
        is_fence_seen = self._context.clock.monotonic() < self._fence_seen + _FENCE_SECONDS
        return self._logging or (is_fence_seen and not self._is_full())

    def _has_room(self, cost: int) -> bool:
        held = self._buffer.cost_bytes + sum(pending.cost_bytes for pending in self._taken)
        return not held or held + cost <= self._options.uncommitted_bytes_max

    def _is_full(self) -> bool:
        """Whether the buffer is worth appending to the log."""
        return self._buffer.cost_bytes >= self._options.write_buffer_bytes

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Use the log, alone."""
        with self._changed:
            while self._logging:
                self._changed.wait()
            self._logging = True
        with self._freeing_log():
            yield

    @contextmanager
    def _freeing_log(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._logging = False
                self._changed.notify_all()

    def _append(self) -> None:
        """Append whatever the log does not hold yet; all of it again after a failure threw it out.

        For the thread that logs.
        """
        with self._changed:
            if self._buffer.changes:
                self._taken.append(self._buffer)
                if self._recent[-1].cost_bytes >= _KEPT_BUFFERS * self._options.write_buffer_bytes:
                    self._recent.append(Recent())
                self._buffer = Pending(self._recent[-1])
        records = self._taken_records()
        if self._must_replay:
            for record in records:
                record.place = None
            self._must_replay = False
        with self._replaying_after_failure():
            for record in records:
                if record.place is None:
                    sequence = self._writer.appended_sequence + 1
                    record.place = self._writer.append_batch(
                        sequence, Mark(self._epoch, sequence), record.batch(), generation=self._writer.generation
                    )

    def _commit(self, cut: Cut | None = None) -> Committed:
        """Make all of it durable, with a point if that is wanted. For the thread that logs."""
        with self._changed:
            self._commits_begun += 1
            begun = self._commits_begun
        self._append()
        writer = self._writer
        with self._replaying_after_failure():
            if cut is not None:
                sequence = writer.appended_sequence + 1
                writer.append_cut(sequence, Mark(self._epoch, sequence), cut, generation=writer.generation)
            committed = writer.commit(generation=writer.generation)
        records = self._taken_records()
        for pending in self._taken:
            pending.recent.logged += pending.records(self._options.write_buffer_bytes)
        complete = Tail(TailLayer(_segment(recent.logged), logged_maps(recent.logged)) for recent in self._recent[:-1])
        tail = self._tail
        for layer in complete:
            tail = tail.extended(*layer)
        with self._changed:
            self.position = Position(self.position.source, self.branch, committed.sequence)
            self._tail, self._taken = tail.since(self._settled), []
            self._uncut = cut is None and (self._uncut or bool(records))
            self._commits_covered = begun
            self._fence_seen = self._context.clock.monotonic()
        self._let_go(complete)
        if records:
            self._settle_before(_segment(records))
        return committed

    def _let_go(self, complete: Tail) -> None:
        """Forget the older part of what memory holds, now that the tail shows it: these maps.

        Readers look into memory first, so until it goes none of them sees a window that is behind.
        """
        for layer in complete:
            for volume, flat in layer.maps.items():
                self._windows.lay(volume, flat, self.branch)
        with self._changed:
            self._recent = self._recent[-1:]

    def _taken_records(self) -> list[Record]:
        return [record for pending in self._taken for record in pending.records(self._options.write_buffer_bytes)]

    def _settle_before(self, segment: int) -> None:
        """When a segment is a new one: look through layers on disk for what lies before it, once they are made.

        No flush waits for that: making layers takes up to a second, once in a thousand commits.
        """
        is_settling = self._settling is not None and self._settling.is_alive()
        if self._segment and segment != self._segment and not is_settling:
            self._settling = threading.Thread(target=self._settle, args=(segment,), name="drengine-layers", daemon=True)
            self._settling.start()
        if not is_settling:
            self._segment = segment

    def _settle(self, segment: int) -> None:
        source, branch = self.position.source, self.branch
        try:
            row = self._context.catalogue.segment(source, branch, segment)
            if row is None:
                return
            geometry = tuple(self._geometry.values())
            stack = self._context.layers.stack(source, branch, row.first_sequence - 1, geometry)
        except DrengineError as error:
            # All of it is found through the tail as well; the next segment tries again.
            _log.warning("layers of %s/%d: %s", source, branch, error)
            return
        with self._changed:
            self._stack, self._tail, self._settled = stack, self._tail.since(segment), segment

    @contextmanager
    def _replaying_after_failure(self) -> Iterator[None]:
        """A failed append or commit put the log back at its durable position: all must be appended again."""
        try:
            yield
        except BaseException:
            self._must_replay = True
            raise


@contextmanager
def suppress_full() -> Iterator[None]:
    """Let STORE_FULL pass by."""
    try:
        yield
    except DrengineError as error:
        if error.kind is not STORE_FULL:
            raise


def _segment(records: list[Record]) -> int:
    """The newest segment of records that are in the log."""
    place = records[-1].place
    assert place is not None
    return place.segment
