"""Bringing a database to the newest version, with alembic: it takes half a second to import, so only this needs it."""

from __future__ import annotations

import threading

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from drengine.failover.registry.errors import REGISTRY_UNAVAILABLE
from drengine.failover.registry.migrations import NEWEST, VERSION_TABLE, VERSIONS, version_of
from drengine.model.errors import DrengineError

_ALONE = threading.Lock()
"""alembic keeps what it works on in globals, so threads that open registries take turns."""


def migrate(connection: Connection, *, shown: str) -> None:
    """Bring the database to the newest version in the transaction of `connection`, which nobody else does meanwhile.

    `shown` names the registry to people.

    Raises:
        DrengineError: REGISTRY_UNAVAILABLE, it is of a newer program.
    """
    found = version_of(connection)
    if found == NEWEST:
        return
    script = ScriptDirectory(VERSIONS.parent, version_locations=[VERSIONS])
    if found is not None and found not in {each.revision for each in script.walk_revisions()}:
        raise DrengineError(
            REGISTRY_UNAVAILABLE,
            f"registry {shown} has version {found}, this program knows up to {NEWEST}",
            hint="Use the newer drengine that wrote it.",
        )
    steps = EnvironmentContext(Config(), script, fn=lambda rev, _: script._upgrade_revs(NEWEST, rev))
    with _ALONE, steps as environment:
        environment.configure(connection, version_table=VERSION_TABLE, transactional_ddl=True)
        if found is not None:
            environment.get_context().stamp(script, found)
        environment.run_migrations()
