"""The directory of targets in the database of a shared catalogue. Times are the server's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from drengine.model.errors import DrengineError
from drengine.store.catalogue.postgres.database import Database
from drengine.store.catalogue.postgres.link import SharedLink
from drengine.store.errors import TARGET_LIVING, TARGET_NAME_TAKEN, UNKNOWN_TARGET
from drengine.store.identity import StoreFile
from drengine.store.targets.interface import SILENT_SECONDS, Introduction, TargetInfo, TargetState

_REPORT = (
    "INSERT INTO target (name, addresses, metrics, version, draining, stopped, seen) "
    "VALUES (%s, %s, %s, %s, false, false, clock_timestamp()) ON CONFLICT (name) DO UPDATE SET "
    "addresses = excluded.addresses, metrics = excluded.metrics, version = excluded.version, stopped = false, "
    "seen = excluded.seen "
    "WHERE target.stopped OR target.addresses = excluded.addresses "
    "OR target.seen < clock_timestamp() - make_interval(secs => %s)"
)
_ALL = (
    "SELECT name, addresses, metrics, version, draining, stopped, "
    "extract(epoch FROM clock_timestamp() - seen)::float8, "
    "(SELECT count(*) FROM placement WHERE placement.target = target.name) FROM target ORDER BY name"
)
_LEAVE = "UPDATE target SET stopped = true WHERE name = %s"
_DRAIN = "UPDATE target SET draining = %s WHERE name = %s"
_FORGET = "DELETE FROM target WHERE name = %s"
_PLACED = "SELECT source, target FROM placement"
_PLACED_AT = "SELECT target FROM placement WHERE source = %s"
_PLACE = (
    "INSERT INTO placement (source, target) VALUES (%s, %s) ON CONFLICT (source) DO UPDATE SET target = excluded.target"
)
_UNPLACE = "DELETE FROM placement WHERE source = %s"

_Connection = psycopg.Connection[Any]


class PostgresTargets:
    """See the module, and `Targets`."""

    is_shared = True

    def __init__(self, database: Database) -> None:
        self._link = SharedLink(database.link())

    def report(self, me: Introduction) -> list[TargetInfo]:
        """See `Targets.report`."""
        values = me.name, list(me.addresses), me.metrics, me.version, SILENT_SECONDS

        def ask(connection: _Connection) -> list[TargetInfo]:
            if not connection.execute(_REPORT, values).rowcount:
                raise DrengineError(TARGET_NAME_TAKEN, f"another target is called {me.name!r} and answers elsewhere")
            return _all(connection)

        return self._link.ask(ask)

    def leave(self, name: str) -> None:
        """See `Targets.leave`."""
        self._link.ask(lambda connection: connection.execute(_LEAVE, (name,)))

    def all(self) -> list[TargetInfo]:
        """See `Targets.all`."""
        return self._link.ask(_all)

    def drain(self, name: str, draining: bool) -> None:
        """See `Targets.drain`."""
        if not self._link.ask(lambda connection: connection.execute(_DRAIN, (draining, name)).rowcount):
            raise _unknown(name)

    def forget(self, name: str) -> None:
        """See `Targets.forget`."""
        found = next((each for each in self.all() if each.name == name), None)
        if found is None:
            raise _unknown(name)
        if found.is_living:
            raise DrengineError(TARGET_LIVING, f"{name!r} was heard of {found.seen_seconds:.0f} s ago")
        self._link.ask(lambda connection: connection.execute(_FORGET, (name,)))

    def placed(self) -> Mapping[str, str]:
        """See `Targets.placed`."""
        return dict(self._link.ask(lambda connection: connection.execute(_PLACED).fetchall()))

    def placed_at(self, source: str) -> str:
        """See `Targets.placed_at`."""
        found = self._link.ask(lambda connection: connection.execute(_PLACED_AT, (source,)).fetchone())
        return str(found[0]) if found else ""

    def place(self, source: str, target: str) -> None:
        """See `Targets.place`."""
        statement, values = (_PLACE, (source, target)) if target else (_UNPLACE, (source,))
        self._link.ask(lambda connection: connection.execute(statement, values))

    def close(self) -> None:
        """See `Targets.close`."""
        self._link.close()


def _all(connection: _Connection) -> list[TargetInfo]:
    return [
        TargetInfo(name, tuple(addresses), metrics, version, _state(draining, stopped), max(0.0, seen), sources)
        for name, addresses, metrics, version, draining, stopped, seen, sources in connection.execute(_ALL)
    ]


def _state(draining: bool, stopped: bool) -> TargetState:
    if stopped:
        return TargetState.STOPPED
    return TargetState.DRAINING if draining else TargetState.SERVING


def _unknown(name: str) -> DrengineError:
    return DrengineError(UNKNOWN_TARGET, f"{name[:80]!r} has never used this store")


def targets_of(file: StoreFile) -> PostgresTargets:
    """The directory of a store that hosts share, as its STORE file says where it is."""
    return PostgresTargets(Database(file.catalogue, file.identity))
