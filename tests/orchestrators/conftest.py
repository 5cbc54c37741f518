"""A site for each test, with a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrators.rig import Rig, rig
from tests.postgres import Postgres


@pytest.fixture
def site(tmp_path: Path, postgres: Postgres) -> Iterator[Rig]:
    with rig(tmp_path, postgres.fresh_database()) as made:
        yield made
