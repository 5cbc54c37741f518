"""The scan tracker: finds differences by reading everything and comparing hashes. It needs no help from the
kernel and is the oracle for the other trackers.

*When is the result of a scan a consistent cut?* (rule 1) Blocks are read at different moments, so in general it
isn't: even two passes that find the same bytes prove nothing about a block that changed and changed back between
them. A point is offered only if it is certain that nobody wrote during the whole pass:

- For a regular file the kernel is asked: a *read lease* (fcntl F_SETLEASE) is granted only while no process has
  the file open for writing, writable mappings and loop devices included; who then opens it for writing has to
  wait until the lease is given back. A lease on every volume, taken before the first read and unbroken after the last,
  proves that nothing changed in between: kind `quiet`. The leases are looked at all the time and given back at
  once when somebody wants to write: the writer waits for a moment, the round yields no point.
- For anything else (block devices, file systems without leases) an operator can vouch for stillness: a snapshot,
  a powered-off guest's disk (`assume_quiescent`). Without that there are no points, and the state says `no-cut`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from drengine.model.clock import Clock
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.tracker import Abilities, Changes, Range

LEASE_LOOK_SECONDS = 0.01
READ_RETRY_SECONDS = 2.0


class StillnessLease:
    """The kernel's word that nobody has these files open for writing."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take a lease on each; `held` is False when any is refused."""
        self._lock = threading.Lock()
        self._files: list[int] = []
        self._ended = threading.Event()
        self.held = True
        for path in paths:
            if not self._lease(path):
                self.held = False
                break
        if self.held:
            threading.Thread(target=self._look, name="lease", daemon=True).start()
        else:
            self._give_back()

    def look(self) -> bool:
        """Whether it held until now; gives everything back when somebody waits for one."""
        with self._lock:
            if self.held and any(fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_RDLCK for file in self._files):
                self.held = False
        if not self.held:
            self._give_back()
        return self.held

    def release(self) -> bool:
        """Give it back; whether it held until now."""
        held = self.look()
        self._give_back()
        return held

    def _lease(self, path: Path) -> bool:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # The default signal for a broken lease would end the process; SIGURG is ignored by default.
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            os.close(file)
            return False
        self._files.append(file)
        return True

    def _look(self) -> None:
        while not self._ended.wait(LEASE_LOOK_SECONDS):
            self.look()

    def _give_back(self) -> None:
        self._ended.set()
        with self._lock:
            for file in self._files:
                os.close(file)  # closing gives the lease back
            self._files.clear()


class ScanTracker:
    """Rounds of scanning. The pipeline compares the ranges handed out here with the hash indexes."""

    def __init__(
        self,
        volumes: Mapping[int, Volume],
        indexes: HashIndexes,
        clock: Clock,
        *,
        interval_seconds: float,
        assume_quiescent: bool = False,
    ) -> None:
        """`interval_seconds` lies between the starts of two rounds."""
        self._volumes = volumes
        self._indexes = indexes
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._assume_quiescent = assume_quiescent
        self._next_round_at = clock.monotonic()
        self._lease: StillnessLease | None = None
        self._round: Mark | None = None
        self._proved = True
        self._unread = False

    @property
    def abilities(self) -> Abilities:
        """See Tracker."""
        return Abilities("scan", ordered=False, live=False, point_kinds=(PointKind.QUIET,))

    def open(self, volumes: Sequence[VolumeGeometry]) -> None:
        """See Tracker; the volumes were opened and checked by who made this."""

    def request_round(self) -> None:
        """Begin the next round at once."""
        self._next_round_at = self._clock.monotonic()

    def changes(self, since: Mark, *, bytes_max: int) -> Changes:
        """See Tracker: a whole round, then (when it was read) whether it was a cut, then nothing until the next."""
        if self._round is not None and since != self._round:
            self._abandon_round()  # the session broke in the middle of it
        if self._round is not None:
            return self._end_round(self._round)
        if self._clock.monotonic() < self._next_round_at:
            return Changes(since)
        self._next_round_at = self._clock.monotonic() + self._interval_seconds
        self._unread = False
        if not self._assume_quiescent:
            self._lease = StillnessLease([volume.path for volume in self._volumes.values()])
        self._round = self._indexes.next_round()
        reason = self._indexes.take_doubt()
        ranges = [Range(number, 0, volume.size_bytes) for number, volume in self._volumes.items()]
        return Changes(self._round, ranges=ranges, rescan_reason=reason, more=True)

    def acknowledge(self, mark: Mark) -> None:
        """See Tracker; the indexes know already."""

    def mark_dirty(self, ranges: Sequence[Range], *, reason: str = "read-error") -> None:
        """See Tracker: this round yields no point, and the next one comes soon."""
        self._unread = True
        self._next_round_at = min(self._next_round_at, self._clock.monotonic() + READ_RETRY_SECONDS)

    def request_rescan(self, reason: str) -> None:
        """See Tracker."""
        self._indexes.doubt(reason)
        self.request_round()

    @property
    def reason(self) -> str:
        """See Tracker."""
        if self._unread:
            return "read-error"
        return "none" if self._proved else "no-cut"

    def backlog_bytes(self) -> int:
        """See Tracker: nobody knows before the next round."""
        return 0

    def behind_since_ns(self) -> int:
        """See Tracker."""
        return 0

    def close(self) -> None:
        """See Tracker."""
        self._abandon_round()

    def _abandon_round(self) -> None:
        if self._lease is not None:
            self._lease.release()
        self._lease = self._round = None
        self._next_round_at = self._clock.monotonic()

    def _end_round(self, mark: Mark) -> Changes:
        self._proved = self._assume_quiescent or (self._lease is not None and self._lease.release())
        self._lease = self._round = None
        cut_ok = self._proved and not self._unread
        return Changes(mark, cut_ok=cut_ok, cut_kind=PointKind.QUIET, cut_time_ns=self._clock.now_ns())
