"""What people read and what machines read."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.terminal import (
    emit_json,
    human_age,
    human_bytes,
    human_duration,
    human_time,
    note,
    progress_bar,
    show_table,
)


class Colour(enum.StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Report:
    name: str
    digest: bytes
    path: Path
    colour: Colour
    marks: frozenset[int]
    below: tuple[Report, ...] = ()


def test_values_become_one_json_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    inner = Report("in\nner", b"\x01\xff", Path("/x"), Colour.RED, frozenset({2, 1}))
    emit_json(Report("outer", b"", Path(), Colour.RED, frozenset(), (inner,)))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    below = json.loads(out)["below"][0]
    assert below == {"name": "in\nner", "digest": "01ff", "path": "/x", "colour": "red", "marks": [1, 2], "below": []}


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        emit_json(object())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.25, "0.25 s"),
        (12.4, "12 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@given(st.floats(0, 1e9))
def test_any_duration_has_a_text_with_small_parts_below_their_unit(seconds: float) -> None:
    words = human_duration(seconds).split()
    limits = {"s": 60, "min": 60, "h": 24, "d": 11575}
    for amount, unit in zip(words[::2], words[1::2], strict=True):
        assert 0 <= float(amount) < limits[unit] or (unit == "s" and amount == "60")


def test_moments_are_utc_and_never_rounded_into_the_future() -> None:
    assert human_time(1_700_000_000_999_999_999) == "2023-11-14 22:13:20.999Z"
    assert human_time(0) == "1970-01-01 00:00:00.000Z"


def test_an_age_knows_that_clocks_disagree() -> None:
    assert human_age(5 * 10**9, 12 * 10**9) == "7.00 s"
    assert human_age(12 * 10**9, 5 * 10**9) == "in the future"


def test_elsewhere_than_at_a_terminal_a_table_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "size"), [("data", "1.0 GiB"), ("l", "2 B")])
    assert capsys.readouterr().out == "name  size\ndata  1.0 GiB\nl     2 B\n"


def test_a_name_can_not_break_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name",), [("a\n\x1b[2Jb",)])
    assert capsys.readouterr().out.splitlines() == ["name", "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2Jb"]


def test_notes_and_progress_stay_off_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    note("by the way")
    with progress_bar("working") as advance:
        advance(1, 2)
    assert capsys.readouterr() == ("", "by the way\n")
