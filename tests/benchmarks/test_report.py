"""A figure that nobody measured must not look quick, and everything found out must be shown."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from benchmarks import works
from benchmarks.report import begin
from benchmarks.results import Contestant, Figure, Measured, Share, Table, contest
from benchmarks.text import aims_table, table_text


def test_a_contestant_that_fails_once_has_no_value_and_the_others_go_on() -> None:
    answers: Iterator[Measured | Exception] = iter([Measured(1.0), RuntimeError("the server went away")])

    def sometimes() -> Measured:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ours, peer = contest([Contestant("ours", lambda: Measured(2.0), ours=True), Contestant("peer", sometimes)], 3)
    assert (ours.value, ours.runs) == (2.0, (2.0, 2.0, 2.0))
    assert peer.value is None
    assert "the server went away" in peer.failed


def test_each_round_runs_in_another_order() -> None:
    order: list[str] = []

    def note(name: str) -> Measured:
        order.append(name)
        return Measured(1.0)

    contest([Contestant(name, lambda name=name: note(name)) for name in "abc"], 3)  # type: ignore[misc]
    assert "".join(order) == "abcbcacab"


def test_the_median_run_gives_bytes_and_note() -> None:
    runs = iter([Measured(3.0, 30, "slow"), Measured(1.0, 10, "quick"), Measured(2.0, 20, "middle")])
    (figure,) = contest([Contestant("one", lambda: next(runs))], 3)
    assert (figure.value, figure.wire_bytes, figure.note) == (2.0, 20, "middle")


@pytest.mark.parametrize(("higher", "verdict"), [(False, "short"), (True, "met")])
def test_an_aim_is_met_by_less_time_or_by_more_writes(higher: bool, verdict: str) -> None:
    figure = Figure("ours", 3.0, ours=True)
    table = Table("work", "Work", "s", (figure,), higher_is_better=higher, aims={"ours": 2.0}, baseline="ours")
    assert table.verdict(figure) == verdict
    assert verdict in table_text(table)


@pytest.mark.parametrize(
    ("higher", "speed", "aim", "verdict"), [(True, 1.5, 1.4, "met"), (False, 2 / 3, 2 / 0.7, "short")]
)
def test_an_aim_beside_a_peer_is_a_share_of_its_speed(higher: bool, speed: float, aim: float, verdict: str) -> None:
    """Three a second are one and a half times the speed of two a second; three seconds two thirds of that of two."""
    ours, peer = Figure("ours", 3.0, ours=True), Figure("peer", 2.0)
    shares = {"ours": Share("peer", 0.7)}
    table = Table("work", "Work", "s", (ours, peer), higher_is_better=higher, shares=shares)
    assert table.speed(ours) == pytest.approx(speed)
    assert table.aim("ours") == pytest.approx(aim)
    assert table.verdict(ours) == verdict
    report = begin(quick=True)
    report.tables.append(table)
    report.target_peaks["work"] = 3 << 20
    listed = aims_table(report)
    assert f"| {speed:.2f} | >= 0.7 | {verdict} |" in listed
    assert "| work | 3 MiB |" in listed


def test_a_peer_that_failed_leaves_no_aim() -> None:
    ours, peer = Figure("ours", 3.0, ours=True), Figure("peer", None, failed="not installed")
    table = Table("work", "Work", "s", (ours, peer), shares={"ours": Share("peer", 0.7)})
    assert (table.speed(ours), table.aim("ours"), table.verdict(ours)) == (None, None, "")


def test_a_failure_misses_its_aim_and_is_named_in_every_form() -> None:
    figure = Figure("ours", None, ours=True, failed="RuntimeError: no point came")
    table = Table("work", "Work", "s", (figure, Figure("peer", 1.0)), aims={"ours": 2.0}, baseline="ours")
    report = begin(quick=True)
    report.tables.append(table)
    report.failed["other"] = "it broke"
    assert table.verdict(figure) == "short"
    assert "no point came" in table_text(table)
    found = json.loads(report.to_json())
    assert found["tables"][0]["figures"][0]["value"] is None
    assert found["failed"] == {"other": "it broke"}


def test_the_page_needs_nothing_from_elsewhere_and_shows_the_failure() -> None:
    pytest.importorskip("matplotlib", reason="the page's plots need matplotlib (make bench installs it)")
    from benchmarks.page import render

    report = begin(quick=True)
    report.tables.append(
        Table("work", "A <work>", "s", (Figure("ours", 1.0, (0.9, 1.2)), Figure("peer", None, failed="it <broke>")))
    )
    page = render(report)
    assert "A &lt;work&gt;" in page
    assert "it &lt;broke&gt;" in page
    assert "<svg" in page
    assert "<script" not in page
    assert "src=" not in page


@pytest.mark.parametrize("name", works.WORKS)
def test_every_work_has_its_function(name: str) -> None:
    assert callable(works.load(name))
