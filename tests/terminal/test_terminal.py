"""No failure reaches a person as a traceback; units are those that people read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from drengine.model.errors import DrengineError, error_kinds
from drengine.terminal import app as make_app
from drengine.terminal import emit_json, human_age, human_bytes, human_duration, human_time, main, show_table

FULL = next(kind for kind in error_kinds() if kind.id == "bad-point")


def _app() -> typer.Typer:
    made = make_app("try", "Tries.")

    @made.command()
    def fail(json: bool = typer.Option(False, "--json")) -> None:
        raise DrengineError(FULL, "line one\nline two")

    @made.command()
    def crash() -> None:
        raise RuntimeError("surprise")

    @made.command()
    def interrupt() -> None:
        raise KeyboardInterrupt

    @made.command()
    def fine() -> None:
        print("done")

    return made


def test_a_known_failure_is_one_line_with_id_hint_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_app(), ["fail"]) == FULL.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: line one line two [bad-point]\nhint:  {FULL.hint}\n"


def test_a_known_failure_is_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_app(), ["fail", "--json"]) == FULL.exit_code
    line = json.loads(capsys.readouterr().err)
    assert (line["error"], line["exit_code"]) == ("bad-point", FULL.exit_code)


def test_a_surprise_is_one_line_and_its_traceback_lies_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_app(), ["crash"]) == 125
    said = capsys.readouterr().err
    assert "Traceback" not in said
    report = Path(said.split("report it with ")[1].strip().rstrip("."))
    assert "surprise" in report.read_text()
    report.unlink()


def test_interrupts_successes_and_mistakes_have_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_app(), ["interrupt"]) == 130
    assert main(_app(), ["fine"]) == 0
    assert main(_app(), ["fien"]) == 2
    assert main(_app(), ["fine", "--what"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (12, "12 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
        (59.7, "1 min 0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_sizes_times_and_ages() -> None:
    assert human_bytes(0) == "0 B"
    assert human_bytes(1536) == "1.5 KiB"
    assert human_bytes(5 << 40) == "5.0 TiB"
    assert human_bytes(5000 << 40) == "5000.0 TiB"
    assert human_time(1_700_000_000_123_000_000) == "2023-11-14 22:13:20.123Z"
    assert human_age(10, 5) == "in the future"


def test_tables_are_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("a", "long"), [("1", "[red]x"), ("22", "y")])
    assert capsys.readouterr().out == "a   long\n1   [red]x\n22  y\n"


def test_json_takes_values_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Report:
        path: Path
        key: bytes

    emit_json([Report(Path("/a"), b"\x01")])
    assert json.loads(capsys.readouterr().out) == [{"path": "/a", "key": "01"}]
