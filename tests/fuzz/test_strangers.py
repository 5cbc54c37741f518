"""A short campaign, which judges no latency: `make fuzz` does, on a machine that has time for it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.strangers import ATTACKS

ROOT = Path(__file__).parents[2]
SECONDS = 10
LONGEST_SECONDS = 280


@pytest.mark.timeout(LONGEST_SECONDS + 20)
def test_daemons_under_attack_live_within_their_bounds_and_lose_nothing() -> None:
    seed = secrets.randbelow(2**31)
    words = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--seed", str(seed), "--loose", "--json"]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    print(done.stderr)
    found = json.loads(done.stdout)
    assert found["problems"] == [], f"seed {seed}"
    assert done.returncode == 0
    assert set(found["told"]) == set(ATTACKS), "every attack came to its end"
    assert [name for name, told in found["told"].items() if not told.get("rounds")] == [], "and did something"
    assert found["writes"] > 1
    assert all(each["attacked"]["count"] for each in found["honest"].values())


def test_a_campaign_that_nothing_answers_is_no_success() -> None:
    words = [sys.executable, "-m", "tests.fuzz", "--only", "nothing of this name"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
