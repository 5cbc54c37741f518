"""Locks in the database of a shared catalogue: rows with growing tokens, which end by the server's clock.

A thread renews what this process holds. Whoever cannot renew counts its locks as lost before their rows end, by its own
monotonic clock. That keeps two from acting at once; what keeps them from both being believed is the token, which each
transaction that relies on a lock checks (catalogue/interface.py).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.catalogue.interface import Fence
from drengine.store.catalogue.postgres import statements
from drengine.store.catalogue.postgres.database import Database
from drengine.store.catalogue.postgres.link import Link, SharedLink
from drengine.store.errors import BRANCH_BUSY, LOCK_LOST, MAINTENANCE_BUSY
from drengine.store.identity import StoreFile
from drengine.store.locks.interface import Holder, Lock, Position

LOCK_SECONDS = 10.0
"""For so long a lock lives without being renewed."""
RENEWALS = 4
"""How often it is renewed in that time."""
DRIFT = 0.1
"""By so much of its time a holder gives it up earlier than its row ends: clocks do not run alike."""
SILENT_SECONDS = 2
"""Who is silent so long in a transaction is not waited for, once its lock is free to take."""
_POLL_SECONDS = 0.02
_PATIENCE = f"SET LOCAL lock_timeout = '{SILENT_SECONDS}s'"

_ACQUIRE = (
    "INSERT INTO lock (name, holder, addresses, token, expires) "
    "VALUES (%s, %s, %s, nextval('token'), clock_timestamp() + %s * interval '1 second') "
    "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, addresses = excluded.addresses, "
    "token = excluded.token, expires = excluded.expires "
    "WHERE lock.expires <= clock_timestamp() OR (lock.holder = %s AND lock.token <> ALL (%s)) RETURNING token"
)
"""Also one of this holder's that this process does not know: it could not be released, or is of a process that died."""
_TAKEN = (
    "SELECT 1 FROM lock WHERE name = %s AND expires > clock_timestamp() AND NOT (holder = %s AND token <> ALL (%s))"
)
_RENEW = (
    "UPDATE lock SET expires = clock_timestamp() + %s * interval '1 second' "
    "WHERE (name, token) IN (SELECT * FROM unnest(%s::text[], %s::bigint[])) AND expires > '-infinity' "
    "RETURNING name, token"
)
"""One that was released meanwhile stays so."""
_RELEASE = "UPDATE lock SET expires = '-infinity' WHERE name = %s AND token = %s"
_REMOVE = "DELETE FROM lock WHERE name = %s AND token = %s"
_HOLDER = "SELECT holder, addresses FROM lock WHERE name = %s AND expires > clock_timestamp()"
_HOLDERS = "SELECT name, holder, addresses FROM lock WHERE name LIKE 'branch/%' AND expires > clock_timestamp()"
_LEASE = (
    "INSERT INTO lease (id, source, branch, sequence, holder, expires) "
    "VALUES (nextval('token'), %s, %s, %s, %s, clock_timestamp() + %s * interval '1 second') RETURNING id"
)
_RENEW_LEASES = (
    "UPDATE lease SET expires = clock_timestamp() + %s * interval '1 second' WHERE id = ANY(%s) RETURNING id"
)
_END_LEASE = "DELETE FROM lease WHERE id = %s"
_LEASED = "SELECT DISTINCT source, branch, sequence FROM lease WHERE expires > clock_timestamp()"
_END_LEASES = "DELETE FROM lease WHERE expires <= clock_timestamp()"


class PostgresLock(Lock):
    """A lock that this process holds, or held."""

    def __init__(self, locks: PostgresLocks, fence: Fence, until: float) -> None:
        """`until`: by the monotonic clock."""
        self._locks = locks
        self.fence: Fence = fence
        self.until = until
        self._is_released = False

    def require(self) -> None:
        """See `Lock.require`."""
        if self._is_released or self._locks.monotonic() >= self.until:
            raise DrengineError(LOCK_LOST, f"{self.fence.name} was not renewed in time")

    def release(self) -> None:
        """See `Lock.release`."""
        self._end(_RELEASE)

    def remove(self) -> None:
        """See `Lock.remove`."""
        self._end(_REMOVE)

    def _end(self, statement: str) -> None:
        if not self._is_released:
            self._is_released = True
            self._locks.end(self.fence, statement)


