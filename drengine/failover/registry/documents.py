"""Documents that lie in the registry, so that every orchestrator has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select, update

from drengine.documents import Document, Draft
from drengine.failover.registry.database import Database, put_once
from drengine.failover.registry.tables import documents


class RegistryDocument:
    """One of them. Reading and changing raise REGISTRY_UNAVAILABLE."""

    def __init__(self, database: Database, name: str) -> None:
        self.where = f"{name} in registry {database.shown}"
        self._database, self._name = database, name

    def take_over(self, before: Document) -> None:
        """Keep what lay elsewhere, unless something is kept here already."""
        content = before.read() if self.read() is None else None
        if content is not None:
            with self.changing() as draft:
                draft.content = draft.content or content

    def read(self) -> bytes | None:
        """See Document."""
        with self._database.reading() as connection:
            found = connection.execute(select(documents.c.text).where(documents.c.name == self._name)).scalar()
        return found.encode() if found else None

    @contextmanager
    def changing(self) -> Iterator[Draft]:
        """See Document: one transaction, so a registry that is left in the middle holds what it held."""
        with self._database.writing() as connection:
            chosen = documents.c.name == self._name
            locked = select(documents.c.text).where(chosen).with_for_update()
            found = connection.execute(locked).scalar()
            if found is None:
                put_once(connection, documents, {"name": self._name, "text": "", "at_ns": 0}, ("name",))
                found = connection.execute(locked).scalar()
            draft = Draft(found.encode() if found else None)
            yield draft
            values = {"text": (draft.content or b"").decode(), "at_ns": self._database.now_ns(connection)}
            connection.execute(update(documents).where(chosen).values(values))
