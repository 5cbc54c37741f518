"""Checking what a query gives."""

from __future__ import annotations

import os
import socket
from typing import Annotated, Any

import msgspec

from drengine.control.probes import Mismatch, Seen
from drengine.failover.needs import Library
from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.checks import Check
from drengine.transport.web import Deadline

VALUE_CHARACTERS_MAX = 10_000


class SqlCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Passes when the query's first column of the first row equals `expect` (as text), or any row comes when empty."""

    dsn: Annotated[
        str,
        msgspec.Meta(
            extra={"what": "a database", "example": "postgresql://USER@HOST/DATABASE"},
            extra_json_schema={"pattern": "^(postgresql|sqlite)://"},
        ),
    ]
    """postgresql://USER@HOST/DATABASE or sqlite:///PATH; keep passwords in ~/.pgpass."""
    query: str
    """One statement."""
    expect: str = ""
    """First value of the first row, as text; empty: any row will do."""


class SqlStep(Check[SqlCheck]):
    """A query on PostgreSQL or SQLite (`sqlite:///path`) with the expected first value."""

    name = "sql"
    help = "Check what a query gives."

    def title(self, source: str, settings: SqlCheck) -> str:
        return "check by SQL"

    def examine(self, settings: SqlCheck, sense: Sense) -> None:
        sense.filled(settings.query, "query")
        sense.filled(settings.dsn, "dsn")
        if not settings.dsn.startswith(("postgresql://", "sqlite:///")):
            hint = "Write postgresql://USER@HOST/DATABASE or sqlite:///PATH."
            sense.error("bad-value", "it names no database that can be asked", hint, "dsn")

    def needs(self, settings: SqlCheck) -> tuple[Library, ...]:
        driver = (Library("psycopg", "psycopg[binary]"),) if settings.dsn.startswith("postgresql:") else ()
        return (Library("sqlalchemy", "sqlalchemy"), *driver)

    def ask(self, settings: SqlCheck, deadline: Deadline) -> Seen:
        from sqlalchemy import NullPool, create_engine, text  # noqa: PLC0415 - only runs with SQL checks pay for it

        url = settings.dsn.replace("postgresql://", "postgresql+psycopg://", 1)
        limits = {"connect_timeout": max(1, int(deadline.left()))} if url.startswith("postgresql") else {}
        engine = create_engine(url, poolclass=NullPool, connect_args=limits)
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            with deadline.cutting(lambda: _cut(driver)):
                row = connection.execute(text(settings.query)).first()
        if row is None:
            raise Mismatch("the query gave no row")
        value, expected = str(row[0])[:VALUE_CHARACTERS_MAX], settings.expect
        if expected and value != expected:
            raise Mismatch(f"the query gave {value!r}, not {expected!r}")
        return Seen(f"the query gave {value!r}")


def _cut(driver: Any) -> None:
    """End a query from another thread, without asking the server: it may never answer."""
    if hasattr(driver, "interrupt"):  # SQLite
        driver.interrupt()
        return
    with socket.socket(fileno=os.dup(driver.fileno())) as stream:
        stream.shutdown(socket.SHUT_RDWR)


SQL = SqlStep()
