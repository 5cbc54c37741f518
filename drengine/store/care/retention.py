"""Which recovery points are no longer kept. Pure: points in, points out.

Time decides little here, because clocks jump (faults 13 and 61). Points are ordered by sequence. A point is only as old
as BOTH the source's and the target's clock say, counted back from the newest point rather than from now:
so one clock that leaps removes nothing, and while a source is silent its points stay as they are. An
error of both clocks at once in the same direction is beyond what can be told from a true passage of time.

Thinning is stable: in each bucket of time the oldest undamaged point stays, the periods divide each other, and so a
plan carried out every minute ends where one carried out once a week would.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import neg
from typing import Protocol, TypeVar

from drengine.model.errors import DrengineError, error_kind

BAD_RETENTION = error_kind(
    "bad-retention",
    49,
    "The retention policy cannot be understood.",
    'Write it as "all for 10m, every 10m for 1h, every 1h for 1d, every 1d for 7d"; each period must divide the next.',
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TEXT_MAX = 1000
_SECONDS_MAX = 100 * 366 * 86400
_ALL = re.compile(r"all\s+for\s+(\d{1,10})\s*([smhdw])", re.ASCII)
_EVERY = re.compile(r"every\s+(\d{1,10})\s*([smhdw])\s+for\s+(\d{1,10})\s*([smhdw])", re.ASCII)
_NS = 1_000_000_000


class Dated(Protocol):
    """What is asked of a point: see RecoveryPoint. Rows of the catalogue answer it too."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def branch(self) -> int:
        """The branch that it lies on."""
        ...

    @property
    def sequence(self) -> int:
        """Its position in the stream."""
        ...

    @property
    def time_ns(self) -> int:
        """When it was cut, by its source's clock."""
        ...

    @property
    def received_ns(self) -> int:
        """When it was stored, by the target's clock."""
        ...

    @property
    def damaged(self) -> int:
        """Whether something that it shows cannot be read."""
        ...

    @property
    def pinned(self) -> int:
        """Whether somebody wants it kept."""
        ...


P = TypeVar("P", bound=Dated)


