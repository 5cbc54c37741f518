"""A second copy of a store: a prefix of the original at every moment, and a store to recover from."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.extents import Batch
from drengine.store.care.locking import seconds_left
from drengine.store.care.retention import RetentionPolicy
from drengine.store.context import StoreContext
from drengine.store.mirror.destination import opened_copy
from drengine.store.mirror.mirror import Mirror, MirrorOptions, PassReport
from drengine.store.mirror.pace import Pace, Stopped
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import KEKS, TINY, Source, batch, check_head, check_point, mark, scratch, tiny_store

pytestmark = pytest.mark.usefixtures("at_rest")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: these tests sync a lot."""
    with scratch() as path:
        yield path


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


def thinned(store: Store, source: Source) -> list[str]:
    """Three points of which retention then keeps the newest, and compaction what that shows."""
    names = []
    for fill in b"abc":
        source.write(1, 0, bytes([fill]) * 60_000, level=None)
        names.append(source.cut())
        source.commit()
        store.context.clock.advance(60)
    return names


def retire(store: Store) -> None:
    store.retain(RetentionPolicy(0, ()), store.context.clock.now_ns())
    store.compact()


def test_what_somebody_reads_at_the_copy_stays_until_it_was_read(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store, mirrored(store, tmp_path / "copy") as mirror:
        source = Source(store, root=400_000)
        names = thinned(store, source)
        mirror.run()
        with open_copy(tmp_path / "copy") as copy:
            point = copy.points("web1")[0]
            assert point.id == names[0]
            with copy.view(point) as view:
                retire(store)
                assert mirror.run().complete
                assert view.read(1, 0, 60_000) == b"a" * 60_000
                copy.context.records.forget_source("web1")
                assert view.read(1, 0, 60_000) == b"a" * 60_000
            check_copy(tmp_path / "copy", source, points=2)
            before = segment_bytes(tmp_path / "copy")
            assert mirror.run().complete
            check_copy(tmp_path / "copy", source, points=1)
            assert segment_bytes(tmp_path / "copy") < before
        assert segment_bytes(tmp_path / "copy") == segment_bytes(store.directory)


def segment_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.seg"))


def test_a_drill_at_the_copy_keeps_its_base_and_does_not_end_the_mirroring(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store, mirrored(store, tmp_path / "copy") as mirror:
        source = Source(store, root=400_000)
        names = thinned(store, source)
        mirror.run()
        with open_copy(tmp_path / "copy") as copy:
            info = copy.create_branch(copy.points("web1")[0])
            with copy.writable("web1", info.number, generation=info.generation) as view:
                view.write(1, 100_000, b"drilled")
                view.flush()
            retire(store)
            assert mirror.run().complete
            disk = source.points[names[0]].copy()
            disk.write(1, 100_000, b"drilled")
            check_head(copy, "web1", info.number, disk)
            # The original's own branches have other numbers.
            made = store.create_branch(store.points("web1")[-1])
            assert mirror.run().complete
            assert {each.number for each in copy.branches("web1")} == {1, made.number, info.number}
            copy.close_branch("web1", info.number)
            copy.retain(RetentionPolicy(0, ()), store.context.clock.now_ns())
            copy.compact()
            assert mirror.run().complete
        check_copy(tmp_path / "copy", source, points=1)


def test_a_promotion_at_the_copy_parts_it_and_the_mirror_leaves_it_alone(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        names = thinned(store, source)
        with mirrored(store, tmp_path / "copy") as mirror:
            mirror.run()
            with open_copy(tmp_path / "copy") as copy:
                made = copy.promote(copy.points("web1")[-1], expected_generation=1)
                with copy.writable("web1", made.number, generation=2) as view:
                    view.write(1, 0, b"recovered")
                    view.flush()
            source.write_random(5)
            source.cut()
            source.commit()
            with pytest.raises(DrengineError, match="mirror-parted"):
                mirror.run()
        with pytest.raises(DrengineError, match="mirror-parted"), mirrored(store, tmp_path / "copy"):
            pass
        disk = source.points[names[-1]].copy()
        disk.write(1, 0, b"recovered")
        with open_copy(tmp_path / "copy") as copy:
            check_head(copy, "web1", made.number, disk)
            copy.writer("web1", generation=2).close()


@pytest.mark.parametrize("doing", ["write", "pin", "source", "close", "forget"])
def test_only_the_mirror_changes_what_a_copy_has_of_its_original(tmp_path: Path, doing: str) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        thinned(store, source)
        mirror_once(store, tmp_path / "copy")
        with open_copy(tmp_path / "copy") as copy:
            point = copy.points("web1")[-1]
            steps = {
                "write": lambda: copy.writer("web1", generation=1),
                "pin": lambda: copy.pin(point),
                "source": lambda: copy.ensure_source("web2"),
                "close": lambda: copy.close_branch("web1", 1),
                "forget": lambda: copy.forget_empty("web1"),
            }
            with pytest.raises(DrengineError, match="store-is-copy"):
                steps[doing]()
            assert copy.detach()
            assert not copy.detach()
            with pytest.raises(DrengineError, match="mirror-parted"):
                mirror_once(store, tmp_path / "copy")
        check_copy(tmp_path / "copy", source, points=3)


def test_nothing_but_an_earlier_state_of_the_store_is_written_over(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        thinned(store, Source(store, root=400_000))
        with pytest.raises(DrengineError, match="not-its-copy"):
            mirror_once(store, store.directory)
        (tmp_path / "link").symlink_to(store.directory)
        with pytest.raises(DrengineError, match="not-its-copy"):
            mirror_once(store, tmp_path / "link")
        Store.create(tmp_path / "other").close()
        with pytest.raises(DrengineError, match="not-its-copy"):
            mirror_once(store, tmp_path / "other")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "letter.txt").write_text("dear")
        with pytest.raises(DrengineError, match="store-exists"):
            mirror_once(store, tmp_path / "full")
        mirror_once(store, tmp_path / "copy")
        with mirrored(store, tmp_path / "copy"), pytest.raises(DrengineError, match="mirror-busy"):
            mirror_once(store, tmp_path / "copy")


def test_a_shipped_disk_is_checked_and_only_the_difference_is_copied(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        for _ in range(4):
            source.write_random(8)
            source.cut()
            source.commit()
        shutil.copytree(store.directory, tmp_path / "shipped", ignore=shutil.ignore_patterns("*-shm", "lease-*"))
        source.write(1, 0, b"later" * 1000)
        source.cut()
        source.commit()
        # A disk that was dropped on the way.
        victim = sorted((tmp_path / "shipped").rglob("*.seg"))[1]
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        report = mirror_once(store, tmp_path / "shipped")
        assert report.complete and not report.damaged
        assert report.bytes < segment_bytes(store.directory) / 2
        check_copy(tmp_path / "shipped", source, points=5)
        with open_copy(tmp_path / "shipped") as copy:
            assert not copy.scrub().records_damaged
        assert mirror_once(store, tmp_path / "shipped").bytes == 0


def test_a_disk_with_data_of_its_own_is_no_shipped_copy(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        thinned(store, source)
        shutil.copytree(store.directory, tmp_path / "other", ignore=shutil.ignore_patterns("*-shm", "lease-*"))
        with open_copy(tmp_path / "other") as other:
            other.promote(other.points("web1")[-1], expected_generation=1)
        with pytest.raises(DrengineError, match="not-its-copy"):
            mirror_once(store, tmp_path / "other")


def test_a_locked_point_stays_at_the_copy_whatever_becomes_of_the_original(tmp_path: Path) -> None:
    clock = ManualClock()
    with Store.create(tmp_path / "store", options=TINY, clock=clock) as store:
        source = Source(store, root=400_000)
        names = thinned(store, source)
        store.lock(source.point(names[0]), 86_400)
        with mirrored(store, tmp_path / "copy") as mirror:
            mirror.run()
            copy = mirror._copy
            assert locked(copy) == {names[0]: 86_400}
            # Somebody with the original's files in his hands takes the point away there, and its data.
            catalogue = store.context.catalogue
            with catalogue.transaction():
                catalogue.remove(*catalogue.point_locks("web1"))
            retire(store)
            assert names[0] not in [point.id for point in store.points("web1")]
            clock.jump_wall(1000 * 86_400)
            assert mirror.run().complete
            check_copy(tmp_path / "copy", source, points=2)
            clock.advance(86_500)
            assert mirror.run().complete
            check_copy(tmp_path / "copy", source, points=1)
            assert locked(copy) == {}


def locked(context: StoreContext) -> dict[str, int]:
    return {f"{branch}-{sequence}": left for (branch, sequence), left in seconds_left(context, "web1").items()}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damage_in_the_original_never_reaches_a_good_copy(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store, mirrored(store, tmp_path / "copy") as mirror:
        source = Source(store, root=400_000)
        thinned(store, source)
        mirror.run()
        for file in store.directory.rglob("*.seg"):
            flip(file, file.stat().st_size // 2)
        assert store.scrub().records_damaged
        source.write(1, 300_000, b"later")
        source.cut()
        source.commit()
        assert mirror.run().complete
        check_copy(tmp_path / "copy", source, points=4)
        with open_copy(tmp_path / "copy") as copy:
            assert not copy.scrub().records_damaged
            assert all(copy.verify(point).intact for point in copy.points("web1"))


def test_what_cannot_be_copied_whole_is_told_marked_and_asked_for_again(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store, mirrored(store, tmp_path / "copy") as mirror:
        source = Source(store, root=400_000)
        names = thinned(store, source)
        first = min(store.directory.rglob("*.seg"))
        flip(first, first.stat().st_size // 2)
        store.context.records.forget_source("web1")
        report = mirror.run()
        assert report.complete and len(report.damaged) == 1
        with open_copy(tmp_path / "copy") as copy:
            marked = {point.id: point.damaged for point in copy.points("web1")}
            assert marked[names[0]] and not marked[names[-1]], marked
            with copy.view(copy.points("web1")[-1]) as view:
                assert view.read(1, 0, 60_000) == b"c" * 60_000
        assert store.context.catalogue.damage("web1"), "the original knows it, and asks its source"
        assert [point.damaged for point in store.points("web1")] == list(marked.values())
        # A copy that is damaged itself says so in points, too; new points that do not need it are whole.
        source.write(1, 0, b"d" * 60_000, level=None)
        source.cut()
        source.commit()
        assert mirror.run().complete
        with open_copy(tmp_path / "copy", read_only=True) as copy:
            assert not copy.points("web1")[-1].damaged


def test_a_file_that_the_original_has_lost_is_missing_in_the_copy_and_nothing_else(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        names = thinned(store, source)
        min(store.directory.rglob("*.seg")).unlink()
        report = mirror_once(store, tmp_path / "copy")
        assert report.complete and "no such file" in report.damaged[0]
        with open_copy(tmp_path / "copy") as copy:
            assert [point.id for point in copy.points("web1")] == names
            assert copy.points("web1")[0].damaged


def forge(source: Source, fill: bytes) -> None:
    """A write whose bytes are not what its agent hashed; all checksums, which the target makes, are right."""
    honest, other = batch((1, 0, fill * 60_000)), batch((1, 0, fill.swapcase() * 60_000))
    forged = Batch(honest.table, other.frames, other.payload)
    source.writer.append_batch(source.next, mark(source.next), forged, generation=source.generation)


@pytest.mark.parametrize("hashes", [True, False])
def test_hashes_find_what_checksums_do_not_and_no_good_point_shows_it(tmp_path: Path, *, hashes: bool) -> None:
    with tiny_store(tmp_path) as store, mirrored(store, tmp_path / "copy", hashes=hashes) as mirror:
        source = Source(store, root=400_000)
        source.write_random(3)
        good = source.cut()
        source.commit()
        report = mirror.run()
        assert report.complete and not report.damaged
        source.write_random(2)
        forge(source, b"a")
        bad = source.cut()
        source.write(1, 0, b"c" * 60_000)
        later = source.cut()
        source.commit()
        report = mirror.run()
        assert report.complete
        # Without them, a copy is no better than its original: the difference is what they are for.
        assert ["do not match their hashes" in text for text in report.damaged] == [True] * hashes
        with open_copy(tmp_path / "copy", read_only=True) as copy:
            marked = {point.id: point.damaged for point in copy.points("web1")}
            assert marked == {good: False, bad: hashes, later: False}
            check_point(copy, copy.points("web1")[2], source.points[later])
        assert bool(store.context.catalogue.damage("web1")) == hashes, "the original knows it, and asks its source"
        assert mirror.run().complete


@pytest.mark.parametrize("hashes", [True, False])
def test_a_shipped_disk_is_hashed_too(tmp_path: Path, *, hashes: bool) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        forge(source, b"a")
        bad = source.cut()
        source.commit()
        shutil.copytree(store.directory, tmp_path / "shipped", ignore=shutil.ignore_patterns("*-shm", "lease-*"))
        assert bool(mirror_once(store, tmp_path / "shipped", hashes=hashes).damaged) == hashes
        with open_copy(tmp_path / "shipped", read_only=True) as copy:
            assert {point.id: point.damaged for point in copy.points("web1")} == {bad: hashes}


def test_what_is_damaged_in_the_copy_is_not_healed_with_bytes_that_fail_their_hashes(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        forge(source, b"a")
        source.cut()
        source.commit()
        thinned(store, source)  # the segment is closed
        assert not mirror_once(store, tmp_path / "copy").damaged
        with open_copy(tmp_path / "copy") as copy:
            assert copy.scrub().records_damaged
        assert mirror_once(store, tmp_path / "copy").complete
        with open_copy(tmp_path / "copy") as copy:
            assert copy.points("web1")[0].damaged


def test_a_bandwidth_limit_is_kept_and_the_mirror_ends_within_a_chunk(tmp_path: Path) -> None:
    class Counted(ManualClock):
        """Goes on by what is waited for."""

    stop, clock = threading.Event(), Counted()
    waits: list[float] = []

    class Waiting:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            clock.advance(seconds)
            return stop.is_set()

        def is_set(self) -> bool:
            return stop.is_set()

    pace = Pace(clock, 1000, Waiting())  # type: ignore[arg-type]
    for _ in range(50):
        pace.passed(100)
    assert 4.5 <= clock.monotonic() <= 5.5
    clock.advance(1000)
    began = clock.monotonic()
    for _ in range(50):
        pace.passed(100)
    assert clock.monotonic() - began >= 4.5, "what was not used long ago is not used now"
    stop.set()
    with pytest.raises(Stopped):
        pace.passed(1)


@pytest.mark.parametrize("how", ["a bit", "all of it"])
def test_what_becomes_unreadable_in_the_copy_is_copied_anew(tmp_path: Path, how: str) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=400_000)
        thinned(store, source)
        mirror_once(store, tmp_path / "copy")
        victim = min((tmp_path / "copy").rglob("*.seg"))
        if how == "a bit":
            flip(victim, victim.stat().st_size // 2)
        else:
            victim.unlink()
        with open_copy(tmp_path / "copy") as copy:
            assert copy.scrub().records_damaged
            assert any(point.damaged for point in copy.points("web1"))
        assert mirror_once(store, tmp_path / "copy").complete
        with open_copy(tmp_path / "copy") as copy:
            assert not any(point.damaged for point in copy.points("web1"))
            assert not copy.scrub().records_damaged
        check_copy(tmp_path / "copy", source, points=3)
