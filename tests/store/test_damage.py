"""Every flipped bit is found or harmless; what is damaged is refused, reported, and healed by what comes later."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from unittest import mock

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.damage import DamagedRange
from drengine.store.errors import (
    CATALOGUE_DAMAGED,
    DAMAGED,
    FENCED,
    NOT_A_STORE,
    STORE_IDENTITY_DAMAGED,
    STORE_VERSION,
)
from drengine.store.identity import IDENTITY_NAME
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from drengine.wire import payload
from tests.clock import ManualClock
from tests.sampling import SOME_OR_ALL, sampled
from tests.store.harness import Source, check_head, check_point, crash, scratch, tiny_store

SMALL = StoreOptions(segment_bytes_max=1500)
KEEP_NEWEST = RetentionPolicy(keep_all_seconds=0, steps=())


@pytest.fixture
def tmp_path():
    """In memory where there is such a place: these tests are about order, not about disks."""
    with scratch() as path:
        yield path


def raises(kind):
    return pytest.raises(DrengineError, check=lambda error: error.kind is kind)


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.fixture(scope="module")
def sample():
    """A closed store of a few segments, one of them compacted, one not sealed; and what it holds."""
    with scratch() as path:
        clock = ManualClock()
        with Store.create(path / "store", options=SMALL, clock=clock) as store:
            source = Source(store, root=8000, data=5001)
            with mock.patch.object(payload, "SHARED_FRAME_BYTES", 300):  # several frames in one small record
                source.write_together((1, 0, b"one frame " * 40), (1, 700, os.urandom(250)), (2, 9, b"another " * 60))
            for number in range(6):
                source.write(1, 0, os.urandom(500))
                source.write(1, number * 600, b"compressible" * 40)
                source.write(2, number * 100, 300)
                source.cut(f"p{number}")
                source.commit()
                clock.advance(3600)
            store.retain(RetentionPolicy(keep_all_seconds=8000, steps=()), clock.now_ns())
            store.compact()
            source.write(2, 100, os.urandom(200))
            source.cut("last")
            source.commit()
            crash(source.writer)
        yield path / "store", source


def served(path: Path, source: Source) -> str:
    """What a reader gets: ``same`` for exactly the model, else the id of an error. Anything else fails the test."""
    try:
        with Store.open(path, options=SMALL, read_only=True) as store:
            points = store.points("web1")
            for point in points:
                try:
                    check_point(store, point, source.points[point.id])
                except DrengineError as error:
                    assert error.kind is DAMAGED, error
                    return error.kind.id
            check_head(store, "web1", 1, source.committed)
            assert [point.id for point in points] == EXPECTED[str(source.name)]
    except DrengineError as error:
        return error.kind.id
    return "same"


EXPECTED: dict[str, list[str]] = {}


@pytest.fixture(scope="module", autouse=True)
def expected(sample):
    path, source = sample
    with Store.open(path, read_only=True) as store:
        EXPECTED["web1"] = [point.id for point in store.points("web1")]
    assert len(EXPECTED["web1"]) >= 3
    assert served(path, source) == "same"


def files(path: Path, suffix: str) -> list[Path]:
    return sorted(path.glob(f"segments/**/*{suffix}"))


@pytest.mark.fault(2)
@pytest.mark.fault(10)
@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_every_flipped_bit_of_a_segment_is_found_or_harmless(sample, every):
    path, source = sample
    seed = random.randrange(2**32)
    bits = random.Random(seed)
    found = 0
    for number, file in enumerate(files(path, ".seg")):
        size = file.stat().st_size
        for at in sampled(range(0, size, 2 if number == 0 else 17), every):
            bit = bits.randrange(8)
            flip(file, at, bit)
            outcome = served(path, source)
            flip(file, at, bit)
            assert outcome in ("same", "damaged"), (seed, file, at, bit, outcome)
            found += outcome == "damaged"
    assert found > 150 / every


@pytest.mark.fault(2)
def test_scrub_finds_every_flipped_bit_that_a_reader_could_meet(sample, tmp_path):
    path, source = sample
    bits = random.Random(7)
    for number, original in enumerate(files(path, ".seg")):
        for at in range(number, original.stat().st_size, 97):
            with scratch() as space:
                copy = space / "copy"
                shutil.copytree(path, copy)
                flip(copy / original.relative_to(path), at, bits.randrange(8))
                outcome = served(copy, source)
                with Store.open(copy, options=SMALL) as store:
                    report = store.scrub()
                    told = report.records_damaged or report.segments_repaired
                    assert told or outcome == "same", (original, at)
                    for point in store.points("web1"):
                        if not point.damaged:
                            check_point(store, point, source.points[point.id])
                    if report.segments_repaired:
                        again = store.scrub()
                        assert not again.segments_repaired and not again.records_damaged


@pytest.mark.fault(3)
def test_every_flipped_bit_of_the_catalogue_is_found_or_harmless(sample):
    path, source = sample
    with scratch() as space:
        copy = space / "copy"
        shutil.copytree(path, copy)
        Store.open(copy).close()
        file = copy / CATALOGUE_NAME
        assert not (copy / f"{CATALOGUE_NAME}-wal").exists(), "the last one to close empties the log"
        data = file.read_bytes()
        bits = random.Random(11)
        outcomes = set()
        used = [at for at in range(len(data)) if data[at]]
        for at in used[::4] + list(range(0, len(data), 997)):
            flip(file, at, bits.randrange(8))
            outcome = served(copy, source)
            outcomes.add(outcome)
            file.write_bytes(data)
            for suffix in ("-wal", "-shm"):
                (copy / f"{CATALOGUE_NAME}{suffix}").unlink(missing_ok=True)
            assert outcome in ("same", "catalogue-damaged", "store-version"), (at, outcome)
        assert "catalogue-damaged" in outcomes


def test_every_flipped_bit_of_the_identity_is_found(sample):
    path, source = sample
    file = path / IDENTITY_NAME
    for at in range(file.stat().st_size):
        for bit in range(8):
            flip(file, at, bit)
            outcome = served(path, source)
            flip(file, at, bit)
            assert outcome == STORE_IDENTITY_DAMAGED.id, (at, bit)


@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_every_flipped_bit_of_a_layer_is_harmless(sample, every):
    path, source = sample
    for file in files(path, ".map"):
        for at in sampled(range(0, file.stat().st_size, 3), every):
            flip(file, at, at % 8)
            assert served(path, source) == "same", (file, at)
            flip(file, at, at % 8)


@pytest.mark.fault(1)
@pytest.mark.fault(9)
def test_a_segment_cut_short_anywhere_is_found_or_its_tail_was_never_committed(sample):
    path, source = sample
    for file in files(path, ".seg"):
        data = file.read_bytes()
        for size in range(0, len(data), 41):
            file.write_bytes(data[:size])
            assert served(path, source) in ("damaged", "same")
        file.write_bytes(data + b"torn tail" * 20)
        assert served(path, source) == "same" or "0007" not in file.name
        file.write_bytes(data)
    assert served(path, source) == "same"


@pytest.mark.fault(2)
def test_damage_is_marked_reported_and_healed_by_what_the_source_sends_again(tmp_path):
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        source.write(1, 0, os.urandom(10_000), level=None)
        early = source.cut()
        source.write(1, 20_000, os.urandom(5_000), level=None)
        needs = source.cut()
        source.commit()
        file = next((tmp_path / "store").glob("segments/**/*.seg"))
        flip(file, file.stat().st_size - 1000, 3)
        report = store.scrub()
        assert len(report.records_damaged) == 1
        assert report.points_damaged == [("web1", needs)]
        assert store.damaged_ranges("web1") == [DamagedRange(1, 20_000, 5_000)]
        assert store.find_point("web1", PointSelector()).id == early
        source.write(1, 0, b"later good data")
        worse = source.cut()
        cut = source.commit()
        assert cut.points == (source.point(worse),)
        assert source.point(worse).damaged, "a point cut before the range came again needs it too"
        source.write(1, 20_000, source.disk.data[1][20_000:25_000])
        healed = source.cut()
        source.commit()
        assert not source.point(healed).damaged
        assert store.damaged_ranges("web1") == []
        check_point(store, source.point(healed), source.points[healed])
        check_point(store, source.point(early), source.points[early])
        assert not store.verify(source.point(needs)).intact
        assert store.verify(source.point(healed)).intact
        assert source.point(healed).verified_ns == store.context.clock.now_ns()
        with raises(DAMAGED):
            store.promote(source.point(needs), expected_generation=1)
        source.writer.close()


@pytest.mark.fault(10)
def test_compaction_never_copies_damaged_data(tmp_path):
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        source.write(1, 0, os.urandom(30_000), level=None)
        source.write(1, 100_000, os.urandom(40_000), level=None)
        source.commit()
        source.write(1, 100_000, os.urandom(40_000), level=None)
        source.cut()
        source.commit()
        file = sorted((tmp_path / "store").glob("segments/**/*.seg"))[0]
        flip(file, 5000, 1)
        before = file.read_bytes()
        report = store.compact()
        assert report.segments_skipped == 1 and file.read_bytes() == before
        source.writer.close()


@pytest.mark.fault(3)
def test_a_lost_catalogue_is_rebuilt_from_the_segments(sample):
    path, source = sample
    with scratch() as space:
        copy = space / "copy"
        shutil.copytree(path, copy)
        for name in copy.glob(f"{CATALOGUE_NAME}*"):
            name.unlink()
        with raises(CATALOGUE_DAMAGED):
            Store.open(copy)
        report = Store.rebuild(copy, options=SMALL)
        assert report.lost == [] and report.points == len(EXPECTED["web1"])
        assert served(copy, source) == "same"


@pytest.mark.fault(3)
def test_a_rebuild_keeps_the_damaged_catalogue_aside_and_a_lost_identity_comes_back(sample):
    path, source = sample
    with scratch() as space:
        copy = space / "copy"
        shutil.copytree(path, copy)
        (copy / CATALOGUE_NAME).write_bytes(b"rot" * 5000)
        (copy / IDENTITY_NAME).write_bytes(b"rot")
        report = Store.rebuild(copy, options=SMALL)
        assert report.kept_aside and (copy / report.kept_aside).read_bytes()[:3] == b"rot"
        assert (copy / IDENTITY_NAME).read_bytes() == (path / IDENTITY_NAME).read_bytes()
        assert served(copy, source) == "same"


def test_a_rebuild_of_something_else_is_refused(tmp_path):
    with raises(NOT_A_STORE):
        Store.rebuild(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_rebuild_does_not_bring_back_what_was_retired(tmp_path):
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        for _ in range(8):
            source.write(1, 0, os.urandom(50_000))
            source.cut()
            source.commit()
            store.context.clock.advance(3600)
        source.store.pin(source.point("1-3"), "keep")
        store.retain(KEEP_NEWEST, store.context.clock.now_ns())
        store.compact()
        kept = store.points("web1")
        source.writer.close()
    (tmp_path / "store" / CATALOGUE_NAME).unlink()
    report = Store.rebuild(tmp_path / "store")
    assert report.lost == []
    with Store.open(tmp_path / "store") as store:
        assert store.points("web1") == kept
        for point in kept:
            check_point(store, point, source.points[point.id])


def test_without_a_readable_manifest_what_compaction_dropped_is_refused_not_invented(tmp_path):
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        for _ in range(8):
            source.write(1, 0, os.urandom(50_000))
            source.write(1, 100_000, os.urandom(3_000))
            source.cut()
            source.commit()
            store.context.clock.advance(3600)
        store.retain(KEEP_NEWEST, store.context.clock.now_ns())
        store.compact()
        newest = store.points("web1")[-1].id
        source.writer.close()
    shutil.rmtree(tmp_path / "store" / "manifests")
    (tmp_path / "store" / CATALOGUE_NAME).unlink()
    Store.rebuild(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        for point in store.points("web1"):
            if not point.damaged:
                check_point(store, point, source.points[point.id])
        assert newest in [point.id for point in store.points("web1")]


@pytest.mark.fault(44)
@pytest.mark.fault(45)
def test_a_promotion_survives_a_lost_catalogue_even_before_its_first_write(tmp_path):
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        source.write_random(5)
        name = source.cut()
        source.commit()
        source.write_random(3)
        stale = source.cut()
        crash(source.writer)
        store.promote(source.point(name), expected_generation=1)
    (tmp_path / "store" / CATALOGUE_NAME).unlink()
    Store.rebuild(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        assert store.source("web1").generation == 2
        with raises(FENCED):
            store.writer("web1", generation=1)
        assert [point.id for point in store.points("web1")] == [name], f"{stale} was never committed"
        check_head(store, "web1", 2, source.points[name])


@pytest.mark.fault(2)
@pytest.mark.fault(9)
@pytest.mark.parametrize("how", ["missing", "empty", "header"])
def test_points_behind_a_lost_segment_are_refused_until_all_was_sent_again(tmp_path, how):
    with tiny_store(tmp_path) as store:
        source = Source(store, root=100_000)
        before = after = ""
        for number in range(6):
            source.write(1, number * 10_000, os.urandom(50_000))
            name = source.cut()
            before = before or name
            after = name
            source.commit()
        source.writer.close()
    victim = sorted((tmp_path / "store").glob("segments/**/*.seg"))[2]
    if how == "missing":
        victim.unlink()
    elif how == "empty":
        victim.write_bytes(b"")
    else:
        flip(victim, 20, 2)
    (tmp_path / "store" / CATALOGUE_NAME).unlink()
    report = Store.rebuild(tmp_path / "store")
    assert len(report.lost) >= 1
    with Store.open(tmp_path / "store") as store:
        names = {point.id: point for point in store.points("web1")}
        check_point(store, names[before], source.points[before])
        assert not names[before].damaged and names[after].damaged
        with raises(DAMAGED):
            store.view(names[after])
        with raises(DAMAGED):
            store.head_view("web1")
        assert store.find_point("web1", PointSelector()).sequence < names[after].sequence
        assert store.damaged_ranges("web1") == [DamagedRange(1, 0, 100_000)]
        source.store = store
        source.writer = store.writer("web1", generation=1)
        disk = bytes(source.disk.data[1])
        source.write(1, 0, disk)
        healed = source.cut()
        source.commit()
        source.writer.close()
        assert not source.point(healed).damaged
        check_point(store, source.point(healed), source.points[healed])
        check_head(store, "web1", 1, source.disk)
        assert store.damaged_ranges("web1") == []


def test_a_store_of_a_newer_version_is_refused_and_left_alone(sample):
    import msgspec
    import xxhash

    path, _ = sample
    with scratch() as space:
        copy = space / "copy"
        shutil.copytree(path, copy)
        line = (copy / IDENTITY_NAME).read_bytes().split(b"\n")[0]
        identity = msgspec.json.decode(line)
        identity["version"] = 2
        line = msgspec.json.encode(identity)
        (copy / IDENTITY_NAME).write_bytes(line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode() + b"\n")
        with raises(STORE_VERSION):
            Store.open(copy)
        with raises(STORE_VERSION):
            Store.rebuild(copy)


@pytest.mark.fault(53)
def test_a_symbolic_link_in_a_segments_place_is_not_followed(sample, tmp_path):
    path, source = sample
    with scratch() as space:
        copy = space / "copy"
        shutil.copytree(path, copy)
        victim = files(copy, ".seg")[0]
        shutil.copy(victim, tmp_path / "elsewhere")
        victim.unlink()
        victim.symlink_to(tmp_path / "elsewhere")
        for layer in files(copy, ".map"):
            layer.unlink()
        assert served(copy, source) != "same"


def test_a_store_on_a_disk_that_nobody_may_write_is_read_all_the_same(sample):
    path, source = sample
    with scratch() as space:
        space.chmod(0o755)
        copy = space / "copy"
        shutil.copytree(path, copy)
        Store.open(copy).close()
        for entry in (copy, *copy.rglob("*")):
            entry.chmod(0o555 if entry.is_dir() else 0o444)
        pid = os.fork()
        if pid == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                os._exit(0 if served(copy, source) == "same" else 1)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for entry in (copy, *copy.rglob("*")):
            entry.chmod(0o755)
        assert status == 0
        assert not list((copy / "locks").glob("lease-*"))
