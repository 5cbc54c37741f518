"""A catalogue that is older than the segments: known, refused, rebuilt; nothing committed is ever deleted (fault 64).

A kill is played by going on with a copy of the directory as it is while everything is open: what SQLite has not
moved from its write-ahead log is still there, and nothing was closed in order.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drengine.model.errors import DrengineError
from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.epoch import EPOCH_SLOT, EPOCH_SLOTS, Epoch, EpochNote, pack_slot, parse_note
from drengine.store.catalogue.rows import RemovalRow
from drengine.store.catalogue.sqlite import CATALOGUE_NAME, SIDE_SUFFIXES
from drengine.store.names import EPOCH_NAME, MANIFESTS, SegmentPlace, segment_name
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import MEMORY_DIRECTORY, TINY, Disk, Source, check_point, crash, scratch

pytestmark = pytest.mark.fault(64)

CATALOGUE_FILES = (CATALOGUE_NAME, *(CATALOGUE_NAME + suffix for suffix in SIDE_SUFFIXES))
NO_POLICY = RetentionPolicy(0, ())
SALVAGE_POLICIES = (NO_POLICY, RetentionPolicy(), RetentionPolicy(keep_all_seconds=5, steps=()))


def open_store(path: Path) -> Store:
    return Store.open(path, options=TINY, clock=ManualClock())


def killed(path: Path, into: Path) -> Path:
    """What is left of a store whose processes are killed now."""
    shutil.copytree(path, into, ignore=shutil.ignore_patterns(f"{CATALOGUE_NAME}-shm", "lease-*"))
    return into


def save_catalogue(path: Path, into: Path) -> None:
    into.mkdir()
    for name in CATALOGUE_FILES:
        if (path / name).exists():
            shutil.copy2(path / name, into / name)


def put_back(saved: Path, path: Path, *, with_side_files: bool = False) -> None:
    for name in CATALOGUE_FILES:
        (path / name).unlink(missing_ok=True)
    for name in CATALOGUE_FILES if with_side_files else (CATALOGUE_NAME,):
        if (saved / name).exists():
            shutil.copy2(saved / name, path / name)


def segment_files(path: Path) -> dict[str, int]:
    return {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*.seg")}


def refused(path: Path, **options: bool) -> str:
    with pytest.raises(DrengineError, match=r"\[catalogue-damaged\]") as error:
        Store.open(path, options=TINY, **options)
    assert "drengine rebuild" in error.value.kind.hint
    return str(error.value)


def replicate(source: Source, points: int, *, seed: int = 0) -> None:
    for number in range(points):
        source.write_random(2)
        source.cut(f"{seed} {number}")
        source.commit()
        source.store.context.clock.advance(60)


def test_a_put_back_catalogue_is_refused_by_everybody_and_a_rebuild_brings_every_point_back():
    with scratch() as place:
        path = place / "store"
        with Store.create(path, options=TINY, clock=ManualClock()) as store:
            source = Source(store, root=200_000)
            replicate(source, 1)
            source.writer.close()
        save_catalogue(path, place / "saved")
        with open_store(path) as store:
            source.store, source.writer = store, store.writer("web1", generation=1)
            replicate(source, 50)
            source.writer.close()
        before = segment_files(path)
        assert len(before) > 7

        put_back(place / "saved", path)
        assert "older than the segments" in refused(path)
        refused(path, read_only=True)
        assert segment_files(path) == before, "nothing was deleted"

        assert Store.rebuild(path, options=TINY, clock=ManualClock()).lost == []
        with open_store(path) as store:
            source.store = store
            assert {point.id for point in store.points("web1")} == set(source.points)
            for point in store.points("web1"):
                check_point(store, point, source.points[point.id])


@pytest.mark.parametrize("noted", [True, False], ids=["epoch noted", "epoch lost as well"])
def test_a_lost_write_ahead_log_is_refused(noted):
    with scratch() as place:
        with Store.create(place / "store", options=TINY, clock=ManualClock()) as store:
            source = Source(store, root=200_000)
            replicate(source, 5)
            path = killed(place / "store", place / "killed")
            crash(source.writer)
        assert (path / f"{CATALOGUE_NAME}-wal").stat().st_size
        (path / f"{CATALOGUE_NAME}-wal").unlink()
        if not noted:
            (path / EPOCH_NAME).unlink()
        before = segment_files(path)
        refused(path)
        assert segment_files(path) == before
        assert Store.rebuild(path, options=TINY, clock=ManualClock()).lost == []
        with open_store(path) as store:
            assert {point.id for point in store.points("web1")} == set(source.points)


def test_a_catalogue_older_by_a_compaction_does_not_lose_the_new_revision():
    """The old catalogue names the revision that was replaced: the one that is there holds everything."""
    with scratch() as place:
        path = place / "store"
        clock = ManualClock()
        with Store.create(path, options=TINY, clock=clock) as store:
            source = Source(store, root=100_000)
            for number in range(20):
                source.write(1, 0, bytes([number + 1]) * 60_000, level=None)
                source.cut()
                source.commit()
                clock.advance(60)
            source.writer.close()
            save_catalogue(path, place / "saved")
            store.pin(store.points("web1")[4])
            store.retain(NO_POLICY, clock.now_ns())
            assert store.compact().segments_removed
            kept = {point.id for point in store.points("web1")}
        before = segment_files(path)
        put_back(place / "saved", path)
        refused(path)
        assert segment_files(path) == before
        assert Store.rebuild(path, options=TINY, clock=clock).lost == []
        with open_store(path) as store:
            assert {point.id for point in store.points("web1")} == kept
            for point in store.points("web1"):
                check_point(store, point, source.points[point.id])


def test_a_catalogue_from_before_a_promotion_does_not_bring_the_old_generation_back():
    with scratch() as place:
        path = place / "store"
        with Store.create(path, options=TINY, clock=ManualClock()) as store:
            source = Source(store, root=100_000)
            replicate(source, 2)
            source.writer.close()
            save_catalogue(path, place / "saved")
            store.promote(store.points("web1")[-1], expected_generation=1)
        put_back(place / "saved", path)
        refused(path)
        (path / EPOCH_NAME).unlink()
        assert "manifest" in refused(path), "without the epoch the manifest says it"
        Store.rebuild(path, options=TINY)
        with open_store(path) as store:
            assert store.source("web1").generation == 2


def test_segments_of_a_branch_that_the_catalogue_does_not_know_refuse_it():
    with scratch() as place:
        path = place / "store"
        Store.create(path, options=TINY, clock=ManualClock()).close()
        save_catalogue(path, place / "saved")
        with open_store(path) as store:
            source = Source(store, root=100_000)
            replicate(source, 2)
            source.writer.close()
        put_back(place / "saved", path)
        shutil.rmtree(path / MANIFESTS)
        (path / MANIFESTS).mkdir()
        (path / EPOCH_NAME).unlink()
        assert "does not know" in refused(path)


def test_no_transaction_begins_on_a_catalogue_that_became_older_while_it_was_open():
    with scratch() as place, Store.create(place / "store", options=TINY, clock=ManualClock()) as store:
        source = Source(store, root=100_000)
        replicate(source, 2)
        epoch = store.context.catalogue.epoch()
        EpochNote(place / "store").write(epoch._replace(number=epoch.number + 1))
        with pytest.raises(DrengineError, match=r"\[catalogue-damaged\]"):
            replicate(source, 1)
        with pytest.raises(DrengineError, match=r"\[catalogue-damaged\]"):
            store.compact()


def test_what_nobody_decided_on_is_set_aside_and_shown():
    """A file that looks like an old segment, one of another store, and one whose header is damaged."""
    with scratch() as place:
        clock = ManualClock()
        with Store.create(place / "store", options=TINY, clock=clock) as store:
            source = Source(store, root=100_000)
            replicate(source, 12)
            source.writer.close()
            rows = store.context.catalogue.segments("web1", 1)
            folder = place / "store/segments/web1/00000001"
            strange = {
                "00000001.0009.seg": b"not even a header, but somebody's data" * 10,
                f"{rows[-1].segment + 3:08d}.0001.seg": b"x" * 500,
            }
            for name, data in strange.items():
                if not name.startswith("00000001"):
                    (folder / name).write_bytes(data)
            with Store.create(place / "other", options=TINY, clock=clock) as other:
                foreign = Source(other, root=100_000)
                replicate(foreign, 1)
                foreign.writer.close()
            shutil.copy(next((place / "other").rglob("*.seg")), folder / f"{rows[-1].segment + 5:08d}.0001.seg")
            expected = [SegmentPlace("web1", 1, rows[-1].segment + more, 1) for more in (3, 5)]
            assert store.compact().set_aside == expected
            assert store.set_aside() == expected
            source.writer = store.writer("web1", generation=1)
            replicate(source, 3)
            source.writer.close()
            assert max(row.segment for row in store.context.catalogue.segments("web1", 1)) > rows[-1].segment + 5
            assert store.compact().set_aside == expected
            assert all((place / "store" / segment_name(*each)).exists() for each in expected)
            source.check()


def test_what_a_dead_writer_never_committed_goes_after_that_was_recorded():
    with scratch() as place:
        with Store.create(place / "store", options=TINY, clock=ManualClock()) as store:
            source = Source(store, root=200_000)
            replicate(source, 3)
            committed = set(segment_files(place / "store"))
            while len(segment_files(place / "store")) < len(committed) + 3:
                source.write_random()
            path = killed(place / "store", place / "killed")
            crash(source.writer)
        with open_store(path) as store:
            writer = store.writer("web1", generation=1)
            assert store.context.catalogue.removals("web1", 1) == []
            writer.close()
            assert store.set_aside() == []
            assert set(segment_files(path)) <= committed
            source.store = store
            for point in store.points("web1"):
                check_point(store, point, source.points[point.id])


def test_a_recorded_removal_that_was_interrupted_is_finished_and_its_number_not_given_out_meanwhile():
    with scratch() as place, Store.create(place / "store", options=TINY, clock=ManualClock()) as store:
        source = Source(store, root=200_000)
        replicate(source, 3)
        source.writer.close()
        newest = store.context.catalogue.segments("web1", 1)[-1].segment
        place_behind = SegmentPlace("web1", 1, newest + 1, 1)
        with store.context.catalogue.transaction():
            store.context.catalogue.put(RemovalRow(*place_behind))
        (place / "store" / segment_name(*place_behind)).write_bytes(b"decided" * 100)
        writer = store.writer("web1", generation=1)
        assert not (place / "store" / segment_name(*place_behind)).exists()
        assert store.context.catalogue.removals("web1", 1) == []
        source.writer = writer
        replicate(source, 1)
        assert store.context.catalogue.segments("web1", 1)[-1].segment > newest + 1
        source.writer.close()
        assert store.compact().set_aside == []


@pytest.mark.parametrize("torn", range(EPOCH_SLOT.size * EPOCH_SLOTS))
def test_a_flipped_byte_of_the_note_leaves_the_other_slot(torn):
    data = bytearray(pack_slot(Epoch(5, 8)) + pack_slot(Epoch(5, 7)))
    data[torn] ^= 0xFF
    assert parse_note(bytes(data)) == Epoch(5, 7 if torn < EPOCH_SLOT.size else 8)


def test_a_note_that_tells_of_two_lineages_is_none():
    assert parse_note(pack_slot(Epoch(5, 8)) + pack_slot(Epoch(6, 7))) is None


def test_a_copy_from_before_a_rebuild_is_refused_however_new_it_was():
    with scratch() as place:
        path = place / "store"
        with Store.create(path, options=TINY, clock=ManualClock()) as store:
            source = Source(store, root=100_000)
            replicate(source, 20)
            source.writer.close()
        save_catalogue(path, place / "saved")
        for part in (EPOCH_NAME, MANIFESTS):
            shutil.rmtree(path / part) if (path / part).is_dir() else (path / part).unlink()
        (path / MANIFESTS).mkdir()
        Store.rebuild(path, options=TINY, clock=ManualClock())
        put_back(place / "saved", path)
        assert "made anew" in refused(path)


class PutBackMachine(RuleBasedStateMachine):
    """Random histories of work, kills, saved and put-back catalogues and manifests, lost logs and lost notes.

    However it goes: the store either opens with every committed point, or it is refused and a rebuild brings them back.
    """

    def __init__(self) -> None:
        super().__init__()
        parent = MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
        self.place = Path(tempfile.mkdtemp(prefix="drengine-put-back-", dir=parent))
        self.clock = ManualClock()
        self.lives = 0
        self.path = self.place / "0"
        self.store = Store.create(self.path, options=TINY, clock=self.clock)
        self.source = Source(self.store, root=90_000, data=40_000)
        self.source.cut()
        self.source.commit()
        self.kept = dict(self.source.points)
        self.saved: list[Path] = []
        self.manifests_are_whole = True
        self.saved_manifests: list[Path] = []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.place, ignore_errors=True)

    # Work.

    @rule(writes=st.integers(1, 6), committed=st.booleans())
    def replicate(self, writes: int, committed: bool) -> None:
        self.source.write_random(writes)
        name = self.source.cut()
        self.lives_of.setdefault(name, []).append(self.source.points[name])
        if committed:
            self.source.commit()
            self.kept[name] = self.source.points[name]
            for each in self.uncommitted:
                self.kept[each] = self.source.points[each]
            self.uncommitted.clear()
        else:
            self.uncommitted.append(name)
        self.clock.advance(3)

    @initialize()
    def begin(self) -> None:
        self.uncommitted: list[str] = []
        self.lives_of = {name: [disk] for name, disk in self.source.points.items()}
        """For each cut, what each writer that made one of its name put in it: any but committed ones may come back."""

    @rule(policy=st.sampled_from(SALVAGE_POLICIES))
    def retain_and_compact(self, policy: RetentionPolicy) -> None:
        for point in self.store.retain(policy, self.clock.now_ns()):
            del self.kept[point.id]
        self.store.compact()

    @rule(data=st.data())
    def pin(self, data) -> None:
        self.store.pin(data.draw(st.sampled_from(self.store.points("web1"))))

    # What people and machines do to it.

    @rule()
    def save_catalogue(self) -> None:
        self.saved.append(self.place / f"saved-{len(self.saved)}")
        save_catalogue(self.path, self.saved[-1])

    @rule()
    def save_manifests(self) -> None:
        self.saved_manifests.append(self.place / f"manifests-{len(self.saved_manifests)}")
        shutil.copytree(self.path / MANIFESTS, self.saved_manifests[-1])

    @rule(
        data=st.data(),
        stop=st.sampled_from(["kill", "in order"]),
        catalogue=st.sampled_from(["as it is", "put back", "put back with its log", "log lost"]),
        note_lost=st.booleans(),
        manifests=st.sampled_from(["as they are", "as they are", "put back", "lost"]),
    )
    def stop_tamper_and_start(self, data, stop: str, catalogue: str, note_lost: bool, manifests: str) -> None:
        old = self.path
        self.lives += 1
        self.path = self.place / str(self.lives)
        if stop == "kill":
            killed(old, self.path)
            crash(self.source.writer)
            self.store.close()
        else:
            self.source.writer.close()
            self.store.close()
            shutil.copytree(old, self.path)
        shutil.rmtree(old)
        if catalogue.startswith("put back") and self.saved:
            saved = data.draw(st.sampled_from(self.saved))
            put_back(saved, self.path, with_side_files=catalogue.endswith("log"))
        elif catalogue == "log lost":
            (self.path / f"{CATALOGUE_NAME}-wal").unlink(missing_ok=True)
        if note_lost:
            (self.path / EPOCH_NAME).unlink()
        if manifests == "lost" or (manifests == "put back" and self.saved_manifests):
            shutil.rmtree(self.path / MANIFESTS)
            (self.path / MANIFESTS).mkdir()
            if manifests == "put back":
                shutil.copytree(
                    data.draw(st.sampled_from(self.saved_manifests)), self.path / MANIFESTS, dirs_exist_ok=True
                )
            self.manifests_are_whole = False
        self.start()

    def start(self) -> None:
        before = segment_files(self.path)
        try:
            self.store = Store.open(self.path, options=TINY, clock=self.clock)
        except DrengineError as error:
            assert error.kind.id == "catalogue-damaged", error
            assert segment_files(self.path) == before, "opening it deletes nothing"
            report = Store.rebuild(self.path, options=TINY, clock=self.clock)
            assert set(segment_files(self.path)) == set(before), "a rebuild deletes no segment"
            assert report.lost == [] or not self.manifests_are_whole
            self.store = Store.open(self.path, options=TINY, clock=self.clock)
            found = {point.id for point in self.store.points("web1")}
            # Whole cuts that were not committed may come back, and without manifests those that were retired.
            assert found >= set(self.kept)
            self.kept |= {name: self.disk_of(name) for name in found - set(self.kept)}
        else:
            assert {point.id for point in self.store.points("web1")} == set(self.kept)
        self.uncommitted = []
        self.source.store = self.store
        self.source.writer = self.store.writer("web1", generation=1)
        self.adopt_head()

    def disk_of(self, name: str) -> Disk:
        """The disk that a cut which came back shows: one of those that were sent under its name."""
        point = next(point for point in self.store.points("web1") if point.id == name)
        for disk in reversed(self.lives_of[name]):
            with suppress(AssertionError, DrengineError):
                check_point(self.store, point, disk)
                return disk
        assert point.damaged or not self.manifests_are_whole, f"{name} is nothing that was sent"
        return self.lives_of[name][-1]

    def adopt_head(self) -> None:
        """Go on from what is durable; the source sends everything anew where that cannot be read."""
        disk = Disk(self.source.disk.geometry)
        try:
            with self.store.head_view("web1") as view:
                disk.data = {v.volume: bytearray(view.read(v.volume, 0, v.size_bytes)) for v in disk.geometry}
            self.source.disk = disk
        except DrengineError:
            assert not self.manifests_are_whole
            for volume in disk.geometry:
                self.source.write(volume.volume, 0, volume.size_bytes)

    @precondition(lambda self: self.manifests_are_whole)
    @invariant()
    def every_committed_point_is_there_and_right(self) -> None:
        points = {point.id: point for point in self.store.points("web1")}
        assert set(points) == set(self.kept)
        for name, point in points.items():
            assert not point.damaged
            check_point(self.store, point, self.kept[name])

    @precondition(lambda self: not self.manifests_are_whole)
    @invariant()
    def every_committed_point_is_there_and_never_wrong(self) -> None:
        """Without manifests a removed segment looks like a lost one: points may be refused, never served wrong."""
        points = {point.id: point for point in self.store.points("web1")}
        assert set(points) == set(self.kept)
        for name, point in points.items():
            try:
                check_point(self.store, point, self.kept[name])
            except DrengineError as error:
                assert error.kind.id == "damaged"


PutBackMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestPutBackMachine = PutBackMachine.TestCase