class PostgresLease(Lock):
    """A lease of a position."""

    def __init__(self, locks: PostgresLocks, id: int) -> None:
        self._locks = locks
        self._id = id

    def require(self) -> None:
        """Return: who reads what went meanwhile is refused it, and given nothing else."""

    def release(self) -> None:
        """Let go; harmless when done twice."""
        self._locks.end_lease(self._id)

    def remove(self) -> None:
        """Let go."""
        self.release()


class PostgresLocks:
    """The locks of a shared store, as one process has them; see `Locks`. Threads may share it."""

    def __init__(
        self,
        database: Database,
        holder: Holder,
        *,
        seconds: float = LOCK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`holder`: this process, as others are told; `seconds`: for how long a lock lives without being renewed."""
        self._holder = holder
        self._seconds = seconds
        self.monotonic = monotonic
        self._link = SharedLink(database.link())
        self._renewing: Link = database.link()
        self._guard = threading.Lock()
        """Of what follows."""
        self._held: dict[Fence, PostgresLock] = {}
        self._leases: set[int] = set()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def branch(self, source: str, branch: int) -> Lock:
        """See `Locks.branch`."""
        busy = f"branch {branch} of {source!r} has a writer"
        return self._acquire(branch_name(source, branch), BRANCH_BUSY, busy, source)

    def branch_holder(self, source: str, branch: int) -> Holder | None:
        """See `Locks.branch_holder`."""
        found = self._link.ask(
            lambda connection: connection.execute(_HOLDER, (branch_name(source, branch),)).fetchone()
        )
        return Holder(found[0], tuple(found[1])) if found else None

    def branch_holders(self) -> dict[tuple[str, int], Holder]:
        """See `Locks.branch_holders`."""
        found = self._link.ask(lambda connection: connection.execute(_HOLDERS).fetchall())
        names = [name.split("/") for name, _, _ in found]
        return {(each[1], int(each[2])): Holder(row[1], tuple(row[2])) for each, row in zip(names, found, strict=True)}

    def maintenance(self) -> Lock:
        """See `Locks.maintenance`."""
        return self._acquire("maintenance", MAINTENANCE_BUSY, "another process maintains the store")

    def manifests(self) -> Lock:
        """See `Locks.manifests`."""
        return self._wait_for("manifests")

    def keys(self) -> Lock:
        """See `Locks.keys`."""
        return self._wait_for("keys")

    def lease(self, position: Position) -> Lock:
        """See `Locks.lease`."""
        values = (position.source, position.branch, position.sequence, self._holder.name, self._seconds)
        (id,) = self._link.ask(lambda connection: connection.execute(_LEASE, values).fetchall())[0]
        with self._guard:
            self._leases.add(id)
        self._renew_always()
        return PostgresLease(self, id)

    def leased_positions(self) -> set[Position]:
        """See `Locks.leased_positions`."""
        return {Position(*row) for row in self._link.ask(lambda connection: connection.execute(_LEASED).fetchall())}

    def close(self) -> None:
        """See `Locks.close`. What is held still ends by itself, in time."""
        self._closed.set()
        with self._guard:  # under which it is started
            thread = self._thread
        if thread:
            thread.join()
        self._link.close()
        self._renewing.close()

    def end(self, fence: Fence, statement: str) -> None:
        """Let go of a lock; where that can't be said, it ends in time."""
        with self._guard:
            self._held.pop(fence, None)
        with suppress(DrengineError):
            self._link.ask(lambda connection: connection.execute(statement, fence))

    def end_lease(self, id: int) -> None:
        """Let go of a lease; where that can't be said, it ends in time."""
        with self._guard:
            known = id in self._leases
            self._leases.discard(id)
        if known:
            with suppress(DrengineError):
                self._link.ask(lambda connection: connection.execute(_END_LEASE, (id,)))

    def _acquire(self, name: str, kind: ErrorKind, busy: str, source: str | None = None) -> PostgresLock:
        lock = self._try(name, source)
        if lock is None:
            found = self._link.ask(lambda connection: connection.execute(_HOLDER, (name,)).fetchone())
            raise DrengineError(kind, f"{busy}: {found[0]}" if found else busy)
        return lock

    def _wait_for(self, name: str) -> PostgresLock:
        while True:
            if lock := self._try(name, None):
                return lock
            time.sleep(_POLL_SECONDS)

    def _try(self, name: str, source: str | None) -> PostgresLock | None:
        holder = self._holder
        with self._guard:
            known = (holder.name, [fence.token for fence in self._held if fence.name == name])

        def acquire(connection: psycopg.Connection[Any]) -> tuple[Any, ...] | None:
            if connection.execute(_TAKEN, (name, *known)).fetchone():
                return None
            with connection.transaction():
                if source is not None:
                    # Alone with the source: no transaction that relies on the lock of before is under way.
                    connection.execute(_PATIENCE)
                    connection.execute(statements.LOCK_SOURCE, (statements.STORE_LOCK, statements.source_lock(source)))
                values = (name, holder.name, list(holder.addresses), self._seconds, *known)
                return connection.execute(_ACQUIRE, values).fetchone()

        asked = self.monotonic()
        try:
            found = self._link.ask(acquire)
        except DrengineError as error:
            if source is None or error.kind is not MAINTENANCE_BUSY:
                raise
            asked = self.monotonic()
            self._end_silent(source)
            found = self._link.ask(acquire)
        if found is None:
            return None
        lock = PostgresLock(self, Fence(name, found[0]), self._until(asked))
        with self._guard:
            self._held[Fence(name, found[0])] = lock
        self._renew_always()
        return lock

    def _end_silent(self, source: str) -> None:
        """End sessions that hang in a transaction of a source: their process is stopped, or its host is gone."""
        locks = [statements.STORE_LOCK, statements.source_lock(source)]
        self._link.ask(lambda connection: connection.execute(statements.END_SILENT, (locks, SILENT_SECONDS)))

    def _until(self, asked: float) -> float:
        """When a lock that was asked for at `asked` is given up."""
        return asked + self._seconds * (1 - DRIFT)

    def _renew_always(self) -> None:
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_renewing, name="locks", daemon=True)
                self._thread.start()

    def _keep_renewing(self) -> None:
        while not self._closed.wait(self._seconds / RENEWALS):
            with suppress(DrengineError):
                self.renew()

    def renew(self) -> None:
        """Renew all that this process holds; a lock that somebody else has by now is told to be lost.

        Raises:
            DrengineError: CATALOGUE_UNAVAILABLE and others: nothing was renewed.
        """
        with self._guard:
            held, leases = dict(self._held), sorted(self._leases)
        asked = self.monotonic()
        with self._renewing.errors():
            connection = self._renewing.connection()
            with connection.pipeline():
                names, tokens = [fence.name for fence in held], [fence.token for fence in held]
                renewed = connection.execute(_RENEW, (self._seconds, names, tokens))
                connection.execute(_RENEW_LEASES, (self._seconds, leases))
                connection.execute(_END_LEASES)
            found = {Fence(*row) for row in renewed.fetchall()}
        for fence, lock in held.items():
            lock.until = self._until(asked) if fence in found else 0.0


def locks_of(file: StoreFile, holder: Holder) -> PostgresLocks:
    """The locks of a store that hosts share, as its STORE file says where they are."""
    name = holder.name or f"process {os.getpid()} of {socket.gethostname()}"
    return PostgresLocks(Database(file.catalogue, file.identity), holder._replace(name=name))


def branch_name(source: str, branch: int) -> str:
    """The name of a branch's lock."""
    return f"branch/{source}/{branch}"
