"""Whether a program could be started, without starting it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drengine.process import run_command
from drengine.process.programs import program_fault


def script(folder: Path, *, mode: int = 0o755, first: str = "#!/bin/sh") -> str:
    place = folder / "program"
    place.write_text(f"{first}\nexit 0\n")
    place.chmod(mode)
    return str(place)


@pytest.mark.parametrize(
    ("mode", "first", "fault"),
    [
        (0o755, "#!/bin/sh", ""),
        (0o644, "#!/bin/sh", "is not executable"),
        (0o755, "#!/no/such/shell", "wants /no/such/shell"),
    ],
)
def test_what_is_said_is_what_starting_it_shows(tmp_path: Path, mode: int, first: str, fault: str) -> None:
    program = script(tmp_path, mode=mode, first=first)
    said = program_fault(program)
    assert fault in said
    assert run_command([program], timeout_seconds=10).ok is (said == "")


def test_a_program_that_is_nowhere() -> None:
    assert "is not on the path" in program_fault("no-such-program")
    assert program_fault("/no/such/program") == "/no/such/program is not there"
    assert program_fault("true") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes others")
def test_another_user_needs_the_way_to_it_as_well(tmp_path: Path) -> None:
    program = script(tmp_path)
    tmp_path.chmod(0o700)
    assert "not executable for nobody" in program_fault(program, user="nobody")
    assert program_fault("/bin/true", user="nobody") == ""
    assert program_fault(program, user="root") == ""
    assert "no user" in program_fault(program, user="nobody-here")
    assert not run_command([program], timeout_seconds=10, user="nobody").ok
