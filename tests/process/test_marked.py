"""Processes are found by their mark, with what they started, and nothing else is."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drengine.process import end_marked, find_marked, start_marked

NOBODY = 65534
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


@dataclass
class Strangers:
    """Processes of another user of this host, who knows the name of an instance."""

    mark: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, program: str, **more: str) -> None:
        environment = {"PATH": "/usr/bin:/bin", "DR_TEST": self.mark, **more}
        process = subprocess.Popen([program, "600"], env=environment, user=NOBODY, group=NOBODY, extra_groups=[])
        while b"DR_TEST" not in Path(f"/proc/{process.pid}/environ").read_bytes():
            assert process.poll() is None
        self.started.append(process)

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def strangers() -> Iterator[Strangers]:
    if os.geteuid():
        pytest.skip("only root can be two users")
    made = Strangers(secrets.token_hex(8))
    yield made
    made.end()


def test_another_users_process_that_bears_the_name_is_not_taken_for_ours(tmp_path: Path, strangers: Strangers) -> None:
    """It could have a workload seem to run, and be the one that is asked to end."""
    strangers.start("sleep")
    strangers.start("sleep", DRENGINE_MARK_KEY="a guess")
    assert find_marked("DR_TEST", strangers.mark, tmp_path) == []
    start(tmp_path, strangers.mark)
    strangers.start("sleep", DRENGINE_MARK_KEY="another guess")
    strangers.start("sleep", DRENGINE_MARK_KEY="")
    assert len(find_marked("DR_TEST", strangers.mark, tmp_path)) == 1
    assert end_marked("DR_TEST", strangers.mark, tmp_path, grace_seconds=10)
    assert [each.poll() for each in strangers.started] == [None] * 4


def test_a_program_that_is_roots_by_its_mode_is_still_the_strangers(tmp_path: Path, strangers: Strangers) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        program = Path(folder) / "sleep"
        shutil.copy(shutil.which("sleep") or "", program)
        Path(folder).chmod(0o755)
        program.chmod(0o4755)
        strangers.start(str(program))
        status = Path(f"/proc/{strangers.started[0].pid}/status").read_text()
        assert re.search(r"^Uid:\t65534\t0\t", status, re.M), "it is none, on this file system"
        assert find_marked("DR_TEST", strangers.mark, tmp_path) == []


def test_a_workload_that_runs_as_another_user_is_found_by_the_key(tmp_path: Path, strangers: Strangers) -> None:
    try:
        start_marked(
            ["sleep", "600"],
            "DR_TEST",
            strangers.mark,
            output=tmp_path / "out",
            directory=tmp_path,
            user=pwd.getpwuid(NOBODY).pw_name,
        )
        (found,) = find_marked("DR_TEST", strangers.mark, tmp_path)
        assert Path(f"/proc/{found}").stat().st_uid == NOBODY
        assert find_marked("DR_TEST", strangers.mark) == []
        assert (tmp_path / "mark.key").stat().st_mode & 0o777 == 0o600
        key = (tmp_path / "mark.key").read_text()
        start(tmp_path, strangers.mark)
        assert (tmp_path / "mark.key").read_text() == key
    finally:
        assert end_marked("DR_TEST", strangers.mark, tmp_path, grace_seconds=10)


def test_what_an_older_release_started_without_a_key_is_still_found(tmp_path: Path, strangers: Strangers) -> None:
    with subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], "DR_TEST": strangers.mark}) as process:
        while b"DR_TEST" not in Path(f"/proc/{process.pid}/environ").read_bytes():
            assert process.poll() is None
        assert find_marked("DR_TEST", strangers.mark, tmp_path) == [process.pid]
        start(tmp_path, strangers.mark)
        assert len(find_marked("DR_TEST", strangers.mark, tmp_path)) == 2
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        end_marked("DR_TEST", strangers.mark, tmp_path, grace_seconds=10)
        reaper.join()


def test_a_process_that_changes_its_program_is_found_all_the_while(tmp_path: Path) -> None:
    """In execve(2) a process shows no environment: a workload that begins with `exec` seemed to have ended."""
    mark = secrets.token_hex(8)
    again = '[ "$1" -gt 0 ] && exec sh -c "$0" "$0" $(($1-1)); exec sleep 600'
    try:
        start_marked(["sh", "-c", again, again, "1000"], "DR_TEST", mark, output=tmp_path / "out", directory=tmp_path)
        looks = 0
        (process,) = find_marked("DR_TEST", mark, tmp_path)
        while b"sleep\0" not in Path(f"/proc/{process}/cmdline").read_bytes()[:6] or looks < 20:
            assert find_marked("DR_TEST", mark, tmp_path) == [process]
            looks += 1
    finally:
        end_marked("DR_TEST", mark, tmp_path, grace_seconds=0)
