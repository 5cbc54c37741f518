"""Processes are found by their mark, with what they started, and nothing else is."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import pytest

from drengine.process import end_marked, find_marked, start_marked

STUBBORN = "import signal, sys, subprocess, time; signal.signal(15, signal.SIG_IGN); "
WITH_CHILD = STUBBORN + "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"


def start(folder: Path, mark: str, script: str = "import time; time.sleep(600)") -> None:
    start_marked([sys.executable, "-c", script], "DR_TEST", mark, output=folder / "out", directory=folder)


def test_a_started_process_is_found_at_once_and_others_are_not(tmp_path: Path) -> None:
    one, other = secrets.token_hex(8), secrets.token_hex(8)
    try:
        for _ in range(5):
            start(tmp_path, one)
        assert len(find_marked("DR_TEST", one)) == 5
        assert not find_marked("DR_TEST", one[:-1])
        assert not find_marked("DR_TEST", other)
    finally:
        assert end_marked("DR_TEST", one, grace_seconds=10)
    assert not find_marked("DR_TEST", one)


@pytest.mark.parametrize("grace", [0.0, 0.3])
def test_the_stubborn_and_their_children_are_killed(tmp_path: Path, grace: float) -> None:
    mark = secrets.token_hex(8)
    start(tmp_path, mark, WITH_CHILD)
    while len(find_marked("DR_TEST", mark)) < 2:
        pass
    assert not end_marked("DR_TEST", mark, grace_seconds=grace)
    assert not find_marked("DR_TEST", mark)


def test_what_ends_at_once_is_no_reason_to_wait(tmp_path: Path) -> None:
    start(tmp_path, secrets.token_hex(8), "raise SystemExit('gone')")
    assert (tmp_path / "out").read_text().strip() in {"gone", ""}


def test_a_missing_program_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such"):
        start_marked(["/no-such"], "DR_TEST", "x", output=tmp_path / "o", directory=tmp_path)