@dataclass(frozen=True, slots=True)
class ThinningStep:
    """One point each `every_seconds`, up to an age of `for_seconds`."""

    every_seconds: int
    for_seconds: int


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long points are kept, and how densely.

    Attributes:
        keep_all_seconds: every point is kept to this age.
        steps: then one point per period, to the step's age; ages ascend and each period divides the next. What is
            older than the last step goes.

    Raises:
        DrengineError: BAD_RETENTION when made with other values.
    """

    keep_all_seconds: int = 600
    steps: tuple[ThinningStep, ...] = (
        ThinningStep(600, 3600),
        ThinningStep(3600, 86400),
        ThinningStep(86400, 604800),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.keep_all_seconds <= _SECONDS_MAX:
            raise DrengineError(BAD_RETENTION, f"all points for {self.keep_all_seconds} seconds is out of range")
        for step in self.steps:
            if not 0 < step.every_seconds <= _SECONDS_MAX or not 0 < step.for_seconds <= _SECONDS_MAX:
                raise DrengineError(BAD_RETENTION, f"{_step_text(step)!r} is out of range")
        ages = [self.keep_all_seconds, *(step.for_seconds for step in self.steps)]
        if any(later <= sooner for sooner, later in pairwise(ages)):
            raise DrengineError(BAD_RETENTION, f"{self}: each step must reach further back than the one before")
        for finer, coarser in pairwise(self.steps):
            if coarser.every_seconds % finer.every_seconds:
                raise DrengineError(BAD_RETENTION, f"{self}: each period must divide the next")

    @staticmethod
    def parse(text: str) -> RetentionPolicy:
        """Read what `str` of a policy gives, such as ``all for 10m, every 10m for 1h``; units s, m, h, d, w.

        Raises:
            DrengineError: BAD_RETENTION.
        """
        if len(text) > _TEXT_MAX:
            raise DrengineError(BAD_RETENTION, f"a policy of {len(text)} characters is too long")
        first, *others = (part.strip().lower() for part in text.split(","))
        keep_all = _ALL.fullmatch(first)
        if not keep_all:
            raise DrengineError(BAD_RETENTION, f"{text[:80]!r} does not begin with 'all for ...'")
        steps = []
        for part in others:
            step = _EVERY.fullmatch(part)
            if not step:
                raise DrengineError(BAD_RETENTION, f"{part[:80]!r} is not 'every ... for ...'")
            steps.append(ThinningStep(_seconds(step[1], step[2]), _seconds(step[3], step[4])))
        return RetentionPolicy(_seconds(keep_all[1], keep_all[2]), tuple(steps))

    def __str__(self) -> str:
        steps = (_step_text(step) for step in self.steps)
        return ", ".join((f"all for {_duration(self.keep_all_seconds)}", *steps))


def plan(
    points: Iterable[P],
    now_ns: int,
    policy: RetentionPolicy,
    *,
    protected: Collection[str] = (),
    ended_branches: Collection[int] = (),
    silent_seconds: float = 0.0,
) -> list[P]:
    """Points to remove, by branch and sequence. Never a pinned or protected one, nor a branch's newest undamaged one.

    Args:
        points: all points of ONE source, in any order.
        now_ns: the target's wall clock; it only bounds a newest point whose time lies in the future. So the same
            points are planned for in the same way at each moment after they have come.
        policy: what to keep.
        protected: ids (RecoveryPoint.id) of points that are leased or that branches grow from.
        ended_branches: branches that take no more writes: there even the newest point may go when its time is up.
        silent_seconds: for how long it is certain that nothing was to come any more: all points are older by that.
    """
    kept = sorted(points, key=lambda point: (point.branch, point.sequence))
    removed: list[P] = []
    # A point that goes may have stood between two of one bucket, where a clock had jumped: then these are thinned, too.
    while going := _going(kept, now_ns, policy, protected, ended_branches, int(silent_seconds * _NS)):
        removed += going
        gone = {(point.branch, point.sequence) for point in going}
        kept = [point for point in kept if (point.branch, point.sequence) not in gone]
    return sorted(removed, key=lambda point: (point.branch, point.sequence))


def _going(
    kept: list[P],
    now_ns: int,
    policy: RetentionPolicy,
    protected: Collection[str],
    ended_branches: Collection[int],
    silent_ns: int,
) -> list[P]:
    """One round of `plan` over points by branch and sequence."""
    if not kept:
        return []
    received_ns = min(now_ns, max(point.received_ns for point in kept))
    # The newest on the source's own clock: the last point of whichever branch was written last.
    newest = max(kept, key=lambda point: (min(point.received_ns, now_ns), point.branch, point.sequence))
    removed: list[P] = []
    for branch, group in groupby(kept, key=lambda point: point.branch):
        mine = list(group)
        ages = _ages_ns(mine, received_ns + silent_ns, newest.time_ns + silent_ns)
        staying = _staying(mine, ages, policy)
        if branch not in ended_branches:
            staying.add(max(mine, key=lambda point: (not point.damaged, point.sequence)).sequence)
        removed += [
            point for point in mine if point.sequence not in staying and not point.pinned and point.id not in protected
        ]
    return removed


def _ages_ns(points: Sequence[Dated], received_ns: int, time_ns: int) -> list[int]:
    """Age of each point of a branch (oldest first), never less than that of a newer one.

    A clock on which a point lies after the newest one has been set back in between: it does not count.
    """
    ages: list[int] = []
    age = 0
    for point in reversed(points):
        since_ns, other_ns = received_ns - point.received_ns, time_ns - point.time_ns
        if since_ns < 0 or 0 <= other_ns < since_ns:
            since_ns = other_ns
        age = max(age, since_ns)
        ages.append(age)
    return ages[::-1]


def _staying(points: Sequence[Dated], ages_ns: list[int], policy: RetentionPolicy) -> set[int]:
    """Sequences of the points of a branch (oldest first) that the policy keeps."""

    def bucket(entry: tuple[Dated, int]) -> tuple[int, int]:
        """Consecutive points of one bucket are thinned to one. Period -1: keep none."""
        point, age_ns = entry
        for step in policy.steps:
            if age_ns <= step.for_seconds * _NS:
                return step.every_seconds, point.received_ns // (step.every_seconds * _NS)
        return -1, 0

    # Ages descend: from here on all are kept, and they are most.
    young = bisect_left(ages_ns, -policy.keep_all_seconds * _NS, key=neg)
    staying = {point.sequence for point in points[young:]}
    for (period, _), group in groupby(zip(points[:young], ages_ns[:young], strict=True), key=bucket):
        if period >= 0:
            members = [point for point, _ in group]
            staying.add(next((point for point in members if not point.damaged), members[0]).sequence)
    return staying


def _seconds(number: str, unit: str) -> int:
    return int(number) * _UNITS[unit]


def _duration(seconds: int) -> str:
    unit = next(unit for unit in "wdhms" if seconds % _UNITS[unit] == 0 or unit == "s")
    return f"{seconds // _UNITS[unit]}{unit}"


def _step_text(step: ThinningStep) -> str:
    return f"every {_duration(step.every_seconds)} for {_duration(step.for_seconds)}"
