"""Bringing a database to the newest version, with alembic: it takes half a second to import, so only this needs it."""

from __future__ import annotations

from sqlalchemy import Connection

from drengine.failover.registry.errors import REGISTRY_UNAVAILABLE
from drengine.failover.registry.migrations import NEWEST, VERSION_TABLE, VERSIONS, version_of
from drengine.migrations import Migrations
from drengine.model.errors import DrengineError


def migrate(connection: Connection, *, shown: str) -> None:
    """Bring the database to the newest version in the transaction of `connection`, which nobody else does meanwhile.

    `shown` names the registry to people.

    Raises:
        DrengineError: REGISTRY_UNAVAILABLE, it is of a newer program.
    """
    found = version_of(connection)
    if found == NEWEST:
        return
    migrations = Migrations(VERSIONS, VERSION_TABLE)
    if found is not None and not migrations.knows(found):
        raise DrengineError(
            REGISTRY_UNAVAILABLE,
            f"registry {shown} has version {found}, this program knows up to {NEWEST}",
            hint="Use the newer drengine that wrote it.",
        )
    migrations.run(connection, NEWEST, counted=found)
