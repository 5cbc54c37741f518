"""A second copy of a store: a prefix of the original at every moment, and a store to recover from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.care.retention import RetentionPolicy
from drengine.store.mirror.destination import opened_copy
from drengine.store.mirror.mirror import Mirror, MirrorOptions, PassReport
from drengine.store.mirror.pace import Pace
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import KEKS, TINY, Source, check_head, check_point, scratch, tiny_store

pytestmark = pytest.mark.usefixtures("at_rest")


@contextmanager
def mirrored(origin: Store, path: Path, **options: object) -> Iterator[Mirror]:
    keks = KEKS if origin.is_encrypted else None
    with opened_copy(origin, path, keks=keks, options=TINY, clock=origin.context.clock) as copy:
        mirror = Mirror(origin, copy, Pace(origin.context.clock), MirrorOptions(**options))  # type: ignore[arg-type]
        try:
            yield mirror
        finally:
            mirror.close()


def mirror_once(origin: Store, path: Path, **options: object) -> PassReport:
    with mirrored(origin, path, **options) as mirror:
        return mirror.run()


def open_copy(path: Path, *, read_only: bool = False) -> Store:
    return Store.open(path, options=TINY, clock=ManualClock(), read_only=read_only)


def check_copy(path: Path, source: Source, *, points: int | None = None) -> list[str]:
    """Every point that the copy has shows what the source's disk had then."""
    with open_copy(path, read_only=True) as copy:
        found = copy.points(source.name)
        for point in found:
            check_point(copy, point, source.points[point.id])
        if points is not None:
            assert len(found) == points
        return [point.id for point in found]


def test_a_copy_shows_every_point_and_the_head(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000, data=100_000)
        for _ in range(6):
            source.write_random(5)
            source.cut()
            source.commit()
        report = mirror_once(store, tmp_path / "copy")
        assert report.complete and not report.damaged
        assert check_copy(tmp_path / "copy", source) == [point.id for point in store.points("web1")]
        with open_copy(tmp_path / "copy") as copy:
            check_head(copy, "web1", 1, source.committed)
            assert all(copy.verify(point).intact for point in copy.points("web1"))


def test_passes_bring_only_what_is_new(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store, mirrored(store, tmp_path / "copy") as mirror:
        source = Source(store, root=400_000)
        for number in range(30):
            source.write_random(1)
            source.cut()
            source.commit()
            report = mirror.run()
            assert report.complete
            assert report.bytes < 80_000
            check_copy(tmp_path / "copy", source, points=number + 1)
        assert mirror.run().bytes == 0
