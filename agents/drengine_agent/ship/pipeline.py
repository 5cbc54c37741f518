"""From a tracker's answers to a session: what is captured gets hashed, compressed and sent, in bounded memory.

Two sides: the *capture thread* asks the tracker, sweeps volumes and fills batches (helpers in a small pool; the C calls
release the GIL); the *sender*, on the event loop, takes finished items in order, minds credit and bandwidth, and
sends. Between them lies a queue whose every place is a permit.

It keeps the rules of capture/tracker.py: an answer is finished when all of it was read and queued; only then is the
tracker asked again. What makes resuming safe (fault 35): every batch of an answer but the last carries the mark from
before the answer, so a durable mark says that its answer is at the target, whole. Cuts come from the tracker's word
alone; what could not be read goes back to it and withholds them (fault 26).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.wire.events import Resend
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.tracker import CallOnChange, Changes, Range, Readable, Tracker, Write
from drengine_agent.ship.baseline import Baseline, IndexBaseline, TargetBaseline, ZeroBaseline
from drengine_agent.ship.batches import BatchBuilder, Outgoing
from drengine_agent.ship.handover import Handover, Stopped
from drengine_agent.ship.lag import LagMeter
from drengine_agent.ship.resume import Resume
from drengine_agent.ship.sender import Sender, Sent
from drengine_agent.ship.sweep import Sweep, SweepReport
from drengine_agent.ship.uplink import Uplink

REMOTE_WORKERS = 8
CHECK_SECONDS = 1.0
CALLED_SECONDS = 0.001
"""After a call so long, so that what a client writes together travels together, and is shown as done."""
QUIET_SHARE = 5
"""A quiet source gets its points this many times as often as `point_interval` allows under load."""
INLINE_BYTES = 64 << 10
"""Up to here a batch is encoded on the capture thread: handing it to the pool would cost more than it takes."""


@dataclass(slots=True)
class Progress:
    """What the service and the metrics may look at, at any moment."""

    syncing: bool = False
    rescan_reason: str = ""
    sweep: SweepReport = field(default_factory=SweepReport)
    sweeping: bool = False
    sweep_bytes: int = 0
    sweep_began: float = 0.0
    """By the monotonic clock."""
    read_bytes: int = 0
    read_errors: int = 0
    read_error: str = ""
    rescans: dict[str, int] = field(default_factory=dict)
    cuts: dict[PointKind, int] = field(default_factory=dict)
    limited: bool = False

    @property
    def sweep_left_bytes(self) -> int:
        """What the sweep under way has not looked at yet."""
        return max(0, self.sweep_bytes - self.sweep.scanned_bytes) if self.sweeping else 0

    def sweep_left_seconds(self, now: float) -> float | None:
        """How long it will take at its rate so far; None where that is not known."""
        if not self.sweeping or not self.sweep.scanned_bytes:
            return None
        return self.sweep_left_bytes * max(0.0, now - self.sweep_began) / self.sweep.scanned_bytes


@dataclass(slots=True)
class LabelRequest:
    """An operator wants a point now, with a label."""

    label: str
    done: Future[int] = field(default_factory=Future)


@dataclass(slots=True)
class _Item:
    """A place in the queue: batches (perhaps still being made), a cut, or both, in this order."""

    batches: Future[list[Outgoing]] | list[Outgoing]
    mark_before: Mark
    mark: Mark
    cut: Cut | None = None
    captured_at: float = 0.0
    request: LabelRequest | None = None


class Pipeline:
    """One session's worth of replication. Made anew for each session."""

    def __init__(
        self,
        *,
        uplink: Uplink,
        tracker: Tracker,
        volumes: Mapping[int, Readable],
        geometry: tuple[VolumeGeometry, ...],
        indexes: HashIndexes | None,
        sender: Sender,
        resume: Resume,
        lag: LagMeter,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
        call_on_change: CallOnChange | None = None,
        point_interval_seconds: float = 0.05,
        idle_seconds: float = 0.02,
        gather_seconds: float = 0.02,
    ) -> None:
        """`volumes` are read for ranges; `check` looks whether they are still what they were, and raises if not;
        `call_on_change`, `idle_seconds` and `gather_seconds` are those of Capture."""
        self._tracker = tracker
        self._volumes = volumes
        self._geometry = geometry
        self._sizes = {volume.volume: volume.size_bytes for volume in geometry}
        self._indexes = indexes
        self._sender = sender
        self._resume = resume
        self._since = indexes.begin(resume.since, target_empty=resume.empty) if indexes else resume.since
        self._compression = uplink.compression
        self._bandwidth = uplink.bandwidth
        self._lag = lag
        self._progress = progress
        self._clock = uplink.clock
        self._check = check
        self._call_on_change = call_on_change
        self._checked_at = uplink.clock.monotonic()
        self._workers = uplink.workers
        self._point_interval_seconds = point_interval_seconds
        self._idle_seconds = idle_seconds
        self._gather_seconds = gather_seconds
        self._plain_bytes_max = min(1 << 20, sender.session.welcome.batch_plain_bytes_max)

        self._loop = asyncio.get_running_loop()
        self._handover: Handover[_Item] = Handover(lambda: sender.in_flight)
        self._wake = threading.Event()
        self._called = False
        self._finishing = threading.Event()
        self._sweep: Sweep | None = None
        self._pool = ThreadPoolExecutor(uplink.workers, thread_name_prefix="encode")
        self._acknowledger = ThreadPoolExecutor(1, thread_name_prefix="acknowledge")
        self._failed: asyncio.Future[None] = self._loop.create_future()

        self._resend: deque[Range] = deque()
        self._labels: deque[LabelRequest] = deque()
        self._uncut = True
        self._quiet = False
        self._cut_at = -1e9
        self._cut_gap_seconds = point_interval_seconds
        self._captured_at = -1e9
        self._swept = False

    # ---- for others, from any thread -------------------------------------------------------------------------

    def tune(self, point_interval_seconds: float) -> None:
        """Go by this interval from the next point on."""
        self._point_interval_seconds = point_interval_seconds

    def wake(self) -> None:
        """Something changed: ask the tracker now."""
        self._called = True
        self._wake.set()

    def request_label(self, request: LabelRequest) -> None:
        """Cut a labelled point as soon as one can be had."""
        self._labels.append(request)
        self.wake()

    def resend(self, event: Resend) -> None:
        """See Shipper: it counts as changed."""
        if event.volume in self._sizes and event.offset < self._sizes[event.volume]:
            length = min(event.length, self._sizes[event.volume] - event.offset)
            self._resend.append(Range(event.volume, event.offset, length))
            self.wake()

    def durable(self, sent: list[Sent], sequence: int) -> None:
        """See Shipper."""
        self._lag.acknowledged(sequence)
        self._handover.begin_settling()
        self._acknowledger.submit(self._settle, sent, sequence)

    def _settle(self, sent: list[Sent], sequence: int) -> None:
        """What an acknowledgement means for index and tracker; in order, off the event loop, as it may touch disks."""
        try:
            if self._indexes is not None:
                self._indexes.remember(note for one in sent for note in one.notes)
                self._indexes.durable_sequence = sequence
            self._tracker.acknowledge(sent[-1].mark)
        except Exception as error:  # noqa: BLE001 - ends the session, wherever it came from
            self._loop.call_soon_threadsafe(self._fail, error)
        finally:
            self._handover.end_settling()
            self._wake.set()

    def _fail(self, error: Exception) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    def refresh_lag(self) -> None:
        """Let the lag know if the newest durable point still equals the source."""
        now = self._clock.monotonic()
        if not self._tracker.abilities.live or self._uncut or not self._handover.is_idle:
            return
        if self._lag.has_point and self._tracker.backlog_bytes() == 0:
            self._lag.unchanged(now)

    def finish(self) -> None:
        """Ship what is there, cut, and end."""
        self._finishing.set()
        self.wake()

    # ---- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until `finish` is through (returns) or something ends the session (raises)."""
        if self._resume.declare or self._since != self._sender.session.welcome.durable_mark:
            await self._sender.send_geometry(self._geometry, self._since)
        capture = self._loop.run_in_executor(None, self._capture)
        sender = asyncio.create_task(self._send())
        receiver = asyncio.create_task(self._sender.run(self))
        tasks: set[asyncio.Future[None]] = {capture, sender, receiver, self._failed}
        try:
            while not sender.done():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                tasks -= done
        finally:
            self._handover.stop()
            if self._sweep is not None:
                self._sweep.cancel()
            self.wake()
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)
            with contextlib.suppress(BaseException):
                await asyncio.shield(capture)
            self._pool.shutdown(cancel_futures=True)
            await self._loop.run_in_executor(None, self._acknowledger.shutdown)
            self._failed.cancel()
            self._lag.disconnected()
            for request in self._labels:
                request.done.cancel()

    async def _send(self) -> None:
        """Send items in order until None; then wait until all of it is durable and say goodbye."""
        sequence = self._sender.sequence
        last = self._clock.monotonic()
        while (item := await self._handover.get()) is not None:
            batches = item.batches if isinstance(item.batches, list) else await asyncio.wrap_future(item.batches)
            ready = self._clock.monotonic()
            for number, outgoing in enumerate(batches):
                mark = item.mark if number == len(batches) - 1 else item.mark_before
                await self._limit(len(outgoing.batch.payload) + len(outgoing.batch.table))
                sequence = await self._sender.send_batch(
                    outgoing.batch, mark, captured_bytes=outgoing.captured_bytes, notes=outgoing.notes
                )
            if item.cut is not None:
                sequence = await self._sender.send_cut(item.cut, item.mark)
                self._lag.cut_sent(sequence, item.captured_at)
                if item.request is not None:
                    item.request.done.set_result(sequence)
            now = self._clock.monotonic()
            self._compression.observe(elapsed=now - last, starved=ready - last, blocked=now - ready)
            last = now
            self._handover.sent()
        await self._sender.wait_durable(sequence)
        await self._sender.session.say_goodbye()

    async def _limit(self, length: int) -> None:
        wait = self._bandwidth.reserve(length)
        self._progress.limited = wait > 0
        await self._bandwidth.wait(wait)

    # ---- the capture thread ----------------------------------------------------------------------------------

    def _capture(self) -> None:
        try:
            since = self._since
            if since == self._sender.session.welcome.durable_mark:
                self._tracker.acknowledge(since)
            while not self._handover.is_stopping:
                asked_at = self._clock.monotonic()
                if asked_at >= self._checked_at + CHECK_SECONDS:
                    self._check()
                    self._checked_at = asked_at
                self._send_again(since)
                changes = self._tracker.changes(since, bytes_max=self._plain_bytes_max)
                if changes.ranges != () or changes.rescan_reason is not None:
                    self._ship_ranges(changes, since)
                self._captured_at = self._moment(changes, asked_at)
                self._ship_writes_and_cut(changes, since)
                since = changes.mark
                if not changes.more:
                    if self._finishing.is_set():
                        break
                    self._rest(changes)
            self._handover.put(None)
        except Stopped:
            if not self._handover.is_stopping:
                raise

    def _moment(self, changes: Changes, asked_at: float) -> float:
        """The monotonic moment that the source is shipped up to, never later than it really is.

        With nothing more waiting it is the moment of asking. In the middle of a backlog only the wall clock of
        the writes tells; what a jump of that clock could do is limited by the two ends.
        """
        if not changes.more:
            return asked_at
        if not changes.cut_ok:
            return self._captured_at
        age = (self._clock.now_ns() - changes.cut_time_ns) / 1e9
        return max(self._captured_at, min(asked_at, self._clock.monotonic() - age))

    def _ship_writes_and_cut(self, changes: Changes, since: Mark) -> None:
        """One item for both: the target then makes them durable with one commit."""
        if (changes.writes or changes.ranges != () or changes.rescan_reason is not None) and not self._uncut:
            self._uncut = True
            self._cut_gap_seconds = self._point_interval_seconds / (QUIET_SHARE if self._quiet else 1)
        is_due = self._is_cut_due(changes)
        if not (changes.writes or is_due):
            return
        self._handover.acquire()
        encoded: Future[list[Outgoing]] | list[Outgoing]
        if sum(write.length for write in changes.writes) <= INLINE_BYTES:
            encoded = self._encode(changes.writes)
        else:
            encoded = self._pool.submit(self._encode, changes.writes)
        item = _Item(encoded, since, changes.mark)
        if is_due:
            item.request = self._labels.popleft() if self._labels else None
            item.cut = Cut(changes.cut_time_ns, changes.cut_kind, item.request.label if item.request else "")
            item.captured_at = self._captured_at
            self._progress.cuts[item.cut.kind] = self._progress.cuts.get(item.cut.kind, 0) + 1
            self._uncut = False
            self._cut_at = self._clock.monotonic()
        self._handover.put(item, permit=False)

    def _is_cut_due(self, changes: Changes) -> bool:
        if not changes.cut_ok or not (self._uncut or self._labels):
            return False
        is_time = self._clock.monotonic() >= self._cut_at + self._cut_gap_seconds
        return is_time or bool(self._labels) or self._finishing.is_set()

    def _rest(self, changes: Changes) -> None:
        """Wait for a reason to ask the tracker again.

        A tracker that calls: when all that was captured is durable and cut, it is asked to call at the next change,
        once. So a write after quiet travels at once (CALLED_SECONDS later). What comes while something is under way
        gathers: until a cut falls due, or `gather_seconds` are over. So a burst makes one call and few batches. Another
        tracker is asked again after each acknowledgement, and by the clock.
        """
        begun_at, is_promised = time.monotonic(), False
        while not self._called:
            self._quiet = not self._uncut and self._handover.is_idle
            seconds = self._idle_seconds
            if self._call_on_change is not None:
                self._quiet = is_promised = self._quiet and self._call_on_change(changes.mark, self.wake)
                seconds = seconds if is_promised else self._gather_seconds
            if self._uncut and changes.cut_ok:
                due_in = self._cut_at + self._cut_gap_seconds - self._clock.monotonic()
                seconds = min(seconds, max(due_in, 0.001))
            acknowledged = self._wake.wait(max(0.0, begun_at + seconds - time.monotonic()))
            self._wake.clear()
            if not acknowledged or self._call_on_change is None:
                break
        if self._called and is_promised:
            time.sleep(CALLED_SECONDS)
        self._called = False

    def _encode(self, writes: Sequence[Write]) -> list[Outgoing]:
        batches: list[Outgoing] = []
        builder = BatchBuilder(self._plain_bytes_max, lambda: self._compression.level, batches.append)
        for write in writes:
            if write.data is None:
                builder.zero(write.volume, write.offset, write.length, discard=write.discard)
            else:
                builder.add(write.volume, write.offset, write.data)
        builder.flush()
        return batches

    def _ship_ranges(self, changes: Changes, since: Mark) -> None:
        """Sweep what the tracker asks for. The last batch carries the answer's mark, the others the one before."""
        self._check()
        progress, reason = self._progress, changes.rescan_reason
        ranges = changes.ranges
        if reason is not None:
            ranges = [Range(number, 0, size) for number, size in self._sizes.items()]
        first = self._resume.empty and not self._swept
        everything = reason is not None or not self._tracker.abilities.live
        baseline = self._baseline(empty=first) if everything else None
        progress.syncing = first
        progress.rescan_reason = reason if reason is not None and not first else ""
        if progress.rescan_reason:
            progress.rescans[progress.rescan_reason] = progress.rescans.get(progress.rescan_reason, 0) + 1
        if baseline is not None:
            # What the target says it has must hold all that was sent: a block that was changed and changed back
            # since would be taken for equal. An index knows what is durable, and nothing of what is on its way.
            self._handover.wait_idle()
        self._sweep_ranges(ranges, baseline, since, changes.mark)
        self._check()
        self._swept = True
        progress.syncing, progress.rescan_reason = False, ""

    def _baseline(self, *, empty: bool) -> Baseline:
        if empty:
            return ZeroBaseline()
        remote = TargetBaseline(self._sender.session.ask_digests, self._sizes)
        return IndexBaseline(self._indexes.by_volume, remote) if self._indexes is not None else remote

    def _sweep_ranges(self, ranges: Iterable[Range], baseline: Baseline | None, since: Mark, mark: Mark) -> None:
        held: list[Outgoing] = []
        holding = threading.Lock()

        def hand_over(outgoing: Outgoing) -> None:
            self._handover.acquire()
            with holding:
                held.append(outgoing)
                ready = held.pop(0) if len(held) > 1 else None
            if ready is not None:
                self._handover.put(_Item([ready], since, since), permit=False)

        sweep = Sweep(
            volumes=self._volumes,
            sizes=self._sizes,
            ranges=ranges,
            baseline=baseline,
            indexes=self._indexes,
            hand_over=hand_over,
            level=lambda: self._compression.level,
            plain_bytes_max=self._plain_bytes_max,
        )
        self._progress.sweep = sweep.report
        self._progress.sweep_bytes = sum(wanted.length for wanted in ranges)
        self._progress.sweep_began = self._clock.monotonic()
        self._progress.sweeping = True
        self._sweep = sweep
        if self._handover.is_stopping:
            raise Stopped
        remote = baseline is not None and not baseline.zeros_everywhere
        report = sweep.run(max(self._workers, REMOTE_WORKERS) if remote else self._workers)
        self._sweep = None
        self._progress.sweeping = False
        self._progress.read_bytes += report.read_bytes
        if report.unread:
            # Before the answer's own mark may become durable: from then on it would count as whole.
            self._tracker.mark_dirty(report.unread)
            self._progress.read_errors += len(report.unread)
            self._progress.read_error = report.read_error
        for outgoing in held:
            self._handover.put(_Item([outgoing], since, mark), permit=False)

    def _send_again(self, since: Mark) -> None:
        """Ranges that the target lost. A live tracker hands them out again in order; for a scan they are sent now."""
        ranges = [self._resend.popleft() for _ in range(len(self._resend))]
        if not ranges:
            return
        if self._tracker.abilities.live:
            self._tracker.mark_dirty(ranges, reason="operator")
        else:
            self._handover.wait_idle()
            self._sweep_ranges(ranges, None, since, since)
            self._uncut = True
