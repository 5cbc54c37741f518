"""Fixtures: one server for a whole run of tests, a bucket for each. Imported by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3.server import S3Server, s3_server
from tests.s3.stores import use_keys


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server that many tests use: none kills it."""
    use_keys()
    with s3_server() as server:
        yield server


@pytest.fixture
def s3_of_its_own() -> Iterator[S3Server]:
    """A server that the test may kill."""
    use_keys()
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """An empty bucket of the shared server."""
    return s3.bucket()
