"""Keeping what a fenced source wrote beyond the replica (rule 5): the ordinary pipeline ships it to its own branch.

The disks are compared by hashes with the branch, which begins as the newest point that the target has of this source;
what differs is shipped, and one point ends it. Nobody else has the disks meanwhile, so the point is quiet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine.wire.events import Hello
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.tracker import Abilities, Changes, Range
from drengine_agent.errors import REVERSE_REFUSED
from drengine_agent.ship.lag import LagMeter
from drengine_agent.ship.pipeline import Pipeline, Progress
from drengine_agent.ship.resume import check_declared, decide_resume
from drengine_agent.ship.sender import Sender, Traffic
from drengine_agent.ship.uplink import Uplink

GOODBYE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PreserveReport:
    """What became of it.

    Attributes:
        branch, sequence: the point that shows the disks as they were.
        bytes_compared: of the volumes.
        bytes_shipped: payload bytes that went to the target; 0: the disks held nothing that it had not.
    """

    branch: int
    sequence: int
    bytes_compared: int
    bytes_shipped: int


class StandingDisks:
    """The tracker of volumes that nobody writes: one answer, everything."""

    abilities = Abilities("preserve", ordered=False, live=False, point_kinds=(PointKind.QUIET,))
    reason = "none"

    def __init__(self, sizes: Mapping[int, int], clock: Clock) -> None:
        self._ranges = [Range(number, 0, size) for number, size in sizes.items()]
        self._clock = clock
        self._mark = Mark(os.urandom(16), 1)
        self.unread: list[Range] = []

    def open(self, volumes: Sequence[VolumeGeometry]) -> None:
        """See Tracker."""

    def changes(self, since: Mark, *, bytes_max: int) -> Changes:
        """See Tracker."""
        if since != self._mark:
            return Changes(self._mark, ranges=self._ranges, rescan_reason="fenced", more=True)
        return Changes(since, cut_ok=not self.unread, cut_kind=PointKind.QUIET, cut_time_ns=self._clock.now_ns())

    def acknowledge(self, mark: Mark) -> None:
        """See Tracker."""

    def mark_dirty(self, ranges: Sequence[Range], *, reason: str = "read-error") -> None:
        """See Tracker: there will be no point."""
        self.unread += ranges

    def request_rescan(self, reason: str) -> None:
        """See Tracker; everything is compared anyway."""

    def backlog_bytes(self) -> int:
        """See Tracker."""
        return 0

    def behind_since_ns(self) -> int:
        """See Tracker."""
        return 0

    def close(self) -> None:
        """See Tracker."""


async def preserve(
    volumes: Mapping[int, Volume],
    uplink: Uplink,
    hello: Hello,
    *,
    progress: Progress,
) -> PreserveReport:
    """Ship what differs, and cut the point; returns when it is durable. The volumes must be ours alone.

    Raises:
        SessionEnded: refused, or the session ended; DrengineError: the disks can't be read; the stream's.
    """
    sizes = {number: volume.size_bytes for number, volume in volumes.items()}
    geometry = tuple(volume.geometry for volume in volumes.values())
    tracker, traffic = StandingDisks(sizes, uplink.clock), Traffic()
    session = await uplink.open(hello)
    sender = Sender(session, uplink.clock, traffic)
    try:
        check_declared(session.welcome, geometry)
        pipeline = Pipeline(
            uplink=uplink,
            tracker=tracker,
            volumes=volumes,
            geometry=geometry,
            indexes=None,
            sender=sender,
            resume=decide_resume(session.welcome, geometry, 0),
            lag=LagMeter(uplink.clock),
            progress=progress,
        )
        pipeline.finish()
        await pipeline.run()
        await session.wait_goodbye(GOODBYE_SECONDS)  # then it has let go of the branch: whoever wants to close it can
    finally:
        await session.close()
    if tracker.unread or not traffic.cuts:
        where = ", ".join(f"volume {part.volume} at {part.offset}" for part in tracker.unread[:3])
        raise DrengineError(REVERSE_REFUSED, f"the disks can't be read whole: {where or 'no point was cut'}")
    return PreserveReport(hello.branch, sender.durable_sequence, sum(sizes.values()), traffic.payload_bytes)
