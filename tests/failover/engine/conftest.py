from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.process import find_marked
from tests.failover.engine.disks import disks_served
from tests.failover.engine.prompt import Typed
from tests.recovery.replica import make


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    make(tmp_path / "store")
    with disks_served(tmp_path / "store", tmp_path / "nbd.sock"):
        yield Typed(tmp_path, capsys)
    for pid in find_marked("WHOSE", str(tmp_path)):
        subprocess.run(["kill", "-9", str(pid)], check=False)
