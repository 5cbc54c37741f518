"""A second copy in a bucket of a real S3 server: it grows, is gone on with, and outlives its own directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drengine.store.blobs.s3.options import ACK_OBJECT, S3Options
from drengine.store.care.retention import RetentionPolicy
from drengine.store.mirror import Mirror, Pace, opened_copy
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.s3.server import S3Server
from tests.s3.stores import place, stored_in
from tests.store.harness import TINY, Source, check_head, check_point

OPTIONS = S3Options(ack=ACK_OBJECT)


@contextmanager
def mirrored(origin: Store, path: Path, where: str) -> Iterator[tuple[Mirror, Store]]:
    clock = origin.context.clock
    with opened_copy(origin, path, options=TINY, clock=clock, place=where, storage_options=OPTIONS) as copy:
        mirror = Mirror(origin, copy, Pace(clock))
        yield mirror, copy
        mirror.close()


def check(copy: Store, source: Source) -> None:
    found = copy.points("web1")
    assert [point.id for point in found] == [point.id for point in source.store.points("web1")]
    for point in found:
        check_point(copy, point, source.points[point.id])
    check_head(copy, "web1", 1, source.committed)
    assert not copy.scrub().records_damaged


def test_a_copy_in_a_bucket_is_a_store_also_without_its_directory(tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.bucket()
    where = place(s3.endpoint, bucket)
    clock = ManualClock()
    with Store.create(tmp_path / "store", options=TINY, clock=clock) as store:
        source = Source(store, root=300_000)
        for _ in range(3):  # each time by another process, as it were
            with mirrored(store, tmp_path / "copy", where) as (mirror, copy):
                for _ in range(2):
                    source.write_random(2)
                    source.cut()
                    source.commit()
                    clock.advance(60)
                    assert mirror.run().complete
                check(copy, source)
        store.retain(RetentionPolicy(90, ()), clock.now_ns())
        store.compact()
        with mirrored(store, tmp_path / "copy", where) as (mirror, copy):
            assert mirror.run().complete
            check(copy, source)
        report = Store.rebuild(
            tmp_path / "again",
            options=TINY,
            clock=clock,
            storage_options=OPTIONS,
            stored_in=stored_in(s3.endpoint, bucket),
        )
        assert not report.lost
        with Store.open(tmp_path / "again", options=TINY, clock=clock, storage_options=OPTIONS) as again:
            assert {point.id for point in again.points("web1")} >= {point.id for point in store.points("web1")}
            for point in again.points("web1"):
                check_point(again, point, source.points[point.id])
