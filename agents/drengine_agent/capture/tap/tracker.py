"""The NBD tap's tracker: every write goes to the journal, then to its volume, then the client hears of it.

Invariants (each has a test that attacks it):

- A write is in the journal, or its blocks are in the dirty set, *before* it touches the volume. So whatever a
  reader of the volume can see is known to tracking, and a kill between the two is mended by `open`.
- The replica, brought to mark m, equals the volumes as they were at m, if every range before was read by
  then.
- A cut is offered only at or after `order_from`: the end of the journal when the last range had been read.

Positions of an epoch: below `base` they count dirty blocks handed out as ranges (a resync), or stand for a
scan that is not finished; from `base` on they are the journal's. `base` is the number of blocks of all
volumes plus 1,
whatever is dirty, so that a resync can begin in an instant. See docs/capture.md.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError, error_kind
from drengine.model.extents import ExtentKind
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine.nbd.export import FLAG_NO_HOLE, Command, Request
from drengine_agent.capture.backing import VOLUME_REPLACED, Volume
from drengine_agent.capture.tap.directory import JournalDirectory
from drengine_agent.capture.tap.dirty import BLOCK_BYTES, DirtySet
from drengine_agent.capture.tap.journal import ROW, ROWS_MAX, JournalDamagedError, JournalFullError
from drengine_agent.capture.tap.superblock import UNKNOWN, Register
from drengine_agent.capture.tracker import Abilities, Changes, Range

VOLUME_RESIZED = error_kind(
    "volume-resized",
    75,
    "A volume changed its size while it was served.",
    "Restart the agent: it declares the new size and synchronises; older points keep the old size.",
)

_WRITE, _TRIM = int(Command.WRITE), int(Command.TRIM)
_DATA, _ZERO, _DISCARD = int(ExtentKind.DATA), int(ExtentKind.ZERO), int(ExtentKind.DISCARD)
_JOURNAL_SYNCS_MAX: Final = 4
"""So many volumes are flushed at a time (server.py), each with a sync of the journal beside its own."""
_EPOCHS_MAX: Final = 64
"""So many resyncs may begin without an acknowledgement; then a target that comes back is rescanned."""


@dataclass(frozen=True, slots=True)
class TapOptions:
    """How a tap behaves.

    Attributes:
        journal_bytes: capacity of the ring; a change takes effect when the journal is empty or begins anew.
        retry_seconds: how long a range that could not be read rests before it is handed out again.
    """

    journal_bytes: int = 1 << 30
    retry_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class TapStatus:
    """For metrics and `status`.

    Attributes:
        reason: see Tap.reason.
        journaling: writes go to the journal in order (False: to the dirty set).
        journal_used_bytes, journal_capacity_bytes: of the ring.
        dirty_bytes: in the dirty set or still to be re-read.
        captured_bytes: written by clients since the start.
        failed_volumes: numbers of volumes that stopped after a failed sync.
    """

    reason: str
    journaling: bool
    journal_used_bytes: int
    journal_capacity_bytes: int
    dirty_bytes: int
    captured_bytes: int
    failed_volumes: tuple[int, ...]


class Tap:
    """The tracker of all volumes of a source that are served over NBD. See tracker.Tracker for the
    pipeline's part.

    Two locks: `_lock` is held for each batch of writes and for quick looks; `_reading` by `changes` and
    `close`, which may take longer. `_reading` is always taken first.
    """

    abilities = Abilities("nbd", ordered=True, live=True, point_kinds=(PointKind.WRITE_ORDER,))

    def __init__(
        self,
        volumes: Sequence[Volume],
        directory: Path,
        options: TapOptions = TapOptions(),
        clock: Clock | None = None,
    ) -> None:
        """A tap of open, writable volumes with its journal in `directory` (made if it is missing)."""
        self.volumes = {volume.volume: volume for volume in volumes}
        self._directory = directory
        self._options = options
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._sizes = {number: volume.size_bytes for number, volume in self.volumes.items()}
        self._base = sum(-(-size // BLOCK_BYTES) for size in self._sizes.values()) + 1
        self._dirty = DirtySet(self._sizes)
        self._resync: DirtySet | None = None
        self._unread = False
        self._acked = 0
        self._order_from: int | None = None
        self._degraded = False
        self._scan_reason = ""
        self._requested = ""
        self._reason = "none"
        self._lost_since_ns = 0
        self._retry_at = 0.0
        self._older_epochs: dict[bytes, int] = {}
        self._failed: set[int] = set()
        self._captured_bytes = 0
        self._syncs = ThreadPoolExecutor(_JOURNAL_SYNCS_MAX, thread_name_prefix="drengine-tap-journal")
        self._on_change: Callable[[], None] | None = None
        self.on_progress: Callable[[], None] = lambda: None
        """Called, in any thread, when something was acknowledged or tracking was lost: must be quick."""

    # ---- opening and closing

    def open(self, volumes: Sequence[VolumeGeometry]) -> None:
        """Start or take up tracking; see tracker.Tracker.open.

        Raises:
            DrengineError: VOLUME_REPLACED, JOURNAL_UNUSABLE.
        """
        self._check_declared(volumes)
        self._kept = JournalDirectory(self._directory, self.volumes, self._options.journal_bytes)
        self._registers, self._journal = self._kept.registers, self._kept.journal
        taken_up = self._kept.taken_up
        if taken_up is None:
            self._begin_scan(self._kept.doubt)
        elif taken_up.remains is None:
            self._acked = self._journal.acked
            self._set_order_from(taken_up.order_from)
        else:
            self._note_lost(taken_up.remains.reason)
            self._begin_epoch()
            self._older_epochs = {bytes.fromhex(e): least for e, least in taken_up.remains.epochs.items()}
            self._dirty.load(taken_up.remains.maps)
            self._degraded = True
        self._kept.save(clean=False, scan_reason=self._scan_reason)
        self._kept.sync()

    def close(self) -> None:
        """Stop cleanly: make everything durable and say so; the volumes stay open.

        A scan that is not finished, a volume that failed and doubts of a caller lead to a rescan next time.

        Raises:
            OSError: something could not be made durable; the next `open` asks for a rescan.
        """
        with self._reading, self._lock:
            try:
                clean = not (self._scan_reason or self._failed or self._requested)
                self._journal.sync()
                for volume in self.volumes.values():
                    volume.sync()
                if clean and self._registers[Register.LOST]:
                    clean = self._leave_remains()
                self._kept.save(clean=clean, scan_reason=self._scan_reason)
                self._kept.sync()
            except OSError:
                self._registers[Register.LOST] = 1
                raise
            finally:
                self._syncs.shutdown()
                self._kept.close()

    def _leave_remains(self) -> bool:
        """What is not acknowledged, as dirty blocks for the next run; False if it can't be known."""
        try:
            remains = self._journaled()
        except JournalDamagedError:
            return False
        remains.merge(self._dirty)
        if self._resync is not None:
            self._resync.clear_first(self._acked)
            remains.merge(self._resync)
        self._kept.save_remains(remains, {**self._older_epochs, self._journal.epoch: self._acked}, self._reason)
        return True

    def _check_declared(self, volumes: Sequence[VolumeGeometry]) -> None:
        for declared in volumes:
            volume = self.volumes.get(declared.volume)
            if volume is None or declared.identity not in ("", volume.declared):
                found = volume.declared if volume else "not there"
                raise DrengineError(VOLUME_REPLACED, f"volume {declared.name} is {found}, expected {declared.identity}")

    # ---- the clients' side

    def apply(self, volume: Volume, requests: Sequence[Request]) -> tuple[int, set[int]]:
        """Journal and write WRITE, TRIM and WRITE_ZEROES requests of one volume, in order, together.

        Returns:
            The journal position at which all are in the journal, and the indexes of those that failed.
        """
        if len(requests) > ROWS_MAX:
            first = self.apply(volume, requests[:ROWS_MAX])[1]
            position, rest = self.apply(volume, requests[ROWS_MAX:])
            return position, first | {index + ROWS_MAX for index in rest}
        number = volume.volume
        pack = ROW.pack
        rows, parts, parts_bytes = [], [], 0
        for request in requests:
            length = request.length
            if not length:
                continue
            if request.command == _WRITE and request.data is not None:
                rows.append(pack(number, _DATA, request.offset, length))
                parts.append(request.data)
                parts_bytes += length
            else:
                kind = _DISCARD if request.command == _TRIM else _ZERO
                rows.append(pack(number, kind, request.offset, length))
        with self._lock:
            if number in self._failed:
                return self._journal.head, set(range(len(requests)))
            if rows and not self._degraded:
                try:
                    self._journal.append(b"".join(rows), parts, parts_bytes, self._clock.now_ns())
                except JournalFullError:
                    self._degrade("journal-full")
                except OSError:
                    self._degrade("journal-damaged")
            if self._degraded:
                for request in requests:
                    self._dirty.mark(number, request.offset, request.length)
            failed = self._write(volume, requests)
            position = self._journal.head
            self._journal.applied(position)
            self._captured_bytes += parts_bytes
            if self._on_change is not None:
                self._call_changed()
        return position, failed

    def _write(self, volume: Volume, requests: Sequence[Request]) -> set[int]:
        """Write to the volume, adjacent requests in one go. What fails is dirty: its content is unknown."""
        failed: set[int] = set()
        count, index = len(requests), 0
        while index < count:
            request = requests[index]
            first, index = index, index + 1
            try:
                if request.command != _WRITE or request.data is None:
                    volume.zero(request.offset, request.length, hole=not request.flags & FLAG_NO_HOLE)
                    continue
                end = request.offset + request.length
                if index == count or requests[index].offset != end:
                    volume.write(request.offset, request.data)
                    continue
                parts = [request.data]
                while index < count:
                    following = requests[index]
                    if following.offset != end or following.command != _WRITE or following.data is None:
                        break
                    parts.append(following.data)
                    end += following.length
                    index += 1
                volume.write_all(request.offset, parts, end - request.offset)
            except OSError:
                for broken in range(first, index):
                    failed.add(broken)
                    self._lose(volume.volume, requests[broken].offset, requests[broken].length)
        return failed

    def flush(self, volume: Volume) -> bool:
        """Make everything written to a volume durable, there and in the journal, at once; slow, any thread.

        Neither needs the other to be durable first: after a loss of power the journal is not believed anyway.

        Returns:
            False if the volume failed. It is then stopped for good: what a failed sync left is unknown.
        """
        if volume.volume in self._failed:
            return False
        journal = self._syncs.submit(self._journal.sync)
        done = True
        try:
            volume.sync()
        except OSError:
            done = False
            with self._lock:
                self._failed.add(volume.volume)
                self._note_lost("read-error")
        try:
            journal.result()
        except OSError:
            with self._lock:
                self._degrade("journal-damaged")
        return done

    # ---- the pipeline's side

    def changes(self, since: Mark, *, bytes_max: int) -> Changes:
        """See tracker.Tracker.changes."""
        with self._reading:
            try:
                return self._changes(since, bytes_max)
            except (JournalDamagedError, OSError):
                return self._scan("journal-damaged", anew=True)

    def _changes(self, since: Mark, bytes_max: int) -> Changes:
        with self._lock:
            requested, self._requested = self._requested, ""
            place = self._place(since)
            drained = place == self._journal.head
            again = drained and self._unread and self._clock.monotonic() >= self._retry_at
            restart = self._degraded or again
        if requested or place is None:
            return self._scan(requested or self._scan_reason or "epoch-changed", anew=bool(requested))
        if self._scan_reason and place < self._base:
            return self._scan(self._scan_reason)
        if restart:
            self._begin_resync()
            place = 0
        if place < self._base:
            return self._ranges(place, bytes_max)
        return self._writes(place, bytes_max)

    def _place(self, since: Mark) -> int | None:
        """Where a mark lies in the current epoch; None if nothing is known about it."""
        if since.epoch == self._journal.epoch:
            return since.position if self._acked <= since.position <= self._journal.head else None
        least = self._older_epochs.get(since.epoch)
        return 0 if least is not None and since.position >= least else None

    def _scan(self, reason: str, *, anew: bool = False) -> Changes:
        with self._lock:
            if anew or not self._scan_reason or self._acked >= self._base:
                self._begin_scan(reason)
            self._set_order_from(None)
            mark = Mark(self._journal.epoch, self._base)
            return Changes(mark, rescan_reason=self._scan_reason, more=True)

    def _ranges(self, place: int, bytes_max: int) -> Changes:
        with self._lock:
            self._set_order_from(None)
        ranges: list[Range] = []
        if self._resync is not None:
            ranges, place = self._resync.ranges(place, max(1, bytes_max // BLOCK_BYTES))
        if not ranges or (self._resync and place >= self._resync.dirty_blocks):
            place = self._base
        return Changes(Mark(self._journal.epoch, place), ranges=ranges, more=True)

    def _writes(self, place: int, bytes_max: int) -> Changes:
        with self._lock:
            end, now_ns = self._journal.head, self._clock.now_ns()
            if self._order_from is None:
                self._set_order_from(end)
            order_from = self._order_from or 0
            whole = not self._unread
        writes, reached, time_ns = self._journal.read(place, end, bytes_max)
        return Changes(
            Mark(self._journal.epoch, reached),
            writes=writes,
            cut_ok=whole and reached >= order_from,
            cut_time_ns=now_ns if reached == end else time_ns,
            more=reached < end,
        )

    def call_on_change(self, since: Mark, call: Callable[[], None]) -> bool:
        """See capture.Capture."""
        with self._lock:
            changed = self._degraded or self._requested or self._place(since) != self._journal.head
            self._on_change = None if changed else call
        return not changed

    def _call_changed(self) -> None:
        """With `_lock` held: one call for each request, so that a burst of writes wakes nobody twice."""
        call, self._on_change = self._on_change, None
        if call is not None:
            call()

    def acknowledge(self, mark: Mark) -> None:
        """See tracker.Tracker.acknowledge."""
        with self._lock:
            if mark.epoch != self._journal.epoch or not self._acked <= mark.position <= self._journal.head:
                return
            self._acked = mark.position
            self._older_epochs.clear()
            if mark.position >= self._base:
                self._journal.acknowledge(mark.position)
                self._resync = None
                if self._scan_reason:
                    self._scan_reason = ""
                    self._save_unclean()
                if not (self._degraded or self._unread or self._failed or self._requested):
                    self._registers[Register.LOST] = 0
                    self._reason, self._lost_since_ns = "none", 0
        self.on_progress()

    def mark_dirty(self, ranges: Sequence[Range], *, reason: str = "read-error") -> None:
        """See tracker.Tracker.mark_dirty; ranges lost to a `read-error` rest for `retry_seconds` first."""
        with self._lock:
            for part in ranges:
                self._lose(part.volume, part.offset, part.length, reason)

    def request_rescan(self, reason: str) -> None:
        """See tracker.Tracker.request_rescan."""
        with self._lock:
            self._note_lost(reason)
            self._requested = reason

    @property
    def reason(self) -> str:
        """See tracker.Tracker.reason."""
        return self._requested or self._scan_reason or self._reason

    def backlog_bytes(self) -> int:
        """See tracker.Tracker.backlog_bytes; all bytes while a scan is due."""
        if self._scan_reason:
            return sum(self._sizes.values())
        return self._journal.used_bytes + self._dirty_bytes()

    def behind_since_ns(self) -> int:
        """See tracker.Tracker.behind_since_ns."""
        return min((t for t in (self._journal.oldest_ns, self._lost_since_ns) if t), default=0)

    def status(self) -> TapStatus:
        """A look at it, for metrics."""
        return TapStatus(
            self.reason,
            not self._degraded,
            self._journal.used_bytes,
            self._journal.capacity_bytes,
            self._dirty_bytes(),
            self._captured_bytes,
            tuple(sorted(self._failed)),
        )

    @property
    def epoch(self) -> bytes:
        """Names the run of positions; see points.Mark."""
        return self._journal.epoch

    @property
    def position(self) -> int:
        """End of the journal."""
        return self._journal.head

    @property
    def acknowledged(self) -> int:
        """What the target has, as a position of this epoch."""
        return self._acked

    @property
    def continuous(self) -> bool:
        """Nothing but the journal is needed to follow: an acknowledged position means "the target has it"."""
        return not self._registers[Register.LOST] and self._order_from is not None

    def check(self) -> None:
        """Look whether the volumes are still what they were when they were opened.

        Raises:
            DrengineError: VOLUME_MISSING, VOLUME_REPLACED or VOLUME_RESIZED.
        """
        for volume in self.volumes.values():
            size = volume.check()
            if size != volume.size_bytes:
                raise DrengineError(
                    VOLUME_RESIZED, f"volume {volume.name} had {volume.size_bytes} bytes and has {size} now"
                )

    def _dirty_bytes(self) -> int:
        resync = self._resync
        waiting = resync.dirty_blocks - min(self._acked, resync.dirty_blocks) if resync is not None else 0
        return (self._dirty.dirty_blocks + waiting) * BLOCK_BYTES

    # ---- losing order and finding it again; all but _begin_resync with `_lock` held

    def _note_lost(self, reason: str) -> None:
        """Say it where it outlives a kill, before anything depends on it."""
        self._registers[Register.LOST] = 1
        self._reason = reason
        self.on_progress()
        self._call_changed()
        if not self._lost_since_ns:
            self._lost_since_ns = self._journal.oldest_ns or self._clock.now_ns()

    def _degrade(self, reason: str) -> None:
        """Stop journaling: writes go to the dirty set. What the journal holds stays for the resync."""
        if not self._degraded:
            self._note_lost(reason)
            self._degraded = True

    def _lose(self, volume: int, offset: int, length: int, reason: str = "read-error") -> None:
        self._note_lost(reason)
        self._dirty.mark(volume, offset, length)
        self._unread = True
        rest_seconds = self._options.retry_seconds if reason == "read-error" else 0
        self._retry_at = self._clock.monotonic() + rest_seconds

    def _set_order_from(self, position: int | None) -> None:
        self._order_from = position
        self._registers[Register.ORDER_FROM] = UNKNOWN if position is None else position

    def _begin_epoch(self) -> None:
        """The journal starts anew, empty; every write from here on is in it."""
        self._registers[Register.LOST] = 1
        self._journal.begin(os.urandom(16), self._base)
        self._acked = 0
        self._set_order_from(None)
        self._dirty = DirtySet(self._sizes)
        self._degraded = self._unread = False
        self._save_unclean()

    def _save_unclean(self) -> None:
        with contextlib.suppress(OSError):  # what the old slot says leads to a rescan, which is right
            self._kept.save(clean=False, scan_reason=self._scan_reason)

    def _begin_scan(self, reason: str) -> None:
        self._note_lost(reason)
        self._scan_reason = reason
        self._resync = None
        self._older_epochs = {}
        self._begin_epoch()

    def _begin_resync(self) -> None:
        """Freeze what is dirty as the ranges to re-read, and restart the journal at the same instant."""
        with self._lock:
            self._degrade(self._reason)
        journaled = self._journaled()
        with self._lock:
            resync, before, acked = self._dirty, self._resync, self._acked
            epochs = {**self._older_epochs, self._journal.epoch: self._base if self._scan_reason else acked}
            self._older_epochs = dict(list(epochs.items())[-_EPOCHS_MAX:])
            self._scan_reason = ""
            self._resync = resync
            self._begin_epoch()
        if before is not None:
            before.clear_first(acked)
            resync.merge(before)
        resync.merge(journaled)

    def _journaled(self) -> DirtySet:
        """What the frozen journal's unacknowledged records touched."""
        touched = DirtySet(self._sizes)
        for table in self._journal.tables(max(self._acked, self._base), self._journal.head):
            for volume, _, offset, length in ROW.iter_unpack(table):
                touched.mark(volume, offset, length)
        return touched
