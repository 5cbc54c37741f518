"""How far hydration is, as details tell it and as people read it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drengine.cli.carrying import hydration_lines
from drengine.failover.drivers.hydrated import current_hydration
from drengine.failover.drivers.move import GIVEN_UP, MOVED, MOVES, Move
from drengine.nbd.hydrator import Progress, keep_progress


def test_details_and_lines_say_how_far_each_disk_is(tmp_path: Path) -> None:
    assert current_hydration(tmp_path) == {}
    (tmp_path / "hydration").mkdir()
    keep_progress(tmp_path / "hydration/data.json", Progress(100, 100))
    keep_progress(tmp_path / "hydration/log.json", Progress(0, 100, "No space left on device"))
    keep_progress(tmp_path / "hydration/more.json", Progress(0, 100, "Input/output error"))
    keep_progress(tmp_path / "hydration/root.json", Progress(25, 100))
    moves = {
        "data": Move(MOVED, seconds=61.0, swap_seconds=0.02),
        "log": Move(GIVEN_UP, reason="No space left on device"),
        "root": Move(),
    }
    (tmp_path / MOVES).write_bytes(msgspec.json.encode(moves))
    details = current_hydration(tmp_path)
    assert details["hydrated"] == {"data": 1.0, "log": 0.0, "more": 0.0, "root": 0.25}
    assert msgspec.convert(details["moves"], dict[str, Move])["data"].swap_seconds == 0.02
    assert hydration_lines(details) == [
        "data is read locally since 1 min 1 s after the launch",
        "log goes on with the branch, its local copy was given up: No space left on device",
        "more goes on with the branch, its local copy was given up: Input/output error",
        "root is local to 25%",
    ]


def test_a_report_that_is_cut_short_is_none(tmp_path: Path) -> None:
    (tmp_path / MOVES).write_bytes(b'{"data": {"sta')
    assert current_hydration(tmp_path) == {}
