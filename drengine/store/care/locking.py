"""Retention lock: points that nobody, no role and no command may remove before their time.

Time passes by a *compliance clock* that is kept in the catalogue. It goes on only by what a host's own clock since its
boot has counted, which nobody can set; over a boot it stands still. So no jump of a wall clock opens a lock; a host
that was off makes it longer. Points are locked one by one, when they are due by policy, before any other is retired. A
lock can be made longer, never shorter; it holds a point, and so all that shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.care.lock_policy import SECONDS_MAX, LockPolicy
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import ClockRow, LockPolicyRow, PointLockRow, PointRow
from drengine.store.context import StoreContext
from drengine.store.errors import BAD_LOCK, POINT_LOCKED

_NS = 1_000_000_000
_BOOTS_KEPT = 16

Key = tuple[int, int]
"""Branch and sequence of a point."""


def reading_ns(catalogue: Catalogue, clock: Clock) -> int:
    """What the compliance clock says now."""
    boot, since_ns = clock.since_boot()
    rows = catalogue.clocks()
    reading = max((row.reading_ns for row in rows.values()), default=0)
    if mine := rows.get(boot):
        reading = max(reading, mine.reading_ns + max(since_ns - mine.since_boot_ns, 0))
    return reading


def advance(catalogue: Catalogue, clock: Clock) -> int:
    """Have the catalogue remember what the compliance clock says now; returns that."""
    with catalogue.transaction():
        now_ns = reading_ns(catalogue, clock)
        boot, since_ns = clock.since_boot()
        catalogue.put(ClockRow(boot, since_ns, now_ns))
        others = sorted(
            (row for row in catalogue.clocks().values() if row.boot != boot), key=lambda row: row.reading_ns
        )
        catalogue.remove(*others[: -(_BOOTS_KEPT - 1)])
    return now_ns


def held(catalogue: Catalogue, source: str, now_ns: int) -> set[Key]:
    """Points of a source whose time is not over, by the compliance clock."""
    return {(row.branch, row.sequence) for row in catalogue.point_locks(source) if row.until_ns > now_ns}


def apply_policy(catalogue: Catalogue, source: str, policy: LockPolicy, now_ns: int) -> None:
    """Go by a policy from now on; what is locked is so for longer if the policy says so. Inside a transaction."""
    old = catalogue.lock_policy(source)
    new = LockPolicyRow(source, policy.every_seconds, policy.for_seconds)
    if new == old:
        return
    longer_ns = (new.for_seconds - old.for_seconds) * _NS
    locked = [row for row in catalogue.point_locks(source) if row.until_ns > now_ns]
    if old.for_seconds and longer_ns > 0:
        catalogue.put(*(row._replace(until_ns=row.until_ns + longer_ns) for row in locked))
    catalogue.put(new)


def lock_due(catalogue: Catalogue, source: str, points: Iterable[PointRow], now_ns: int) -> int:
    """Lock what the source's policy says is to be locked by now; how many. Inside a transaction.

    No wall clock decides: the newest point is locked when so much time has passed since the one before was.
    """
    policy = catalogue.lock_policy(source)
    if not policy.for_seconds:
        return 0
    rows = {(row.branch, row.sequence): row for row in catalogue.point_locks(source)}
    active = catalogue.source(source).active_branch
    mine = [row for row in points if row.branch == active and not row.damaged]
    due = [row for row in mine if (row.branch, row.sequence) not in rows]
    if policy.every_seconds:
        last_ns = max((row.made_ns for key, row in rows.items() if key[0] == active), default=None)
        is_due = last_ns is None or now_ns - last_ns >= policy.every_seconds * _NS
        due = due[-1:] if is_due and due and due[-1] is mine[-1] else []
    until_ns = now_ns + policy.for_seconds * _NS
    catalogue.put(*(PointLockRow(source, row.branch, row.sequence, now_ns, until_ns) for row in due))
    return len(due)


def lock_rows_of(catalogue: Catalogue, source: str, points: Iterable[Any]) -> list[PointLockRow]:
    """The rows, all of them over, of points that go."""
    gone = {(row.branch, row.sequence) for row in points}
    return [row for row in catalogue.point_locks(source) if (row.branch, row.sequence) in gone]


def lock_point(context: StoreContext, point: PointRow, seconds: int) -> int:
    """Lock a point for so long from now on; what is locked for longer stays so. Returns the seconds that are left.

    Raises:
        DrengineError: BAD_LOCK.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise DrengineError(BAD_LOCK, f"{seconds} seconds are out of range")
    catalogue = context.catalogue
    now_ns = advance(catalogue, context.clock)
    with catalogue.transaction(point.source):
        known = {(row.branch, row.sequence): row for row in catalogue.point_locks(point.source)}
        row = known.get((point.branch, point.sequence))
        until_ns = max(now_ns + seconds * _NS, row.until_ns if row else 0)
        made_ns = row.made_ns if row else now_ns
        catalogue.put(PointLockRow(point.source, point.branch, point.sequence, made_ns, until_ns))
    return (until_ns - now_ns) // _NS


def seconds_left(context: StoreContext, source: str) -> dict[Key, int]:
    """For how long each point that is locked stays so."""
    now_ns = reading_ns(context.catalogue, context.clock)
    rows = context.catalogue.point_locks(source)
    return {(row.branch, row.sequence): -(-(row.until_ns - now_ns) // _NS) for row in rows if row.until_ns > now_ns}


def require_unlocked(context: StoreContext, source: str, doing: str) -> None:
    """Return when no point of a source is locked.

    Raises:
        DrengineError: POINT_LOCKED.
    """
    catalogue = context.catalogue
    now_ns = reading_ns(catalogue, context.clock)
    with catalogue.transaction(source):
        lock_due(catalogue, source, catalogue.points(source), now_ns)
    if locked := seconds_left(context, source):
        days = max(locked.values()) / 86400
        raise DrengineError(
            POINT_LOCKED, f"{doing}: {len(locked)} points of {source!r} are locked, the last for {days:.1f} days"
        )
