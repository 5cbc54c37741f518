"""Where the accounts of an orchestrator lie: with it, or in the registry that several share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drengine.documents import Document, Nothing
from drengine.failover.config import OrchestratorConfig
from drengine.failover.registry import Registry
from drengine.model.clock import Clock
from drengine.people.accounts import accounts_file, explained
from drengine.people.door import FILE, Door

PEOPLE = "people"
SERVER = "postgresql://"
"""Begins the URL of a registry that several hosts share."""


def people_of(config: OrchestratorConfig, registry: Registry | None) -> Document:
    """The accounts. A registry in a server takes over what the state directory has of them; while it is away, there are
    none: root and the service's user are admins all the same.
    """
    file = accounts_file(config.state / FILE)
    if not config.registry.startswith(SERVER):
        return file
    if registry is None:
        return Nothing(PEOPLE)
    shared = registry.document(PEOPLE)
    with explained(file.where):
        shared.take_over(file)
    return shared


@contextmanager
def open_people(config: OrchestratorConfig, clock: Clock) -> Iterator[Document]:
    """The accounts, for whoever needs nothing else.

    Raises:
        DrengineError: REGISTRY_UNAVAILABLE.
    """
    if not config.registry.startswith(SERVER):
        yield people_of(config, None)
        return
    registry = Registry.open(config.registry_url, clock=clock)
    try:
        yield people_of(config, registry)
    finally:
        registry.close()


def door_of(config: OrchestratorConfig, clock: Clock, registry: Registry | None) -> Door:
    """See Door.of."""
    return Door.of(config.state, clock, config.oidc, people_of(config, registry))
