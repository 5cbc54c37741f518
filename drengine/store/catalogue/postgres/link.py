"""A connection to PostgreSQL that is made again after it broke, and what its errors mean to a store.

A server that does not answer is not asked again for a moment, so that nobody waits for it over and over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper

from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.catalogue.postgres.url import connection_settings
from drengine.store.errors import (
    CATALOGUE_DAMAGED,
    CATALOGUE_REFUSED,
    CATALOGUE_UNAVAILABLE,
    CATALOGUE_UNSUITABLE,
    MAINTENANCE_BUSY,
    RESOURCES_EXHAUSTED,
    STORE_FULL,
    STORE_IO,
    STORE_READ_ONLY,
)

T = TypeVar("T")

logging.getLogger("psycopg").setLevel(logging.ERROR)  # a connection that broke is told by us

SCHEMA = "drengine_catalogue"
"""A schema of its own: the database may hold other things, the registry of the orchestrators for one."""
SERVER_VERSION_MIN = 14_00_00
REST_SECONDS = 1.0
"""For so long a server that could not be reached is not asked again."""
BUSY_SECONDS = 30
IDLE_SECONDS = 5
"""A session that is silent so long inside a transaction is ended by the server: its host is gone, and it is in the way
of who takes over."""

_OPTIONS = (
    f"-c search_path={SCHEMA} -c lock_timeout={BUSY_SECONDS}s "
    f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s -c timezone=UTC "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=8000"
)
_KINDS: dict[str, ErrorKind] = {
    "08": CATALOGUE_UNAVAILABLE,
    "25006": STORE_READ_ONLY,
    "25P03": CATALOGUE_UNAVAILABLE,
    "28": CATALOGUE_REFUSED,
    "3D000": CATALOGUE_REFUSED,
    "40": MAINTENANCE_BUSY,
    "42501": STORE_READ_ONLY,
    "42": CATALOGUE_DAMAGED,
    "53100": STORE_FULL,
    "53200": RESOURCES_EXHAUSTED,
    "53": CATALOGUE_UNAVAILABLE,
    "55P03": MAINTENANCE_BUSY,
    "57P": CATALOGUE_UNAVAILABLE,
    "57014": MAINTENANCE_BUSY,
    "58": STORE_IO,
    "XX001": CATALOGUE_DAMAGED,
    "XX002": CATALOGUE_DAMAGED,
}
"""By the beginning of SQLSTATE; the first that fits counts."""
_HINTS: dict[ErrorKind, str] = {
    STORE_FULL: "Free space on PostgreSQL's disk; replication resumes by itself.",
    STORE_READ_ONLY: "PostgreSQL takes no changes: a standby, read-only, or the user lacks the right to write. Name "
    "all its servers in the URL, with target_session_attrs=read-write, so that the primary is found.",
    CATALOGUE_DAMAGED: "Repair PostgreSQL or restore it from its backup; if the catalogue is lost, `drengine rebuild`.",
    STORE_IO: "Check PostgreSQL's disk and its log.",
    MAINTENANCE_BUSY: "Wait until the other transaction ends; `pg_stat_activity` shows it.",
}


def kind_of(error: psycopg.Error) -> ErrorKind:
    """What an error of psycopg means to the store."""
    state = error.sqlstate or ""
    if not state:
        # libpq's own: no connection, or it broke. What the server said while connecting has no SQLSTATE here.
        text = str(error)
        refused = ("authentication failed", "pg_hba.conf", "does not exist", "no password supplied", "not permitted")
        if isinstance(error, psycopg.OperationalError):
            return CATALOGUE_REFUSED if any(each in text for each in refused) else CATALOGUE_UNAVAILABLE
        return STORE_IO
    return next((kind for prefix, kind in _KINDS.items() if state.startswith(prefix)), STORE_IO)


def explained(error: psycopg.Error) -> DrengineError:
    """The store's error for one of psycopg."""
    kind = kind_of(error)
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return DrengineError(kind, f"catalogue: {why}", hint=_HINTS.get(kind, ""))


