"""Real processes, really killed: after each kill -9 the store is a prefix that holds whatever was acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from drengine.store.store import Store
from tests.crash.stamps import OPTIONS, check

SEED = 4
KILLS = 12


@pytest.mark.fault(1)
@pytest.mark.fault(4)
def test_a_writer_that_is_killed_again_and_again_never_loses_what_it_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = random.Random(SEED)
    path = tmp_path / "store"
    acknowledged = 0
    for _ in range(KILLS):
        command = [sys.executable, "-m", "tests.crash.stamps", str(path), str(SEED)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            try:
                for _ in range(chosen.choice((1, 2, 5, 20, 40))):
                    acknowledged = int(child.stdout.readline())
            finally:
                child.kill()
            # What it had still printed before the kill took effect was acknowledged as well.
            acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
        with Store.open(path, options=OPTIONS) as store:
            check(store, SEED, acknowledged)
    with capsys.disabled():
        print(f" [seed {SEED}: {KILLS} kills, {acknowledged} positions acknowledged]", end="")
    assert acknowledged > KILLS
