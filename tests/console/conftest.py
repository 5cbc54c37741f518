"""One served API for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.console.rig import Api, served


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with served(tmp_path_factory.mktemp("console")) as made:
        yield made
