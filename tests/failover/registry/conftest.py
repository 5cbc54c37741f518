"""Tests of the registry run in SQLite and in a real PostgreSQL (tests/postgres.py), a database of its own for each."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Of a registry that does not exist yet; tests are parametrised by `kind`."""
    if kind == "sqlite":
        return str(tmp_path / "registry.sqlite")
    return str(request.getfixturevalue("postgres").fresh_database())
