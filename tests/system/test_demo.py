"""`make demo` with everything on: enrolment, TLS, identities, signed orders, encryption; nothing lies in clear."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from demo.disks import KNOWN_BYTES
from demo.guard import places_of_known_plaintext

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_the_whole_story_with_everything_on() -> None:
    words = [sys.executable, "-m", "demo", "--guarded", "--json", "--seed", "7"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    told = json.loads(done.stdout)
    assert told["ok"], told
    assert (told["guarded"], told["in_clear"]) == (True, [])


def test_what_lies_in_clear_is_found(tmp_path: Path) -> None:
    known = random.Random(7).randbytes(KNOWN_BYTES)
    for name, start in (("store/segment", KNOWN_BYTES // 2), ("orchestrator/journal", 0), ("elsewhere/image", 0)):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"before" + known[start : start + 4096] + b"behind")
    assert places_of_known_plaintext(tmp_path, 7) == ["store/segment", "orchestrator/journal"]
    assert places_of_known_plaintext(tmp_path, 8) == []