class Link:
    """One connection to a catalogue's database, for one thread at a time."""

    def __init__(self, url: str, prepare: Callable[[psycopg.Connection[Any]], None] = lambda connection: None) -> None:
        """Nothing is opened yet; `prepare` looks at each new connection before it is used.

        Raises:
            DrengineError: CATALOGUE_URL.
        """
        self._settings = connection_settings(url)
        self._prepare = prepare
        self._connection: psycopg.Connection[Any] | None = None
        self._resting: tuple[float, DrengineError] | None = None
        self._closed = False
        self.warnings: list[str] = []
        """What the server warned of since this was emptied."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and not self._connection.closed

    def connection(self) -> psycopg.Connection[Any]:
        """The connection, made if there is none.

        Raises:
            DrengineError: CATALOGUE_UNAVAILABLE, CATALOGUE_REFUSED, CATALOGUE_UNSUITABLE, and what `prepare` raises.
        """
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._closed:
            raise DrengineError(CATALOGUE_UNAVAILABLE, "catalogue: it was closed")
        if self._resting and time.monotonic() < self._resting[0]:
            raise DrengineError(self._resting[1].kind, self._resting[1].message, hint=self._resting[1].hint)
        try:
            self._connection = self._connect()
        except DrengineError as error:
            if error.kind is CATALOGUE_UNAVAILABLE:
                self._resting = (time.monotonic() + REST_SECONDS, error)
            raise
        self._resting = None
        return self._connection

    def drop(self) -> None:
        """Give the connection up; the next use makes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def close(self) -> None:
        """Give it up for good; harmless when done twice."""
        self._closed = True
        self.drop()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of psycopg into the store's; a connection that broke is given up."""
        try:
            yield
        except psycopg.Error as error:
            told = explained(error)
            if self._connection is not None and (self._connection.closed or told.kind is CATALOGUE_UNAVAILABLE):
                self.drop()
            raise told from error

    def _connect(self) -> psycopg.Connection[Any]:
        with self.errors():
            connection = psycopg.connect(
                **{**self._settings, "options": _OPTIONS, "application_name": "drengine"},
                autocommit=True,
                prepare_threshold=0,
            )
        try:
            with self.errors():
                connection.adapters.register_dumper(int, Int8Dumper)
                connection.adapters.register_dumper(int, Int8BinaryDumper)
                connection.add_notice_handler(self._noticed)
                _require_suitable(connection)
                self._prepare(connection)
        except BaseException:
            with suppress(psycopg.Error):
                connection.close()
            raise
        return connection

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary or "a warning")


class SharedLink:
    """A connection that threads share, for single questions whose repetition does no harm."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._asking = threading.Lock()

    def ask(self, question: Callable[[psycopg.Connection[Any]], T]) -> T:
        """The answer; asked once more on another connection, where this one proves to be broken.

        Raises:
            DrengineError: CATALOGUE_UNAVAILABLE, and as `Link.connection`.
        """
        with self._asking:
            may_be_broken = self._link.is_open
            while True:
                try:
                    with self._link.errors():
                        return question(self._link.connection())
                except DrengineError as error:
                    if not may_be_broken or error.kind is not CATALOGUE_UNAVAILABLE:
                        raise
                    may_be_broken = False

    def close(self) -> None:
        """Give it up for good; harmless when done twice."""
        self._link.close()


def _require_suitable(connection: psycopg.Connection[Any]) -> None:
    """Return when commits there are durable, and texts are those that were given."""
    if connection.info.server_version < SERVER_VERSION_MIN:
        least = SERVER_VERSION_MIN // 10000
        raise DrengineError(
            CATALOGUE_UNSUITABLE, f"PostgreSQL {connection.info.server_version // 10000} is too old: it takes {least}"
        )
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise DrengineError(CATALOGUE_UNSUITABLE, f"the database's encoding is {encoding}, and not UTF8")
    names = ("fsync", "full_page_writes", "synchronous_commit")
    asked = ", ".join(f"current_setting('{name}')" for name in names)
    fsync, full_pages, commits = connection.execute(f"SELECT {asked}").fetchone() or ("", "", "")
    if "off" in (fsync, full_pages):
        raise DrengineError(CATALOGUE_UNSUITABLE, "PostgreSQL runs with fsync or full_page_writes off")
    if commits in ("off", "local"):
        connection.execute("SET synchronous_commit = on")
