"""The small interface between capture and the pipeline. Abilities are data: nobody asks for a class name.

A tracker watches all volumes of one source server (the consistency group). Two kinds of answers exist:

- *ordered* trackers (the NBD tap) hand out the writes themselves, in order, with their bytes: a cut may
  follow any write.
- *unordered* trackers (scan, eBPF) hand out ranges to re-read; a cut is possible when the tracker can prove one. They
  may also hand out bytes that they set aside themselves, for a moment that would not come again.

How the pipeline drives a tracker (the same for all):

1. It calls `acknowledge` and then `changes(since)` with the target's durable mark at the start of a session and after
   any break, and `changes` with the mark of the last answer while a session lasts. An answer is finished when the
   pipeline has *read* everything in it and put it into the stream; only then may it ask for the next one.
2. Batches that carry a part of an answer carry the mark *before* it (`since`); the last one carries the
   answer's mark. So a durable mark always means: this answer and all before it are at the target, whole.
3. `writes` come in order with their bytes. `ranges` are read from the volume, now or a little later: newer
   data than at the moment of the answer is fine, because it comes again as a later write.
4. `rescan_reason` asks for all volumes to be compared (index, or the target's hashes) and the differences
   shipped, as if every byte stood in `ranges`. Writes during the scan are kept by the tracker. If it is
   interrupted, the next session's `changes` says `rescan_reason` again.
5. After ranges or a rescan the replica mixes moments: no cut. A live tracker notes how far its capture got
   when the pipeline came back for more (so everything had been read), and says `cut_ok` once that position
   has been shipped.
6. A range that can't be read (EIO), or that the target asks for again, goes back by `mark_dirty` before the
   next `changes`, and before the answer's mark is sent; until it has been handed out again and shipped there is no
   `cut_ok`.
7. `acknowledge` takes durable marks, in any thread; what lies before them is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from drengine.model.points import Mark, PointKind, VolumeGeometry

STALL_REASONS = frozenset({"read-error", "no-cut", "busy", "freeze-refused", "freeze-too-long", "hook-failed"})
"""What a tracker may give as its reason that keeps points from being cut while the session stands."""


CallOnChange = Callable[[Mark, Callable[[], None]], bool]
"""See Capture."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a tracker can do.

    Attributes:
        name: for metrics and `status`.
        ordered: changes carry their bytes in write order.
        live: changes are seen as they happen (False: only a round of scanning finds them).
        point_kinds: the kinds of cut it can give, preferred first; empty if it can give none by itself.
    """

    name: str
    ordered: bool
    live: bool
    point_kinds: tuple[PointKind, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a volume to re-read and ship."""

    volume: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    """One captured write. `data` is None for zeroes and discards (`discard` tells which)."""

    volume: int
    offset: int
    length: int
    data: bytes | memoryview | None
    discard: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """An answer to "what changed since".

    Attributes:
        mark: acknowledge this once everything here is durable at the target.
        writes: for ordered trackers: the next writes, bounded in bytes; else empty.
        ranges: for unordered trackers, or an ordered one that lost order: ranges to re-read; else an empty tuple. They
            may be walked more than once until the next `changes`, and may be too many for a list.
        rescan_reason: a code of states.REASONS when tracking was lost and all must be compared; else None.
        cut_ok: after shipping this the replica equals the source at one moment, `cut_time_ns`, by `cut_kind`.
        more: further changes are waiting now.
    """

    mark: Mark
    writes: Sequence[Write] = ()
    ranges: Iterable[Range] = ()
    rescan_reason: str | None = None
    cut_ok: bool = False
    cut_kind: PointKind = PointKind.WRITE_ORDER
    cut_time_ns: int = 0
    more: bool = False


class Readable(Protocol):
    """A volume as it is read to be shipped. Used by several threads."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`.

        Raises:
            DrengineError, OSError: the device could not give exactly these bytes.
        """
        ...

    def data_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """The range cut into (offset, length, is data), in order. What is no data reads as zeros."""
        ...


class Tracker(Protocol):
    """One way of seeing changes."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""
        ...

    def open(self, volumes: Sequence[VolumeGeometry]) -> None:
        """Start or take up tracking of these volumes.

        Raises:
            DrengineError: a volume is missing, replaced or unsupported.
        """
        ...

    def changes(self, since: Mark, *, bytes_max: int) -> Changes:
        """What changed after `since` (see the module's rules). Never blocks for long; may run in a thread.

        An unknown epoch, or any doubt, is answered with `rescan_reason`, never with silence (rule 8).
        """
        ...

    def acknowledge(self, mark: Mark) -> None:
        """Everything up to `mark` is durable at the target: it may be forgotten."""
        ...

    def mark_dirty(self, ranges: Sequence[Range], *, reason: str = "read-error") -> None:
        """These could not be read (`read-error`), or are damaged at the target (`operator`): hand them out again, and
        offer no cut before.
        """
        ...

    def request_rescan(self, reason: str) -> None:
        """Whoever calls has doubts (a code of states.REASONS): the next `changes` asks for a rescan."""
        ...

    @property
    def reason(self) -> str:
        """Why tracking is not whole now, a code of states.REASONS; `none` when it is."""
        ...

    def backlog_bytes(self) -> int:
        """Captured or dirty bytes that no acknowledged mark covers."""
        ...

    def behind_since_ns(self) -> int:
        """Wall clock of the oldest change not yet acknowledged; 0 when there is none."""
        ...

    def close(self) -> None:
        """Stop cleanly, leaving state that the next `open` can prove."""
        ...
