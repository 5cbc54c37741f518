"""Every way in which a command can end: what a person sees, what a script sees, and the exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from drengine.model.errors import BAD_NAME, DrengineError
from drengine.terminal import app, main
from drengine.terminal.output import printable

ESCAPE = "\x1b[31mred\x1b[0m\nsecond line\udcff"


def program() -> typer.Typer:
    made = app("tool", "A tool.")

    @made.command()
    def refuse(json: bool = False) -> None:
        """Refuse."""
        raise DrengineError(BAD_NAME, f"the name {ESCAPE} is wrong")

    @made.command()
    def crash(json: bool = False) -> None:
        """Crash."""
        raise RuntimeError("secret detail\nof two lines")

    @made.command()
    def interrupt() -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    @made.command()
    def leave(code: int) -> None:
        """End with a code."""
        raise typer.Exit(code)

    @made.command()
    def work() -> None:
        """Succeed."""
        print("done")

    return made


def test_success_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(program(), ["work"]) == 0
    assert capsys.readouterr().out == "done\n"


def test_a_failure_is_one_line_and_a_hint_with_the_exit_code_of_its_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(program(), ["refuse"]) == BAD_NAME.exit_code
    out, err = capsys.readouterr()
    first, hint = err.splitlines()
    assert out == ""
    assert first.startswith("error: the name ")
    assert first.endswith("[bad-name]")
    assert hint == f"hint:  {BAD_NAME.hint}"
    assert first.isprintable(), "a name steered the terminal"


def test_for_a_script_a_failure_is_one_json_object_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(program(), ["refuse", "--json"]) == BAD_NAME.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    told = json.loads(err)
    assert (told["error"], told["exit_code"], told["hint"]) == ("bad-name", BAD_NAME.exit_code, BAD_NAME.hint)


def test_an_unexpected_failure_is_a_line_and_a_file_never_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("DRENGINE_DEBUG", raising=False)
    assert main(program(), ["crash"]) == 125
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.splitlines()[0] == "error: RuntimeError: secret detail of two lines [internal]"
    (report,) = tmp_path.iterdir()
    assert str(report) in err
    assert "Traceback" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0, "others may read the report"


def test_an_unexpected_failure_is_told_even_where_no_file_can_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert main(program(), ["crash", "--json"]) == 125
    assert json.loads(capsys.readouterr().err)["error"] == "internal"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["work", "--nope"], "No such option: --nope"),
        (["leave"], "Missing argument"),
        (["leave", "x"], "Invalid value for"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(program(), arguments) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert said in first
    assert first.endswith("[usage]")
    assert hint.startswith("hint:")


def test_asked_for_nothing_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(program(), []) == 2
    shown = capsys.readouterr()
    assert "A tool." in shown.out + shown.err
    assert "[usage]" not in shown.err


def test_version_and_help_are_successes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(program(), ["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2
    assert main(program(), ["-h"]) == 0


def test_ctrl_c_is_130_and_a_commands_own_code_is_kept() -> None:
    assert main(program(), ["interrupt"]) == 130
    assert main(program(), ["leave", "7"]) == 7


@given(st.text())
def test_what_is_printed_never_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)


def run(code: str, stdout: IO[bytes] | int) -> subprocess.CompletedProcess[bytes]:
    program = f"import sys, typer; from drengine.terminal import *\n{code}"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", program], check=False, timeout=60, env=buffered, stdout=stdout, stderr=subprocess.PIPE
    )


TALK = """
made = app("tool", "A tool.")
@made.command()
def talk(): print("x" * 100)
@made.command()
def tell(): emit_json({"x": 1})
sys.exit(main(made, [WHICH]))
"""


@pytest.mark.parametrize("which", ["talk", "tell"])
def test_output_on_a_full_disk_is_a_failure_with_its_own_id(which: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("wb") as full:
        done = run(TALK.replace("WHICH", repr(which)), full)
    assert done.returncode == 52
    assert done.stderr.splitlines()[0].endswith(b"[output-failed]")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("which", ["talk", "tell"])
def test_a_reader_that_leaves_early_ends_the_command_quietly(which: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(TALK.replace("WHICH", repr(which)), writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
