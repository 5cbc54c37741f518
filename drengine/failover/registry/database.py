"""A database by URL, its transactions, and its one clock.

Every change is one transaction that is durable when it returns. On SQLite writers take turns from the beginning
(BEGIN IMMEDIATE), the log is synchronised at every commit, and the clock is the machine's, which all its users share.
On PostgreSQL rows are locked where a decision depends on them, and the clock is the server's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from drengine.failover.registry.errors import REGISTRY_UNAVAILABLE
from drengine.failover.registry.migrations import NEWEST, version_of
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory, open_owned

BUSY_SECONDS = 15.0
"""How long a writer waits for its turn; and after how long PostgreSQL ends one that is stopped inside a transaction."""

_MIGRATION_LOCK = 0x6472656E67696E65
_POSTGRES = (
    f"-c lock_timeout={int(BUSY_SECONDS * 1000)} -c statement_timeout={int(BUSY_SECONDS * 2000)} "
    f"-c idle_in_transaction_session_timeout={int(BUSY_SECONDS * 1000)} -c timezone=UTC"
)
_NOTICES_LOSS = {
    "connect_timeout": 5,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
    "target_session_attrs": "read-write",
}
"""A server that is cut off is noticed within seconds; of several hosts in a URL the one is used that may be written."""


class Database:
    """An open database, for any thread."""

    def __init__(self, url: str, clock: Clock) -> None:
        """See `parse_url` for what `url` may be.

        Raises:
            DrengineError: REGISTRY_UNAVAILABLE.
        """
        parsed = parse_url(url)
        self._clock = clock
        self.shown = parsed.render_as_string(hide_password=True)
        self.is_server = parsed.get_backend_name() == "postgresql"
        with self._explained():
            self._engine = _server_engine(parsed) if self.is_server else _file_engine(parsed)
            self._migrate()

    def close(self) -> None:
        """Give its connections back; it may not be used any more."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that changes nothing and sees one state of the database."""
        with self._explained(), self._engine.connect() as connection:
            if self.is_server:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable when this returns, and never was when it raises.

        Raises:
            IntegrityError: two rows want the same key.
            DrengineError: REGISTRY_UNAVAILABLE.
        """
        with self._explained(), self._engine.connect() as connection:
            connection.execution_options(drengine_writes=True)
            with connection.begin():
                yield connection

    def now_ns(self, connection: Connection) -> int:
        """The clock by which leases are decided."""
        if not self.is_server:
            return self._clock.now_ns()
        return (
            int(
                connection.execute(
                    text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                ).scalar_one()
            )
            * 1000
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError, UnicodeError) as error:
            cause = getattr(error, "orig", None) or error
            why = " ".join(str(cause).split())[:300]
            raise DrengineError(REGISTRY_UNAVAILABLE, f"registry {self.shown}: {why}") from error

    def _migrate(self) -> None:
        with self.reading() as connection:
            if version_of(connection) == NEWEST:
                return
        with self.writing() as connection:
            if self.is_server:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            from drengine.failover.registry.migrations.migrate import migrate  # noqa: PLC0415 - see there

            migrate(connection, shown=self.shown)


def put_once(connection: Connection, table: Any, row: dict[str, Any], key: tuple[str, ...]) -> None:
    """Insert a row unless one with its key is there."""
    there = select(table.c[key[0]]).where(*(table.c[each] == row[each] for each in key))
    if connection.execute(there).first() is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(table).values(row))
        except IntegrityError:
            pass  # somebody was faster with the same


def parse_url(url: str) -> URL:
    """A path, ``sqlite:///PATH`` or ``postgresql://USER@HOST/DATABASE``.

    Raises:
        DrengineError: REGISTRY_UNAVAILABLE.
    """
    hint = "Give a path for SQLite, or postgresql://USER@HOST/DATABASE."
    if "://" not in url:
        if not url or "\0" in url:
            raise DrengineError(REGISTRY_UNAVAILABLE, "the registry's path is empty or no path", hint=hint)
        return URL.create("sqlite+pysqlite", database=url)
    try:
        parsed = make_url(url)
        name = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise DrengineError(REGISTRY_UNAVAILABLE, "the registry's URL can't be understood", hint=hint) from error
    if name == "sqlite" and parsed.database and parsed.database != ":memory:":
        return URL.create("sqlite+pysqlite", database=parsed.database)
    if name in ("postgresql", "postgres") and not parsed.query.get("options"):
        return parsed.set(drivername="postgresql+psycopg")
    raise DrengineError(REGISTRY_UNAVAILABLE, f"the registry can't be kept in {name[:20]!r} like this", hint=hint)


def _file_engine(url: URL) -> Engine:
    path = Path(url.database or "")
    make_directory(path.parent)
    # It holds runbooks, and with them perhaps passwords: for its owner only, and its log inherits that.
    os.close(open_owned(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says, not where the module guesses
        _set_write_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("drengine_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _set_write_ahead(connection: Any) -> None:
    """SQLite does not wait for its turn when the mode of a new file changes, so this does."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                return
            raise OSError("its file system can't hold a shared SQLite database (no write-ahead log)")
        except connection.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
            time.sleep(0.01)


def _server_engine(url: URL) -> Engine:
    if find_spec("psycopg") is None:
        raise DrengineError(
            REGISTRY_UNAVAILABLE,
            "a registry in PostgreSQL needs the psycopg package",
            hint="pip install 'drengine[postgres]'.",
        )
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={**_NOTICES_LOSS, "options": _POSTGRES, "application_name": "drengine"},
    )
