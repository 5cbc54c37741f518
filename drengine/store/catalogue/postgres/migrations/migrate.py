"""Bringing a database to the newest version, with alembic: it takes half a second to import, so only this needs it."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from drengine.migrations import Migrations
from drengine.model.errors import DrengineError
from drengine.store.catalogue.postgres.link import SCHEMA
from drengine.store.catalogue.postgres.migrations import NEWEST, VERSION_TABLE, VERSIONS
from drengine.store.errors import STORE_VERSION

_LOCK = 0x6472656E67696E66


def migrate(connection: psycopg.Connection[Any], found: str | None) -> None:
    """Bring the database to the newest version, in one transaction that one process at a time has.

    `connection` is of this alone; `found` is the version that it seemed to have; None: it has no catalogue.

    Raises:
        DrengineError: STORE_VERSION: it is of a newer program.
        psycopg.Error: it cannot be done.
    """
    migrations = Migrations(VERSIONS, VERSION_TABLE)
    if found is not None and not migrations.knows(found):
        raise DrengineError(STORE_VERSION, f"the catalogue has version {found}, this program knows up to {NEWEST}")
    connection.set_autocommit(False)
    engine = create_engine("postgresql+psycopg://", creator=lambda: connection, poolclass=StaticPool)
    try:
        with engine.begin() as begun:
            _migrate(begun, migrations)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise
    finally:
        engine.dispose()


def _migrate(connection: Connection, migrations: Migrations) -> None:
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    migrations.run(connection, NEWEST)
