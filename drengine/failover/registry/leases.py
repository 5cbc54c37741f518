"""Leases: who may execute a run. Each holder gets a token higher than any before; only the newest may act.

Invariants (fault 60):
- A token is never given twice, and grows.
- At most one token is valid at a time: a change made under another is refused, in the same transaction in which it
  would have been made. So a holder that slept past its lease can be late, never wrong.
- The time in a lease decides only when somebody else may ask; a clock that jumps can't make two holders valid, and
  can't keep a lease alive for longer than it was given for, counted from the jump.
"""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, select, update

from drengine.failover.registry.database import put_once
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST
from drengine.failover.registry.tables import leases
from drengine.failover.run import Lease
from drengine.model.errors import DrengineError


def acquire(
    connection: Connection, name: str, owner: str, seconds: float, now_ns: int, *, after: int | None = None
) -> Lease:
    """Become the holder. The same owner again gets a new token: what it did before may still be under way.

    `after`: only if this is the newest token, so that nobody has had the lease since somebody looked.

    Raises:
        DrengineError: LEASE_HELD.
    """
    found = _locked(connection, name)
    if found is None:
        row = {"name": name, "owner": "", "token": 0, "granted_ns": 0, "expires_ns": 0}
        put_once(connection, leases, row, ("name",))
        found = _locked(connection, name)
        assert found is not None
    if found["owner"] not in ("", owner) and is_alive(found, now_ns):
        left = max(0.0, (found["expires_ns"] - now_ns) / 1e9)
        raise DrengineError(LEASE_HELD, f"{name} is held by {found['owner']} for another {left:.1f} s")
    if after is not None and found["token"] != after:
        raise DrengineError(LEASE_HELD, f"{name} was taken by somebody else meanwhile")
    lease = Lease(name, owner, found["token"] + 1, now_ns + int(seconds * 1e9))
    _write(connection, lease, now_ns)
    return lease


def renew(connection: Connection, lease: Lease, seconds: float, now_ns: int) -> Lease:
    """Hold it for so long from now.

    Raises:
        DrengineError: LEASE_LOST.
    """
    check_token(connection, lease.name, lease.token)
    renewed = Lease(lease.name, lease.owner, lease.token, now_ns + int(seconds * 1e9))
    _write(connection, renewed, now_ns)
    return renewed


def release(connection: Connection, lease: Lease) -> None:
    """Let it go, if it is still held."""
    connection.execute(
        update(leases).where(leases.c.name == lease.name, leases.c.token == lease.token).values(owner="", expires_ns=0)
    )


def hand_over(connection: Connection, lease: Lease) -> None:
    """End its time at once, if it is still held: it counts as that of a holder who died, and not as let go."""
    held = (leases.c.name == lease.name) & (leases.c.token == lease.token) & (leases.c.owner != "")
    connection.execute(update(leases).where(held).values(granted_ns=0, expires_ns=0))


def was_released(connection: Connection, lease: Lease) -> bool:
    """Whether it was let go, and nobody has taken it since."""
    found = _locked(connection, lease.name)
    return found is not None and found["token"] == lease.token and not found["owner"]


def check_token(connection: Connection, name: str, token: int) -> None:
    """Lock the lease until the transaction ends, and refuse unless `token` is its newest and was not released.

    Raises:
        DrengineError: LEASE_LOST.
    """
    found = _locked(connection, name)
    if found is None or found["token"] != token or not found["owner"]:
        holder = found["owner"] if found else ""
        taken = f"it is held by {holder} now" if holder and found and found["token"] != token else "it was let go"
        raise DrengineError(LEASE_LOST, f"{name}: token {token} counts no more, {taken}")


def is_held(connection: Connection, name: str, now_ns: int) -> bool:
    """Whether somebody holds it now."""
    found = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
    return found is not None and bool(found["owner"]) and is_alive(found, now_ns)


def _locked(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(leases).where(leases.c.name == name).with_for_update()).mappings().one_or_none()


def is_alive(found: RowMapping, now_ns: int) -> bool:
    """Whether the time that its holder was given runs still."""
    length_ns = found["expires_ns"] - found["granted_ns"]
    return bool(found["granted_ns"] - length_ns <= now_ns < found["expires_ns"])


def _write(connection: Connection, lease: Lease, now_ns: int) -> None:
    connection.execute(
        update(leases)
        .where(leases.c.name == lease.name)
        .values(owner=lease.owner, token=lease.token, granted_ns=now_ns, expires_ns=lease.expires_ns)
    )
