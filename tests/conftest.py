"""The order of the tests: files that take minutes begin first, so that none of them is left alone at the end."""

from __future__ import annotations

import pytest

LONG = ("tests/system/", "tests/docs/", "tests/crash/", "tests/agent/install/", "tests/agent/capture/ebpf/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))  # the sort is stable
