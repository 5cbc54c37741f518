"""Which tests may run side by side (`make test`): all but those that use the machine as a whole.

Tests that mount, attach disks or make mount namespaces run one after another, before the others: a new namespace
holds on to what others have mounted, and their disks are busy then.
"""

from __future__ import annotations

import os
import signal

import pytest

from drengine.process.environment import PASS_VARIABLE
from tests.postgres import postgres
from tests.s3.fixtures import bucket, s3, s3_of_its_own

__all__ = ["bucket", "postgres", "s3", "s3_of_its_own"]

os.environ.setdefault(PASS_VARIABLE, "PYTHONPATH DR_TEST_SITE DR_TEST_GUEST DR_TEST_SHOP DRENGINE_FIELD")
# Commands of runbooks under test use what lies here, and whatever they start bears the mark by which it is ended.
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` would have programs under test ignore it

MACHINE = (
    "tests/agent/capture/ebpf/",
    "tests/agent/capture/test_backing.py",
    "tests/agent/cuts/",
    "tests/agent/daemon/test_adopt.py",
    "tests/agent/doctor/test_gather.py",
    "tests/agent/failback/test_reverse_live.py",
    "tests/agent/install/test_commands.py",
    "tests/agent/install/test_host.py",
    "tests/agent/inventory/test_look.py",
    "tests/agent/standby/",
    "tests/failover/drivers/test_qemu_move.py",
    "tests/linux/",
    "tests/store/test_users.py",
    "tests/target/test_store_away.py",
)

LONGEST = (
    "tests/crash/test_crash.py",
    "tests/docs/test_commands.py",
    "tests/system/",
    "tests/fleet/test_processes.py",
    "tests/s3/",
    "tests/fuzz/",
    "tests/orchestrators/",
    "tests/failover/registry/",
    "tests/failover/engine/",
    "tests/monitoring/",
    "tests/security/test_doors.py",
    "tests/agent/install/test_onefile.py",
    "tests/store/",
)
"""Files of long tests, which begin first: one that begins last is waited for by an idle machine."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what uses the machine as a whole."""
    if item.nodeid.startswith(MACHINE):
        item.add_marker(pytest.mark.machine)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first (pytest-xdist is told to keep the order: Makefile)."""
    items.sort(key=lambda item: next((n for n, place in enumerate(LONGEST) if item.nodeid.startswith(place)), 99))
