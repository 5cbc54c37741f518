"""The tests of a store and its state machine, on a store whose catalogue is in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import psycopg
import pytest
from hypothesis import settings

from drengine.store.catalogue.postgres.link import SCHEMA
from drengine.store.store import Store
from tests.postgres import Postgres, postgres_server
from tests.store import test_store
from tests.store.test_store_machine import StoreMachine

OTHERWISE = {
    "test_promotion_fences_the_old_generation_in_the_middle_of_a_stream": "appends learn of it within 250 ms; "
    "test_contract.py and test_races.py have the commit",
    "test_the_lease_of_a_dead_process_protects_nothing": "it ends after 10 s, see test_locks.py",
}
"""Tests of one host's files, and where the same is tried here."""
AT_ONCE = 3
"""Stores that one test makes, at most."""

store, source, tmp_path = test_store.store, test_store.source, test_store.tmp_path  # the fixtures


class Databases:
    """A few databases, which are emptied for each test: making one takes a second."""

    def __init__(self, server: Postgres) -> None:
        self._urls = [server.fresh_database() for _ in range(AT_ONCE)]
        self._next = 0

    def one(self) -> str:
        """An empty one, in turn."""
        url = self._urls[self._next % AT_ONCE]
        self._next += 1
        with psycopg.connect(url) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        return url


@contextmanager
def shared(databases: Databases) -> Iterator[None]:
    """Whatever store is made meanwhile has its catalogue in PostgreSQL."""
    plain = Store.create

    def create(*arguments: Any, **options: Any) -> Store:
        return plain(*arguments, **{"catalogued_in": databases.one(), **options})

    with mock.patch.object(Store, "create", staticmethod(create)):
        yield


@pytest.fixture(scope="module")
def databases(postgres: Postgres) -> Databases:
    return Databases(postgres)


@pytest.fixture(autouse=True)
def _shared(databases: Databases) -> Iterator[None]:
    with shared(databases):
        yield


def _taken_over() -> dict[str, Callable[..., None]]:
    found = {name: each for name, each in vars(test_store).items() if name.startswith("test_")}
    assert found.keys() >= OTHERWISE.keys()
    return {name: each for name, each in found.items() if name not in OTHERWISE}


globals().update(_taken_over())


class SharedStoreMachine(StoreMachine):
    """The machine, a few times."""

    def __init__(self) -> None:
        self.patches = ExitStack()
        if not _machines:
            server = _kept.enter_context(postgres_server())
            _machines.append(Databases(server))
        self.patches.enter_context(shared(_machines[0]))
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self.patches.close()


_machines: list[Databases] = []
_kept = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def _kept_server() -> Iterator[None]:
    with _kept:
        yield


SharedStoreMachine.TestCase.settings = settings(StoreMachine.TestCase.settings, max_examples=5)
TestSharedStoreMachine = SharedStoreMachine.TestCase
