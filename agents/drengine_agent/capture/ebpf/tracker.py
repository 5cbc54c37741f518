"""The eBPF tracker: answers out of the kernel's bitmaps, and cuts that are proved.

An *answer* is what one flip of the watch handed out. It stays pending in the kernel, under its number, until the target
has said that all of it is durable; so nothing is forgotten whatever happens to the agent (rule 8). The next flip waits
for that. A mark is (epoch of the watch, number of the answer): a target that knows another epoch was fed by another
tracking state, and everything is compared anew.

*Quiet cut*: when the pipeline comes back for more, all of the pending answer has been read. If then nothing has
completed since the flip (`Watch.is_quiet`), what was shipped equals the source at that moment: a write that is not yet
counted has not been completed to anyone.

*Forced cut*: when the policy wants one, file systems write out what they hold and rounds of copying go on until little
is dirty. Then they are frozen, the rest is read into memory, the watch is asked whether anything moved meanwhile, and
they are thawed. What was read travels afterwards as writes, behind all that went before.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import BLOCK_BYTES, WatchedVolume
from drengine_agent.capture.ebpf.watch import PIN_ROOT, Watch, WatchStatistics
from drengine_agent.capture.tracker import Abilities, Changes, Range, Write
from drengine_agent.cuts.arrivals import Arrivals
from drengine_agent.cuts.budget import FreezeBudget
from drengine_agent.cuts.errors import FREEZE_TOO_LONG
from drengine_agent.cuts.policy import CutDecision, CutFacts, CutPolicy, decide
from drengine_agent.cuts.still import Stillness

log = logging.getLogger("drengine.agent")

PIECE_BYTES = 1 << 20
"""A long range is read by several threads during a freeze."""

READ_RETRY_SECONDS = 2.0
"""Blocks that could not be read are tried again after so long."""

SETTLED_BYTES = 8 << 20
"""File systems that took in more than this since then are asked again."""

LOST = frozenset({"tracking-lost", "passthrough"})
"""What `Watch.check` says when only a comparison of everything helps."""


class DirectVolume(Protocol):
    """A device as forced cuts read it."""

    def read_now(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` past the page cache, without waiting for one's turn; OSError if it can't be read."""
        ...


@dataclass(frozen=True, slots=True)
class PendingRanges:
    """The pending answer, walked anew each time: it may have millions of ranges. Valid until the next `changes`."""

    watch: Watch

    def __iter__(self) -> Iterator[Range]:
        """By volume, ascending, joined."""
        return self.watch.pending_ranges()


@dataclass(slots=True)
class CutCounts:
    """What became of cuts since the agent started.

    Attributes:
        failed: forced cuts that came to nothing, by reason.
        freezes: that were held and thawed.
        freeze_seconds_last, freeze_seconds_longest: how long file systems were frozen.
    """

    failed: dict[str, int] = field(default_factory=dict)
    freezes: int = 0
    freeze_seconds_last: float = 0.0
    freeze_seconds_longest: float = 0.0


