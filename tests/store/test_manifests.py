"""Manifests of one source: a pass writes those that it needs, old ones of a whole store are read, no crash harms."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.blobs import Fault, FaultyStorage, LocalStorage, fail_from
from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.sqlite import CATALOGUE_NAME, SIDE_SUFFIXES
from drengine.store.names import EPOCH_NAME, MANIFESTS, manifest_name, manifests_of
from drengine.store.options import StoreOptions
from drengine.store.rebuild.manifest import newest_manifests, write_manifest
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source, scratch, tiny_store
from tests.store.make_samples import SAMPLE_OPTIONS
from tests.store.test_format import SAMPLES

KEEP_ONE = RetentionPolicy(0, ())
SMALL = StoreOptions(segment_bytes_max=60_000)


def names(path: Path) -> list[str]:
    return LocalStorage(path).list(f"{MANIFESTS}/")


def lose_catalogue(path: Path) -> None:
    for suffix in ("", *SIDE_SUFFIXES):
        (path / f"{CATALOGUE_NAME}{suffix}").unlink(missing_ok=True)
    (path / EPOCH_NAME).unlink(missing_ok=True)


def puts(storage: FaultyStorage) -> list[str]:
    return [call.name for call in storage.calls if call.operation == "put" and call.name.startswith(MANIFESTS)]


def with_points(store: Store, count: int, *sources: str, clock: ManualClock | None = None) -> None:
    for name in sources:
        source = Source(store, name, root=50_000)
        for _ in range(count):
            source.write(1, 0, random.Random(count).randbytes(40_000))
            source.cut()
            source.commit()
            if clock:
                clock.advance(2)
        source.writer.close()


def test_a_pin_writes_the_manifest_of_its_source_and_no_other(tmp_path: Path) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path / "store"))
    with tiny_store(tmp_path, storage=storage) as store:
        with_points(store, 3, "web1", "web2")
        store.pin(store.points("web2")[0])
        assert puts(storage) == [manifest_name("web2", 1)]


def test_retention_writes_a_manifest_of_what_it_changed_and_only_after_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    storage = FaultyStorage(LocalStorage(tmp_path / "store"))
    with Store.create(tmp_path / "store", options=SMALL, clock=clock, storage=storage) as store:
        for seconds, changed, written in (
            (1, ["web1", "web2"], ["web1", "web2"]),
            (1, ["web1"], []),
            (590, ["web2"], []),
            (20, ["web1"], ["web1"]),
            (-86_400, ["web1"], ["web1"]),  # a clock that was set back lets none wait
        ):
            for name in changed:
                with_points(store, 3, name, clock=clock)
            clock.jump_wall(seconds - 6 * len(changed))
            storage.calls.clear()
            assert {point.source for point in store.retain(KEEP_ONE, clock.now_ns())} == set(changed)
            assert [name.split("/")[2] for name in puts(storage)] == written, seconds


def test_data_goes_only_after_a_manifest_that_knows_every_retired_point(tmp_path: Path) -> None:
    clock = ManualClock()
    storage = FaultyStorage(LocalStorage(tmp_path / "store"))
    with Store.create(tmp_path / "store", options=SMALL, clock=clock, storage=storage) as store:
        for _ in range(3):
            with_points(store, 3, "web1", clock=clock)
            store.retain(KEEP_ONE, clock.now_ns())
        storage.calls.clear()
        assert store.compact().segments_removed
        changes = [call for call in storage.calls if call.operation in ("put", "create", "delete")]
        assert changes[0].operation == "put" and changes[0].name.startswith(manifests_of("web1"))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_manifest_of_a_whole_store_gives_way_to_one_of_each_source_at_every_crash(
    version: str, tmp_path: Path
) -> None:
    """A store of an earlier version writes its first manifest anew, and dies at each call: nothing comes back."""
    sample = SAMPLES / f"{version}-good"
    with scratch() as place:
        whole = names(sample)
        assert whole and not any("sources" in name for name in whole)
        for number in range(1, 60):
            path = place / f"{number}"
            shutil.copytree(sample, path)
            storage, failed = FaultyStorage(LocalStorage(path)), False
            with Store.open(path, options=SAMPLE_OPTIONS, clock=ManualClock()) as store:
                kept = [point.id for point in store.points("web1")]
            with Store.open(path, options=SAMPLE_OPTIONS, clock=ManualClock(), storage=storage) as store:
                storage.plan = fail_from(len(storage.calls) + number, Fault(errno.EIO), count=1000)
                try:
                    write_manifest(store.context, "web1")
                except DrengineError:
                    failed = True
            lose_catalogue(path)
            report = Store.rebuild(path, options=SAMPLE_OPTIONS, clock=ManualClock())
            assert report.lost == [] and report.manifests == 1, number
            with Store.open(path, options=SAMPLE_OPTIONS, clock=ManualClock()) as store:
                assert [point.id for point in store.points("web1")] == kept
                assert store.find_point("web1", PointSelector()).label == "newest"
            if not failed:
                break
            shutil.rmtree(path)
        else:
            pytest.fail("it never came to an end")
        assert number > 4
        assert names(path) and not set(names(path)) & set(whole)


def test_a_source_of_eight_digits_is_no_manifest_of_a_whole_store(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        (tmp_path / "store" / MANIFESTS / "00000001").write_bytes(b"an old one, damaged")
        with_points(store, 2, "00000001", "sources")
        store.pin(store.points("00000001")[0])
        assert names(tmp_path / "store") == [manifest_name("00000001", 1), manifest_name("sources", 1)]
        found, unreadable = newest_manifests(store.context.storage, store.identity, store.context.keys)
        assert sorted(found) == ["00000001", "sources"] and unreadable == []


def test_of_a_source_whose_newest_manifest_is_rotten_the_one_before_counts_and_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with tiny_store(tmp_path) as store:
        with_points(store, 3, "web1", "web2")
        for point in store.points("web1"):
            store.pin(point)
        store.pin(store.points("web2")[0])
    (path / manifest_name("web1", 3)).write_bytes(b"rotten")
    lose_catalogue(path)
    report = Store.rebuild(path, options=TINY, clock=ManualClock())
    assert report.lost == [f"{manifest_name('web1', 3)} is not readable: retired points may come back as damaged"]
    assert report.manifests == 2
    with Store.open(path, options=TINY) as store:
        assert [point.pinned for point in store.points("web1")] == [True, True, False]


def test_a_forgotten_source_leaves_no_manifest(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        store.ensure_source("web1")
        write_manifest(store.context, "web1")
        assert names(tmp_path / "store")
        assert store.forget_empty("web1")
        assert names(tmp_path / "store") == []
