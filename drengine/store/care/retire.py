"""Carrying out the retention plan: which points leave the catalogue. Their data goes with the next compaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from drengine.model.points import RecoveryPoint
from drengine.store.care.lock_policy import LockPolicy
from drengine.store.care.locking import (
    Key,
    advance,
    apply_policy,
    held,
    lock_due,
    lock_rows_of,
    reading_ns,
)
from drengine.store.care.looks import Looks
from drengine.store.care.retention import RetentionPolicy, plan
from drengine.store.catalogue.rows import BranchRow, PointRow
from drengine.store.context import StoreContext
from drengine.store.copies import first_number
from drengine.store.inventories import forget_inventory
from drengine.store.locks import Position
from drengine.store.rebuild.manifest import is_manifest_old, write_manifest


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long a source's points are kept.

    Attributes:
        policy: how long, and how densely.
        silent_seconds: for how long the source is retired, so that all of its points go in the end; None: it is not.
        lock: which points are locked from now on; None: as the store knows it.
    """

    policy: RetentionPolicy
    silent_seconds: float | None = None
    lock: LockPolicy | None = None


def retain(
    context: StoreContext, keeping: Callable[[str], Keeping], now_ns: int, looks: Looks | None = None
) -> list[RecoveryPoint]:
    """Retire points by each source's policy; never a locked one, nor, unless the source is retired, a pinned or leased
    one, a branch's base, or a branch's newest undamaged one.

    What a promotion left behind is closed when its last own point has gone; a closed drill's points go at once.
    Sources of which `looks` knows that nothing is to be done are passed over.

    Raises:
        DrengineError: MAINTENANCE_BUSY, STORE_FULL, STORE_IO.
    """
    looks = looks or Looks()
    removed: list[RecoveryPoint] = []
    with context.locks.maintenance():
        # A reader takes its lease before it looks whether the point is there: what it saw is leased when data goes.
        leases = defaultdict(set)
        for lease in context.locks.leased_positions():
            leases[lease.source].add(lease)
        sources = context.catalogue.sources()
        looks.forget_others(frozenset(source.name for source in sources))
        each_keeping = {source.name: keeping(source.name) for source in sources}
        may_lock = any(each.lock and each.lock.for_seconds for each in each_keeping.values())
        if may_lock or context.catalogue.clocks():
            advance(context.catalogue, context.clock)
        for source in sources:
            retired = _look_at(context, source.name, each_keeping[source.name], leases[source.name], now_ns, looks)
            # Compaction writes one before it takes anything away: here it keeps a rebuild from what is long retired.
            if retired and is_manifest_old(context, source.name):
                write_manifest(context, source.name)
            removed += retired
    return removed


def _look_at(
    context: StoreContext, source: str, keeping: Keeping, leases: set[Position], now_ns: int, looks: Looks
) -> list[RecoveryPoint]:
    """Retire points of a source, unless all is as it was when nothing was to be done."""
    catalogue = context.catalogue
    first = first_number(catalogue)  # at a copy, the mirror sees to all others
    given = (keeping, frozenset(leases), first)
    known, latest_ns = looks.retention.get(source, (None, 0))
    if known == (catalogue.state_of(source), given) and now_ns >= latest_ns:
        return []
    with catalogue.transaction(source):
        # As it is before anything is retired: what is retired may bring about that more is, at the next look.
        state = catalogue.state_of(source)
        points = [row for row in catalogue.points(source) if row.branch >= first]
        latest_ns = max((row.received_ns for row in points), default=0)
        retired = _retain_source(context, source, keeping, leases, points, now_ns)
        # A lock ends, and the next one is due, by a clock of their own.
        locks = bool(keeping.lock and keeping.lock.for_seconds) or bool(catalogue.lock_policy(source).for_seconds)
        is_settled = not locks and not catalogue.point_locks(source) and now_ns >= latest_ns
    if is_settled:
        looks.retention[source] = (state, given), latest_ns
    else:
        looks.retention.pop(source, None)
    return retired


def _retain_source(
    context: StoreContext,
    source: str,
    keeping: Keeping,
    leases: set[Position],
    points: list[PointRow],
    now_ns: int,
) -> list[RecoveryPoint]:
    catalogue, policy = context.catalogue, keeping.policy
    is_retired = keeping.silent_seconds is not None
    first = first_number(catalogue)
    branches = [row for row in catalogue.branches(source) if row.branch >= first]
    kept_alive = {row.branch for row in branches if not _is_over(row, points, leases)}
    bases = {(row.parent, row.base_sequence) for row in branches if row.branch in kept_alive}
    leased = {(lease.branch, lease.sequence) for lease in leases}
    locked = _locked(context, source, keeping, points)
    protected = {f"{branch}-{sequence}" for branch, sequence in bases | leased | locked}
    by_policy = plan(
        points,
        now_ns,
        policy,
        protected=protected,
        ended_branches={row.branch for row in branches if is_retired or row.closed or row.superseded_ns},
        silent_seconds=keeping.silent_seconds or 0.0,
    )
    closed_drills = {row.branch for row in branches if row.closed and row.role == "drill"}
    going = {(row.branch, row.sequence) for row in by_policy}
    for row in points:
        if row.branch in closed_drills and not row.pinned and row.id not in protected:
            going.add((row.branch, row.sequence))
    staying = [row for row in points if (row.branch, row.sequence) not in going]
    gone = [row for row in points if (row.branch, row.sequence) in going]
    catalogue.remove(*gone, *lock_rows_of(catalogue, source, gone))
    if is_retired and not catalogue.points(source):
        forget_inventory(catalogue, source)
    for branch in branches:
        if branch.superseded_ns and not branch.closed and _outlived(branch, branches, staying, policy, now_ns):
            catalogue.put(branch._replace(closed=1))
    return [row.value() for row in gone]


def _locked(context: StoreContext, source: str, keeping: Keeping, points: list[PointRow]) -> set[Key]:
    """Points that are locked, those included that are to be from now on."""
    catalogue = context.catalogue
    if not catalogue.clocks() and not catalogue.point_locks(source):
        return set()
    now = reading_ns(catalogue, context.clock)
    if keeping.lock is not None:
        apply_policy(catalogue, source, keeping.lock, now)
    lock_due(catalogue, source, points, now)
    return held(catalogue, source, now)


def _is_over(branch: BranchRow, points: list[PointRow], leases: set[Position]) -> bool:
    """Whether it is closed, not being read, and has no point that is kept."""
    if not branch.closed:
        return False
    leased = any(lease.branch == branch.branch for lease in leases)
    return not leased and not any(point.branch == branch.branch for point in points)


def _outlived(
    branch: BranchRow,
    branches: list[BranchRow],
    staying: list[PointRow],
    policy: RetentionPolicy,
    now_ns: int,
) -> bool:
    """Whether what lies on a superseded branch behind the last base has reached the end of its retention."""
    parted = max((row.base_sequence for row in branches if row.parent == branch.branch), default=0)
    if any(point.branch == branch.branch and point.sequence > parted for point in staying):
        return False
    ages = [policy.keep_all_seconds, *(step.for_seconds for step in policy.steps)]
    # As old as the clock says, and as the stream that went on without it says: a leaping clock ends nothing.
    newest_ns = max((point.received_ns for point in staying if point.branch != branch.branch), default=0)
    return min(now_ns, newest_ns) - branch.superseded_ns > max(ages) * 1_000_000_000
