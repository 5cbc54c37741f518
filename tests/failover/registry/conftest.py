"""One PostgreSQL for all tests of the registry, a database of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failover.registry.rig import fresh_database, postgres_server
from tests.system.postgres import Server


@pytest.fixture(scope="package")
def postgres() -> Iterator[tuple[Server, str]]:
    with postgres_server() as started:
        yield started


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Of a registry that does not exist yet; tests are parametrised by `kind`."""
    if kind == "sqlite":
        return str(tmp_path / "registry.sqlite")
    return fresh_database(*request.getfixturevalue("postgres"))
