"""A command inherits little, and may run as somebody else."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

import pytest

from drengine.process import end_marked, run_command, start_marked
from drengine.process.environment import INHERITED, PASS_VARIABLE
from drengine.process.marked import KEY_VARIABLE

TELL = [sys.executable, "-Sc", "import json, os; print(json.dumps(dict(os.environ)))"]
SECRET = "DRENGINE_TEST_SECRET"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASS_VARIABLE, raising=False)
    monkeypatch.setenv(SECRET, "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")


def test_a_command_gets_what_it_is_told_and_nothing_else_of_ours() -> None:
    finished = run_command(TELL, timeout_seconds=30, environment={"GIVEN": "1"})
    found = json.loads(finished.output)
    assert "hunter2" not in finished.output
    assert set(found) <= {*INHERITED, "GIVEN"}
    assert (found["GIVEN"], found["PATH"]) == ("1", os.environ["PATH"])


def test_a_process_that_stays_neither(tmp_path: Path) -> None:
    mark, script = secrets.token_hex(8), TELL[2] + "; import sys; sys.stdout.flush(); import time; time.sleep(600)"
    place = {"output": tmp_path / "out", "directory": tmp_path}
    try:
        start_marked([*TELL[:2], script], "DR_TEST", mark, **place, environment={"GIVEN": "1"})
        while not (said := (tmp_path / "out").read_text()).endswith("\n"):
            pass
    finally:
        end_marked("DR_TEST", mark, grace_seconds=0)
    assert set(json.loads(said)) <= {*INHERITED, "GIVEN", "DR_TEST", KEY_VARIABLE}


def test_what_is_passed_on_by_name_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASS_VARIABLE, f"{SECRET} NOT_THERE")
    found = json.loads(run_command(TELL, timeout_seconds=30).output)
    assert found[SECRET] == "hunter2"
    assert not {"NOT_THERE", "AWS_SECRET_ACCESS_KEY"} & set(found)


@needs_root
def test_another_user_has_its_own_groups_and_home() -> None:
    script = "import os; print(os.getuid(), os.getgid(), os.getgroups(), os.environ['HOME'], os.environ['USER'])"
    finished = run_command(["/usr/bin/env", "python3", "-Sc", script], timeout_seconds=30, user="nobody",
                           environment={"PATH": "/usr/bin:/bin"})  # fmt: skip
    if finished.code == 127:
        pytest.skip("no Python that everybody may run")
    assert finished.output == "65534 65534 [65534] /nonexistent nobody"


def test_nobody_is_no_user() -> None:
    finished = run_command(["true"], timeout_seconds=5, user="no-such-user")
    assert (finished.ok, finished.code) == (False, 127)
    assert "no-such-user" in finished.output