class EbpfTracker:
    """See the module and Tracker. `changes` is called by one thread; the others by any."""

    def __init__(
        self,
        source: str,
        devices: Mapping[int, Path],
        volumes: Mapping[int, DirectVolume],
        clock: Clock,
        *,
        policy: CutPolicy | None = None,
        stillness: Stillness | None = None,
        budget: FreezeBudget | None = None,
        flip_seconds: float = 0.0,
        explain: Callable[[str], str] = lambda doubt: doubt,
        root: Path = PIN_ROOT,
    ) -> None:
        """
        Args:
            source: names the pinned state.
            devices: where each volume's device is.
            volumes: the same volumes, for reading during a freeze.
            clock: of the agent.
            policy, stillness: needed for other cuts than quiet ones.
            budget: how much may be left to read when a freeze begins.
            flip_seconds: least time between two answers: so often a block is shipped at most.
            explain: why nothing was pinned, which the kernel can't know.
            root: where the state is pinned.
        """
        self._source = source
        self._devices = devices
        self._volumes = volumes
        self._clock = clock
        self._policy = policy or CutPolicy()
        self._stillness = stillness
        self._budget = budget or FreezeBudget(longest_seconds=1.0, memory_bytes=self._policy.set_aside_bytes)
        self._root = root
        self._flip_seconds = flip_seconds
        self._explain = explain
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._requested = ""
        self._cut_requested = False
        self._watched: list[WatchedVolume] = []
        self._watch: Watch | None = None
        self._closed = False
        self._doubt = "none"
        self._given: Mark | None = None
        self._handed_out = -1
        self._unread: list[Range] = []
        self._unread_of = -1
        self._retry_at = 0.0
        self._active_since = self._pending_since = clock.monotonic()
        self._flipped_at = float("-inf")
        self._flips = 0
        self._why_no_cut = "none"
        self._began_at = clock.monotonic()
        self._cut_at: dict[PointKind, float] = {}
        self._tried_at: dict[PointKind, float] = {}
        self._arrivals = Arrivals(clock)
        self._round_before_bytes = float("inf")
        self._backlog_bytes = 0
        self.counts = CutCounts()

    @property
    def abilities(self) -> Abilities:
        """See Tracker."""
        return Abilities("ebpf", ordered=False, live=True, point_kinds=self._policy.kinds)

    def tune(self, policy: CutPolicy, stillness: Stillness | None, flip_seconds: float) -> None:
        """Go by this from now on; `stillness` is ours to close."""
        with self._lock:
            self._policy, self._stillness, self._flip_seconds = policy, stillness, flip_seconds

    def open(self, volumes: Sequence[VolumeGeometry]) -> None:
        """See Tracker: takes up the pinned tracking, or begins anew, which asks for a rescan."""
        self._watched = [
            WatchedVolume(each.volume, BlockDevice.of_path(self._devices[each.volume]), each.size_bytes)
            for each in volumes
        ]
        with self._lock:
            self._doubt = self._explain(self._attach_watch().doubt)

    # ---- what changed ----------------------------------------------------------------------------------------

    def changes(self, since: Mark, *, bytes_max: int) -> Changes:
        """See Tracker."""
        with self._lock:
            if self._requested:
                requested, self._requested = self._requested, ""
                self._begin_anew(requested)
            return self._changes(since)

    def _changes(self, since: Mark) -> Changes:
        watch = self._attach_watch()
        if since != self._given:
            watch = self._take_up(watch, since)
        if since.epoch != watch.epoch:
            return self._rescan(watch)
        self._doubt = "none"
        if watch.has_pending and watch.answer != self._handed_out:
            return Changes(since) if self._clock.monotonic() < self._retry_at else self._hand_out(watch)
        now_ns, now = self._clock.now_ns(), self._clock.monotonic()
        if watch.is_quiet():
            return self._quiet(watch, now_ns, now)
        if watch.has_pending:
            return Changes(since)
        decision = self._decide(watch)
        if decision.kind is not None:
            forced = self._force(watch, decision.kind, settle=decision.settle)
            if forced is not None:
                return forced
        if not watch.has_pending:
            # On the way to a forced cut each round is shorter than the one before, and none waits.
            if decision.kind is None and self._clock.monotonic() < self._flipped_at + self._flip_seconds:
                return Changes(since)
            self._flip(watch)
        return self._hand_out(watch)

    def _take_up(self, watch: Watch, since: Mark) -> Watch:
        """The session is new: what was handed out in the last one counts only if the target has it."""
        self._given, self._handed_out, self._unread = None, -1, []
        if since.epoch != watch.epoch:
            return watch
        if not watch.cleared <= since.position <= watch.answer:
            # The target has less than it once acknowledged, or more than was ever handed out.
            return self._begin_anew("epoch-changed")
        if watch.has_pending and since.position == watch.answer:
            watch.clear_pending()
        return watch

    def _rescan(self, watch: Watch) -> Changes:
        """Everything is compared. Writes from now on are tracked: the watch was attached before."""
        reason = self._doubt if self._doubt != "none" else "epoch-changed"
        self._given = Mark(watch.epoch, watch.answer)
        return Changes(self._given, rescan_reason=reason, more=True)

    def _hand_out(self, watch: Watch) -> Changes:
        """All that is pending; it is in the stream when the pipeline comes back."""
        self._handed_out, self._unread = watch.answer, []
        empty = next(watch.pending_ranges(), None) is None
        if empty:
            # Only bits beside the volumes (another partition of the disk): nothing will carry this number.
            watch.clear_pending(through=watch.cleared)
        self._given = Mark(watch.epoch, watch.answer)
        return Changes(self._given, ranges=() if empty else PendingRanges(watch), more=not empty)

    def _quiet(self, watch: Watch, now_ns: int, now: float) -> Changes:
        """Nothing has completed since the flip: what was shipped is the source, and was at the moment before asking."""
        self._given = Mark(watch.epoch, watch.answer)
        self._active_since = now
        if PointKind.QUIET not in self._policy.kinds or not self._is_whole(watch):
            return Changes(self._given)
        self._cut_at[PointKind.QUIET] = now
        self._note_cut()
        return Changes(self._given, cut_ok=True, cut_kind=PointKind.QUIET, cut_time_ns=now_ns)

    def _is_whole(self, watch: Watch) -> bool:
        """The last look before a cut: whether something may have passed by since the tracker was last asked."""
        doubt = watch.check()
        if doubt in LOST:
            self._requested = doubt
        return doubt == "none"

    def _flip(self, watch: Watch) -> None:
        now = self._clock.monotonic()
        self._flips += 1
        try:
            watch.flip()
        finally:
            self._flips += 1
        self._pending_since, self._active_since = self._active_since, now
        self._flipped_at = self._clock.monotonic()
        self._arrivals.flipped(watch.pending_blocks() * BLOCK_BYTES)

    # ---- forced cuts -----------------------------------------------------------------------------------------

    def _decide(self, watch: Watch) -> CutDecision:
        left = self._left(watch)
        decision = decide(
            self._policy,
            CutFacts(
                now=self._clock.monotonic(),
                began_at=self._began_at,
                cut_at=dict(self._cut_at),
                tried_at=dict(self._tried_at),
                dirty_bytes=left,
                remainder_bytes=self._budget.bytes_max(late=self._is_late()),
                can_freeze=self._stillness is not None,
                round_before_bytes=self._round_before_bytes,
                requested=self._cut_requested,
            ),
        )
        self._round_before_bytes = left if self._arrivals.is_settled else float("inf")
        if decision.reason != "none":
            self._why_no_cut = decision.reason
        return decision

    def _left(self, watch: Watch) -> int:
        return self._arrivals.left_bytes(watch.active_blocks() * BLOCK_BYTES)

    def _is_late(self) -> bool:
        return self._seconds_without_cut() > self._policy.frozen_after_seconds

    def _seconds_without_cut(self) -> float:
        return self._clock.monotonic() - max([*self._cut_at.values(), self._began_at])

    def _force(self, watch: Watch, kind: PointKind, *, settle: bool) -> Changes | None:
        """A cut of that kind, or None: then file systems have written out, once, and another round of copying comes."""
        assert self._stillness is not None
        if settle or not self._arrivals.is_settled:
            if not self._arrivals.is_settled or self._left(watch) >= SETTLED_BYTES:
                self._write_out(self._stillness)
            return None
        if not self._arrivals.is_fresh and self._left(watch) >= SETTLED_BYTES:
            self._write_out(self._stillness)  # what came since they last did, so that the freeze need not wait for it
            decision = self._decide(watch)
            if decision.kind is None or decision.settle:
                return None
        return self._freeze(watch, kind, self._stillness)

    def _write_out(self, stillness: Stillness) -> None:
        """Have file systems write out what they hold."""
        begun = self._clock.monotonic()  # what comes while they write out is not among it
        try:
            stillness.settle()
        except OSError as error:
            log.warning("a file system could not be settled: %s", error)
        self._arrivals.settled(begun)

    def _freeze(self, watch: Watch, kind: PointKind, stillness: Stillness) -> Changes | None:
        """Freeze, flip, read the rest, prove that nothing moved, thaw. None: no cut; what was flipped is pending."""
        writes: list[Write] = []
        proved = False
        moment_ns = 0
        self._arrivals.settled(float("-inf"))
        # Memory is had before: what the kernel would have to write out to find some might be frozen.
        expected = 2 * self._left(watch) + self._budget.bytes_max()
        buffer = memoryview(_memory(min(expected, self._budget.memory_bytes)))
        try:
            with stillness.held(application=kind is PointKind.APPLICATION) as still:
                self._flip(watch)
                ranges = watch.pending()
                if sum(_whole_pages(each.length) for each in ranges) <= len(buffer):
                    writes = self._set_aside(ranges, buffer)
                    moment_ns = self._clock.now_ns()
                    proved = watch.is_quiet()
        except (DrengineError, OSError) as error:
            self._failed(kind, stillness.reason_of(error), error)
            return None
        counts = self.counts
        counts.freezes += 1
        counts.freeze_seconds_last = still.seconds
        counts.freeze_seconds_longest = max(counts.freeze_seconds_longest, still.seconds)
        if not (proved and still.held and self._is_whole(watch)):
            self._failed(kind, "freeze-too-long" if not still.held else "busy")
            return None
        self._cut_at[kind] = self._clock.monotonic()
        self._budget.held()
        self._note_cut()
        if not writes:
            watch.clear_pending(through=watch.cleared)
        self._handed_out, self._unread = watch.answer, []
        self._given = Mark(watch.epoch, watch.answer)
        return Changes(self._given, writes=writes, cut_ok=True, cut_kind=kind, cut_time_ns=moment_ns, more=True)

    def _set_aside(self, ranges: Sequence[Range], buffer: memoryview) -> list[Write]:
        """Read ranges into memory that is aligned for direct reads, in as many threads as the disk may like.

        Raises:
            OSError: something can't be read: no cut.
            DrengineError: FREEZE_TOO_LONG, it would take longer than writers may be held up.
        """
        writes, pieces = [], []
        for each in ranges:
            part, buffer = buffer[: each.length], buffer[_whole_pages(each.length) :]
            writes.append(Write(each.volume, each.offset, each.length, part))
            pieces += [
                (each.volume, each.offset + at, part[at : at + PIECE_BYTES])
                for at in range(0, each.length, PIECE_BYTES)
            ]
        begun = self._clock.monotonic()
        give_up_at = begun + self._budget.reading_seconds_max

        def read(stripe: Sequence[tuple[int, int, memoryview]]) -> int:
            done = 0
            for volume, offset, part in stripe:
                if self._clock.monotonic() > give_up_at:
                    break
                self._volumes[volume].read_now(offset, part)
                done += len(part)
            return done

        readers = self._budget.readers
        with ThreadPoolExecutor(readers) as pool:
            done = sum(pool.map(read, [pieces[number::readers] for number in range(readers)]))
        self._budget.read(done, self._clock.monotonic() - begun)
        if done < sum(each.length for each in writes):
            raise DrengineError(FREEZE_TOO_LONG, f"only {done >> 10} KiB of what was left could be read in time")
        return writes

    def _note_cut(self) -> None:
        if self._why_no_cut != "none":
            log.info("cuts are made again")
        self._why_no_cut, self._cut_requested = "none", False
        self._arrivals.cut()

    def _failed(self, kind: PointKind, reason: str, said: object = "") -> None:
        if reason != self._why_no_cut:  # one line for a change: the log may lie on a tracked disk
            log.warning("no %s cut: %s%s", kind.value, reason, f" ({said})" if said else "")
        self._why_no_cut = reason
        if reason == "freeze-too-long":
            self._budget.too_long()
        self._tried_at[kind] = self._clock.monotonic()
        self.counts.failed[reason] = self.counts.failed.get(reason, 0) + 1

    # ---- the rest of the interface ---------------------------------------------------------------------------

    def acknowledge(self, mark: Mark) -> None:
        """See Tracker."""
        with self._lock:
            watch = self._watch
            if watch is None or mark.epoch != watch.epoch or not watch.has_pending:
                return
            if mark.position == watch.answer:
                watch.clear_pending()
            elif mark.position == self._unread_of and self._unread:
                # All of that answer is there but what could not be read: only that is left.
                watch.clear_pending(keep=self._unread, through=mark.position)

    def mark_dirty(self, ranges: Sequence[Range], *, reason: str = "read-error") -> None:
        """See Tracker: they join the pending answer under a new number, so that no older mark can cover them."""
        with self._lock:
            watch = self._attach_watch()
            if watch.has_pending and watch.answer == self._handed_out:
                self._unread_of = watch.answer
            watch.add_pending(ranges)
            self._unread = [*self._unread, *ranges]
            if reason == "read-error":
                self._retry_at = self._clock.monotonic() + READ_RETRY_SECONDS

    def request_cut(self) -> None:
        """Somebody waits for a point: force one, of a kind that the policy allows, before its time."""
        self._cut_requested = True

    def request_rescan(self, reason: str) -> None:
        """See Tracker: tracking begins anew, under another epoch, so the doubt outlives the agent."""
        self._requested = reason

    def check(self) -> None:
        """Look whether tracking is still whole; doubt becomes a rescan. A device's own trouble is the volume's."""
        with self._lock:
            doubt = self._attach_watch().check()
            if doubt in LOST:
                self._requested = doubt

    def _attach_watch(self) -> Watch:
        if self._closed:
            raise ValueError("the tracker is closed")
        if self._watch is None:
            watch = Watch.attach(self._source, self._watched, root=self._root)
            with self._looking:
                self._watch = watch
            self._active_since = self._pending_since = self._clock.monotonic()
        return self._watch

    def _begin_anew(self, reason: str) -> Watch:
        """Forget what was tracked; only a comparison of everything helps."""
        self._let_go()
        Watch.detach(self._source, root=self._root)
        self._doubt, self._given, self._unread = reason, None, []
        self._handed_out = self._unread_of = -1
        return self._attach_watch()

    def _let_go(self) -> None:
        with self._looking:
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.close()

    # ---- figures, for any thread: none of them waits for `changes`, which may hold file systems ----------------

    @property
    def reason(self) -> str:
        """See Tracker."""
        if self._requested or self._doubt != "none":
            return self._requested or self._doubt
        if self._unread:
            return "read-error"
        return self._why_no_cut if self._is_overdue() else "none"

    def _is_overdue(self) -> bool:
        """No cut of any kind for longer than the policy bears, although something changed."""
        return self._seconds_without_cut() > self._policy.overdue_seconds and self.backlog_bytes() > 0

    def backlog_bytes(self) -> int:
        """See Tracker: what is marked or was handed out, in blocks of 4 KiB."""
        with self._looking:
            flips = self._flips
            if self._watch is not None and not flips % 2:
                blocks = self._watch.active_blocks() + self._watch.pending_blocks()
                if flips == self._flips:  # amid a flip what was marked belongs to neither half
                    self._backlog_bytes = blocks * BLOCK_BYTES
            return max(self._backlog_bytes, BLOCK_BYTES) if flips % 2 else self._backlog_bytes

    def behind_since_ns(self) -> int:
        """See Tracker: never later than the oldest change that is outstanding. A clock that jumps changes no age."""
        if not self.backlog_bytes():
            return 0
        with self._looking:
            pending = self._watch is not None and self._watch.has_pending
        since = self._pending_since if pending else self._active_since
        return self._clock.now_ns() - int((self._clock.monotonic() - since) * 1e9)

    def statistics(self) -> WatchStatistics | None:
        """What the kernel side has counted; None while nothing is attached."""
        with self._looking:
            return self._watch.statistics() if self._watch is not None else None

    def close(self) -> None:
        """See Tracker: tracking goes on inside the kernel."""
        with self._lock:
            self._closed = True
            self._let_go()
        if self._stillness is not None:
            self._stillness.close()


def _memory(length: int) -> mmap.mmap:
    """Memory that is there, not only promised."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return mmap.mmap(-1, _whole_pages(length) or mmap.PAGESIZE, flags=flags)


def _whole_pages(length: int) -> int:
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
