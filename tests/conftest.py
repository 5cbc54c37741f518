"""Which tests run side by side, and in which order.

A file's tests stay together. Tests that mount, attach disks or make mount namespaces run one after another: a new
namespace holds on to what others have mounted, and their disks are busy then. What takes longest begins first.
"""

from __future__ import annotations

import pytest

MACHINE = (
    "tests/agent/capture/ebpf/",
    "tests/agent/cuts/",
    "tests/agent/install/",
    "tests/agent/standby/",
    "tests/docs/",
    "tests/field/",
    "tests/linux/",
    "tests/recovery/",
    "tests/system/",
    "tests/crash/test_small_disk.py",
    "tests/failover/engine/test_real_parts.py",
    "tests/store/test_users.py",
    "tests/agent/capture/test_backing.py",
    "tests/agent/daemon/test_adopt.py",
    "tests/agent/doctor/test_gather.py",
    "tests/agent/failback/test_reverse_live.py",
    "tests/nbd/test_real_clients.py",
    "tests/nbd/test_hydration.py",
    "tests/target/test_store_away.py",
    "tests/terminal/test_streams.py",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Before pytest-xdist reads the groups, which it does at the end of the collection."""
    file = item.nodeid.partition("::")[0]
    item.add_marker(pytest.mark.xdist_group("machine" if file.startswith(MACHINE) else file))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(MACHINE))  # the sort is stable
