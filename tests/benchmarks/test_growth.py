"""The simulation of growth: the store takes its sources for its own, and no pass grows faster than they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.growth import plots
from benchmarks.growth.measure import Site, indexes_read_a_day, measure, roots_at
from benchmarks.growth.prices import Policy, Prices, requests_a_day
from benchmarks.growth.shape import GIB, MIB, NOW, Shape
from drengine.model.points import PointSelector

SMALL = Shape(copied_bytes=256 * MIB, changed_bytes=512 * MIB)


def test_a_synthetic_source_is_one_that_the_store_reads_and_verifies(tmp_path: Path) -> None:
    site = Site(tmp_path, SMALL, 2, 2)
    with site.opened() as store:
        assert [info.name for info in store.sources()] == site.names
        point = store.find_point(site.names[1], PointSelector())
        with store.view(point) as view:
            assert view.read(1, 0, 1 << 20) == bytes(1 << 20)
        assert store.set_aside() == []
        stats = store.stats()
        assert stats.points == 2 * len(SMALL.kept_now)
        assert stats.plain_bytes == pytest.approx(2 * SMALL.stored_bytes, rel=0.1)


def test_it_keeps_the_points_that_the_default_retention_keeps() -> None:
    ages = [NOW - moment for moment in Shape().kept_now]
    assert ages == sorted(ages, reverse=True)
    assert sum(age <= 600 for age in ages) == 601
    assert all(moment % 86_400 == 0 for moment, age in zip(Shape().kept_now, ages, strict=True) if age > 86_400)


def test_every_figure_is_there_and_what_a_pass_takes_follows_the_sources(tmp_path: Path) -> None:
    """By counts, not by time: what a pass writes and reads for each source is the same in a larger store."""
    few, more = (measure(tmp_path, SMALL, sources, samples=sources) for sources in (2, 6))
    assert few.keys() == more.keys()
    for figure in ("retention_with_manifests_written_bytes", "retention_with_manifests_puts"):
        assert more[figure] / 6 == pytest.approx(few[figure] / 2, rel=0.1), figure
    assert 0 < more["judging_opens"] < len(SMALL.spans), "a pass used to look at all"
    assert more["retention_written_bytes"] == 0 and "compaction_opens" not in more
    for figure in ("manifest_written_bytes", "point_opens", "point_read_bytes"):
        assert more[figure] == pytest.approx(few[figure], rel=0.1), figure
    results = {2: few, 6: more}
    drawn = plots.draw(tmp_path, results, results)
    assert [path.stem for path in drawn] == list(plots.PLOTS)
    assert all(path.read_text(encoding="utf-8").count("<svg") == 1 for path in drawn)
    json.dumps(few)


def test_compaction_looks_at_little_of_a_source_in_a_day() -> None:
    shape = Shape(copied_bytes=8 * GIB, changed_bytes=4 * GIB)
    segments = len(shape.spans)
    assert len(roots_at(shape, NOW)) == len(shape.kept_now)
    assert indexes_read_a_day(shape) < 288 * segments / 10, "each pass used to look at all"


def test_prices_follow_what_is_asked() -> None:
    figures = {"sources": 1000.0, "segments": 1e6, "stored_bytes": 100.0 * (1 << 40), "indexes_read_a_day": 1e6}
    held, local = (requests_a_day(figures, Shape(), Policy(acks_objects=each)) for each in (True, False))
    assert held["puts"] - local["puts"] == 1000 * 86_400
    assert Prices().requests_day(1000, 1000) == pytest.approx(0.0054)
    assert Prices().storage_month(100 * (1 << 40)) == pytest.approx(50 * 1024 * 0.023 + 50 * 1024 * 0.022)
