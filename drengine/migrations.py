"""Running a schema's migrations with alembic, whose modules lie in a folder `versions`.

alembic takes half a second to import, so only who migrates imports this.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_ALONE = threading.Lock()
"""alembic keeps what it works on in globals, so threads that migrate take turns, whatever they migrate."""


class Migrations:
    """Those of one schema."""

    def __init__(self, versions: Path, version_table: str) -> None:
        """`version_table`: where a database says which version it has."""
        self._script = ScriptDirectory(versions.parent, version_locations=[versions])
        self._version_table = version_table

    def knows(self, version: str) -> bool:
        """Whether it is one that these lead to; of any other a newer program is the author."""
        return version in {each.revision for each in self._script.walk_revisions()}

    def run(self, connection: Connection, newest: str, *, counted: str | None = None) -> None:
        """Bring the database to a version, in the transaction of `connection`.

        `counted`: the version that it has, where its version table does not say so yet.
        """
        script = self._script
        steps = EnvironmentContext(Config(), script, fn=lambda rev, _: script._upgrade_revs(newest, rev))
        with _ALONE, steps as environment:
            environment.configure(connection, version_table=self._version_table, transactional_ddl=True)
            if counted is not None:
                environment.get_context().stamp(script, counted)
            environment.run_migrations()
