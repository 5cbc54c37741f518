"""What a store promises, story by story."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from pathlib import Path

import pytest

from drengine.model.errors import BAD_EXTENTS, BAD_NAME, DrengineError
from drengine.model.extents import Extent, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, PointSelector, VolumeGeometry
from drengine.store.answers import point_answer
from drengine.store.care.compaction import CompactionReport
from drengine.store.care.retention import RetentionPolicy
from drengine.store.errors import (
    BRANCH_BUSY,
    DAMAGED,
    FENCED,
    MAINTENANCE_BUSY,
    NOT_A_STORE,
    POINT_IN_USE,
    SEQUENCE_GAP,
    STORE_EXISTS,
    STORE_READ_ONLY,
    UNKNOWN_BRANCH,
    UNKNOWN_POINT,
)
from drengine.store.store import Store
from drengine.wire.payload import make_batch
from tests.store.harness import Source, batch, check_head, check_point, crash, geometry, mark, scratch, tiny_store

KEEP_NEWEST = RetentionPolicy(keep_all_seconds=0, steps=())


@pytest.fixture
def tmp_path():
    """In memory where there is such a place: these tests are about order, not about disks."""
    with scratch() as path:
        yield path


def raises(kind):
    return pytest.raises(DrengineError, check=lambda error: error.kind is kind)


def files(store: Store, suffix: str = ".seg") -> list[str]:
    return [name for name in store.context.storage.list("segments") if name.endswith(suffix)]


@pytest.fixture
def store(tmp_path):
    with tiny_store(tmp_path) as made:
        yield made


@pytest.fixture
def source(store):
    made = Source(store, root=300_000, data=100_001)
    yield made
    made.writer.close()


def test_points_show_what_was_written_before_them_and_the_head_everything_durable(source):
    for number in range(8):
        source.write_random(5)
        source.cut(f"p{number}")
        source.commit()
    source.write_random(3)
    source.commit()
    source.check()
    labels = [point.label for point in source.store.points("web1")]
    assert labels == [f"p{number}" for number in range(8)]


def test_a_closed_store_keeps_none_of_its_files_open(source):
    """Or its file system could not be unmounted before the garbage collector comes by."""
    source.reshape(data=100_000)
    source.write(1, 0, b"x" * 4096)
    source.cut()
    source.commit()
    directory = source.store.context.directory
    before = files_open_below(directory / "segments")
    gc.disable()
    try:
        with Store.open(directory, read_only=True) as store:
            with store.view(store.find_point(source.name, PointSelector())) as view:
                assert view.read(1, 0, 4096) == b"x" * 4096
            assert files_open_below(directory / "segments") > before, "what looks finds open files"
        assert files_open_below(directory / "segments") == before
    finally:
        gc.enable()


def files_open_below(directory):
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(each.readlink()))
    return sum(link.startswith(f"{directory}/") for link in links)


def test_nothing_is_visible_before_the_commit(source):
    source.write_random(3)
    source.cut()
    assert source.store.points("web1") == []
    assert source.writer.durable.sequence == 0
    source.commit()
    assert len(source.store.points("web1")) == 1
    assert source.writer.durable.mark == mark(source.writer.durable.sequence)


@pytest.mark.fault(32)
def test_a_repeated_position_is_ignored(source):
    source.write(1, 0, b"one")
    before = source.next
    source.writer.append_batch(before - 1, mark(before - 1), batch((1, 0, b"two")), generation=1)
    assert source.next == before
    source.commit()
    source.check()


@pytest.mark.fault(11)
@pytest.mark.fault(33)
def test_a_missing_position_is_refused(source):
    with raises(SEQUENCE_GAP):
        source.writer.append_batch(source.next + 1, mark(9), batch((1, 0, b"x")), generation=1)
    source.write(1, 0, b"still usable")
    source.commit()
    source.check()


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    "extent",
    [
        Extent(1, ExtentKind.ZERO, 300_000, 1),
        Extent(1, ExtentKind.ZERO, 299_999, 2),
        Extent(1, ExtentKind.ZERO, 0, 0),
        Extent(1, ExtentKind.ZERO, 2**63, 2**63),
        Extent(3, ExtentKind.ZERO, 0, 1),
        Extent(1, ExtentKind.DROPPED, 0, 1),
        Extent(1, 9, 0, 1),
        Extent(1, ExtentKind.DATA, 65_535, 2, bytes(16)),
        Extent(1, ExtentKind.DATA, 0, 9, bytes(16)),
        Extent(1, ExtentKind.ZERO, 0, 4, b"d" * 16),
        Extent(1, ExtentKind.DISCARD, 0, 4, bytes(15) + b"d"),
    ],
)
def test_an_extent_that_breaks_a_rule_is_refused_before_it_is_written(source, extent):
    payload = b"xx" if extent.kind == ExtentKind.DATA else b""
    bad = make_batch([extent], payload, None)
    with raises(BAD_EXTENTS):
        source.writer.append_batch(source.next, mark(1), bad, generation=1)
    source.write(1, 0, b"fine")
    source.commit()
    source.check()


@pytest.mark.parametrize(
    "act",
    [
        lambda w: w.append_cut(2, mark(2), Cut(2**63, PointKind.QUIET), generation=1),
        lambda w: w.append_cut(2, mark(2), Cut(-1, PointKind.QUIET), generation=1),
        lambda w: w.append_cut(2, mark(2), Cut(0, PointKind.QUIET, "x" * 2000), generation=1),
        lambda w: w.append_cut(2, Mark(bytes(16), 2**63), Cut(0, PointKind.QUIET), generation=1),
        lambda w: w.append_cut(2, Mark(bytes(15), 0), Cut(0, PointKind.QUIET), generation=1),
        lambda w: w.append_geometry(2, mark(2), geometry(a=1) * 2, generation=1),
        lambda w: w.append_geometry(2, mark(2), geometry(**{f"v{n}": 1 for n in range(60_000)}), generation=1),
    ],
)
def test_values_that_no_catalogue_could_hold_are_refused_before_they_are_written(source, act):
    with raises(BAD_EXTENTS):
        act(source.writer)
    source.cut("fine")
    source.commit()
    source.check()


@pytest.mark.fault(25)
def test_a_resized_volume_keeps_its_old_size_in_old_points_and_grows_with_zeros(source):
    source.write(1, 0, b"x" * 300_000)
    old = source.cut()
    source.reshape(root=100_000, data=100_001)
    small = source.cut()
    source.reshape(root=400_000, data=100_001)
    grown = source.cut()
    source.commit()
    source.check()
    assert [source.point(name).geometry[0].size_bytes for name in (old, small, grown)] == [
        300_000,
        100_000,
        400_000,
    ]
    with source.store.view(source.point(grown)) as view:
        assert view.read(1, 100_000, 300_000) == bytes(300_000)


@pytest.mark.fault(24)
def test_zeroed_ranges_and_holes_read_as_zeros_and_are_told_apart(source):
    source.write(1, 0, b"x" * 1000)
    source.write(1, 500, 100)
    source.commit()
    with source.store.head_view("web1") as view:
        assert list(view.extents(1)) == [
            (0, 500, "data"),
            (500, 100, "zero"),
            (600, 400, "data"),
            (1000, 299_000, "hole"),
        ]
        assert view.read(1, 400, 300) == b"x" * 100 + bytes(100) + b"x" * 100
        buffer = bytearray(b"?" * 300)
        view.read_into(1, 400, buffer)
        assert buffer == view.read(1, 400, 300)


@pytest.mark.fault(28)
def test_digests_are_of_what_is_read_and_cut_off_at_the_odd_tail(source):
    from drengine.wire.payload import digest

    source.write_random(20)
    source.commit()
    with source.store.head_view("web1") as view:
        for volume, size in ((1, 300_000), (2, 100_001)):
            count = size // 4096 + 3
            found = view.digests(volume, 0, 4096, count)
            expected = b"".join(
                digest(source.committed.data[volume][at * 4096 : (at + 1) * 4096]) for at in range(count)
            )
            assert found == expected


def test_reopening_starts_a_new_segment_and_goes_on_where_it_was(source):
    for _ in range(4):
        source.write_random(2)
        source.cut()
        source.commit()
        source.writer.close()
        source.writer = source.store.writer("web1", generation=1)
        assert source.writer.durable.sequence == source.next - 1
    source.check()


@pytest.mark.fault(1)
def test_what_a_killed_writer_left_behind_is_not_read_and_not_appended_to(source):
    source.write_random(3)
    source.cut()
    source.commit()
    kept = source.committed.copy()
    durable = source.writer.durable
    source.write_random(30)
    crash(source.writer)
    source.disk = kept.copy()
    source.writer = source.store.writer("web1", generation=1)
    assert source.writer.durable == durable
    source.write_random(3)
    source.commit()
    source.check()


@pytest.mark.fault(44)
def test_promotion_fences_the_old_generation_in_the_middle_of_a_stream(source):
    source.write_random(3)
    name = source.cut()
    source.commit()
    source.write_random(2)
    branch = source.store.promote(source.point(name), expected_generation=1)
    assert (branch.generation, branch.base_sequence, branch.role) == (2, int(name.split("-")[1]), "promoted")
    with raises(FENCED):
        source.write_random(1)
    with raises(FENCED):
        source.writer.commit(generation=1)
    source.writer.close()
    with raises(FENCED):
        source.store.writer("web1", generation=1)
    with raises(FENCED):
        source.store.writer("web1", generation=2, branch=1)
    check_head(source.store, "web1", branch.number, source.points[name])


@pytest.mark.fault(44)
def test_a_commit_that_raced_with_a_promotion_is_refused_whole(source):
    source.write_random(3)
    name = source.cut()
    source.commit()
    durable = source.store.branches("web1")[0].durable_sequence
    source.write_random(2)
    late = source.cut()
    source.writer._version = -1
    # The promotion comes after the append has looked and before the commit's transaction.
    original = source.writer._sync
    source.writer._sync = lambda parts: (
        original(parts),
        source.store.promote(source.point(name), expected_generation=1),
    )
    with raises(FENCED):
        source.commit()
    assert source.store.branches("web1")[0].durable_sequence == durable
    assert late not in [point.id for point in source.store.points("web1")]


@pytest.mark.fault(43)
def test_of_many_promoters_one_wins(source):
    source.write_random(3)
    name = source.cut()
    source.commit()
    point, path = source.point(name), source.store.context.directory
    won, lost, barrier = [], [], threading.Barrier(6)

    def promote():
        with Store.open(path) as mine:
            barrier.wait()
            try:
                won.append(mine.promote(point, expected_generation=1))
            except DrengineError as error:
                lost.append(error.kind)

    threads = [threading.Thread(target=promote) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and lost == [FENCED] * 5
    assert source.store.source("web1").generation == 2
    assert source.store.source("web1").active_branch == won[0].number


@pytest.mark.fault(43)
def test_two_processes_promote_and_one_wins(source):
    source.write_random(3)
    name = source.cut()
    source.commit()
    point, path = source.point(name), source.store.context.directory
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                with Store.open(path) as mine:
                    mine.promote(point, expected_generation=1)
                status = 0
            except DrengineError as error:
                status = 1 if error.kind is FENCED else 2
            finally:
                os._exit(status)
        children.append(pid)
    statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
    assert statuses == [0, 1]
    assert source.store.source("web1").generation == 2


def test_a_branch_has_one_writer(source):
    with raises(BRANCH_BUSY):
        source.store.writer("web1", generation=1)


@pytest.mark.fault(62)
def test_a_drill_changes_neither_the_trunk_nor_its_point_and_goes_away(source):
    source.write_random(5)
    name = source.cut()
    source.commit()
    drill = source.store.create_branch(source.point(name), role="drill", label="friday")
    view = source.store.writable("web1", drill.number, generation=drill.generation)
    disk = source.points[name].copy()
    for number in range(30):
        data = bytes([number + 1]) * 9000
        view.write(1, number * 5000, data)
        disk.write(1, number * 5000, data)
        assert view.read(1, 0, 300_000) == disk.data[1]
    view.discard(1, 1000, 200_000)
    disk.write(1, 1000, 200_000)
    point = view.cut(PointKind.WRITE_ORDER, "in the drill")
    check_point(source.store, point, disk)
    source.write_random(2)
    source.cut()
    source.commit()
    source.points[point.id] = disk
    source.check()
    view.close()
    assert source.store.find_point("web1", PointSelector()).branch == 1
    source.store.close_branch("web1", drill.number)
    with raises(UNKNOWN_BRANCH):
        source.store.writable("web1", drill.number, generation=drill.generation)
    source.store.retain(RetentionPolicy(), source.store.context.clock.now_ns())
    source.store.compact()
    assert not [file for file in files(source.store) if f"/{drill.number:08d}/" in file]
    source.check()


def test_the_active_branch_cannot_be_closed(source):
    source.writer.close()
    with raises(POINT_IN_USE):
        source.store.close_branch("web1", 1)


def test_what_was_not_flushed_to_a_branch_is_gone_and_what_was_is_there(source):
    source.write_random(3)
    name = source.cut()
    source.commit()
    branch = source.store.promote(source.point(name), expected_generation=1)
    view = source.store.writable("web1", branch.number, generation=2)
    view.write(1, 10, b"flushed")
    view.flush()
    view.write(1, 10, b"LOST IT")
    assert view.read(1, 10, 7) == b"LOST IT"
    view.close()
    again = source.store.writable("web1", branch.number, generation=2)
    assert again.read(1, 10, 7) == b"flushed"
    again.close()


def test_points_are_found_by_id_latest_and_time(source):
    clock = source.store.context.clock
    names = []
    for _ in range(3):
        source.write_random(1)
        names.append(source.cut())
        source.commit()
        clock.advance(60)
    find = source.store.find_point
    second = source.point(names[1])
    assert find("web1", PointSelector()).id == names[2]
    assert find("web1", PointSelector.parse(names[0])).id == names[0]
    assert find("web1", PointSelector(before_ns=second.time_ns)).id == names[1]
    assert find("web1", PointSelector(before_ns=second.time_ns - 1)).id == names[0]
    with raises(UNKNOWN_POINT):
        find("web1", PointSelector(branch=1, sequence=999))
    with raises(UNKNOWN_POINT):
        find("web1", PointSelector(before_ns=5))
    branch = source.store.promote(second, expected_generation=1)
    assert find("web1", PointSelector()).id == names[1], "what lies behind the base is not on the new branch"
    assert branch.parent == 1


@pytest.mark.fault(70)
def test_the_time_that_verifying_takes_does_not_grow_with_the_size_that_is_declared():
    """An exbibyte, zeroed as a whole, with data at its ends and across the border of two windows."""
    exbibyte = 1 << 60
    with scratch() as place, tiny_store(place) as store:
        store.ensure_source("huge")
        writer = store.writer("huge", generation=1)
        writer.append_geometry(1, mark(1), (VolumeGeometry(7, "huge", "x", exbibyte),), generation=1)
        writer.append_batch(2, mark(2), batch((7, 0, exbibyte)), generation=1)
        pieces = ((7, 0, b"a" * 5000), (7, (1 << 30) - 100, b"b" * 200), (7, exbibyte - 4096, b"c" * 4096))
        writer.append_batch(3, mark(3), batch(*pieces), generation=1)
        writer.append_cut(4, mark(4), Cut(5, PointKind.QUIET), generation=1)
        writer.commit(generation=1)
        writer.close()
        report = store.verify(store.points("huge")[0])
        assert report.intact
        assert report.bytes_read == 5000 + 200 + 4096


@pytest.mark.fault(73)
def test_before_a_time_means_nothing_that_either_clock_calls_later(source):
    """A clock that is an hour back calls new data old; one that is ahead calls old data new."""
    clock = source.store.context.clock
    names = [source.cut()]
    source.commit()
    clock.advance(60)
    deadline_ns = clock.now_ns() - 1
    for told_ns in (deadline_ns - 3600 * 10**9, deadline_ns + 3600 * 10**9):
        source.write_random(1)
        names.append(source.cut(time_ns=told_ns))
        source.commit()
    find = source.store.find_point
    assert find("web1", PointSelector(before_ns=deadline_ns)).id == names[0]
    for name in names:
        shown = point_answer(source.point(name)).time
        assert find("web1", PointSelector.parse(f"before:{shown}")).id == name


@pytest.mark.fault(12)
def test_a_point_being_read_survives_retention_and_compaction(source):
    source.write(1, 0, b"old" * 30_000)
    name = source.cut()
    source.commit()
    for _ in range(6):
        source.write(1, 0, os.urandom(90_000))
        source.cut()
        source.commit()
        source.store.context.clock.advance(3600)
    view = source.store.view(source.point(name))
    now_ns = source.store.context.clock.now_ns()
    with Store.open(source.store.context.directory, clock=source.store.context.clock) as other:
        removed = other.retain(KEEP_NEWEST, now_ns)
        assert name not in [point.id for point in removed] and len(removed) == 5
        other.compact()
    assert view.read(1, 0, 300_000) == source.points[name].data[1]
    view.close()
    assert [point.id for point in source.store.retain(KEEP_NEWEST, now_ns)] == [name]
    source.store.compact()
    source.check()


@pytest.mark.fault(12)
def test_a_head_being_read_survives_being_overwritten_and_compacted(source):
    source.write(1, 0, os.urandom(90_000))
    source.commit()
    expected = source.committed.copy()
    with Store.open(source.store.context.directory) as other, other.head_view("web1") as view:
        source.write(1, 0, os.urandom(90_000))
        source.write(1, 0, os.urandom(90_000))
        source.commit()
        source.store.compact()
        assert view.read(1, 0, 300_000) == expected.data[1]
    before = source.store.stats().stored_bytes
    source.store.compact()
    assert source.store.stats().stored_bytes < before, "the lease was all that kept it"
    source.check()


@pytest.mark.fault(12)
def test_the_lease_of_a_dead_process_protects_nothing(source):
    source.write_random(2)
    name = source.cut()
    source.store.context.clock.advance(3600)
    source.write_random(2)
    source.cut()
    source.commit()
    pid = os.fork()
    if pid == 0:
        Store.open(source.store.context.directory).view(source.point(name))
        os._exit(0)
    os.waitpid(pid, 0)
    leases = list((source.store.context.directory / "locks").glob("lease-*"))
    assert len(leases) == 1
    now_ns = source.store.context.clock.now_ns()
    assert [point.id for point in source.store.retain(KEEP_NEWEST, now_ns)] == [name]
    assert not list((source.store.context.directory / "locks").glob("lease-*"))


def test_retention_leaves_pinned_points_bases_and_the_newest(source):
    names = []
    for _ in range(6):
        source.write_random(4)
        names.append(source.cut())
        source.commit()
        source.store.context.clock.advance(3600)
    source.store.pin(source.point(names[0]), "audit")
    source.store.create_branch(source.point(names[2]), role="drill")
    now_ns = source.store.context.clock.now_ns()
    source.store.retain(KEEP_NEWEST, now_ns)
    assert [p.id for p in source.store.points("web1")] == [names[0], names[2], names[5]]
    source.store.compact()
    source.check()
    source.store.unpin(source.point(names[0]))
    assert [p.id for p in source.store.retain(KEEP_NEWEST, now_ns)] == [names[0]]


def test_compaction_returns_space_and_leaves_every_live_byte_alone(source):
    for _ in range(12):
        source.write(1, 0, os.urandom(120_000))
        source.write_random(3)
        source.cut()
        source.commit()
        source.store.context.clock.advance(3600)
    before = source.store.stats().stored_bytes
    assert source.store.compact().segments_removed == 0
    source.store.retain(KEEP_NEWEST, source.store.context.clock.now_ns())
    report = source.store.compact()
    assert report.complete and report.segments_removed and report.segments_rewritten > 5
    assert source.store.stats().stored_bytes < before / 3
    assert source.store.stats().stored_bytes == sum(
        (source.store.context.directory / name).stat().st_size for name in files(source.store)
    )
    source.check()
    assert source.store.scrub().records_damaged == []
    assert source.store.compact() == CompactionReport()


@pytest.mark.fault(13)
def test_a_leaping_clock_makes_compaction_remove_nothing_that_is_live(source):
    for _ in range(5):
        source.write_random(6)
        source.cut()
        source.commit()
    for leap in (10**9, -2 * 10**9):
        source.store.context.clock.jump_wall(leap)
        source.store.compact()
        source.check()
    assert len(source.store.points("web1")) == 5


def test_compaction_yields_and_stops_at_its_bound(source):
    for number in range(10):
        source.write(1, number * 10, os.urandom(10))
        source.write(1, 1000, os.urandom(60_000))
    source.cut()
    source.commit()
    yields = []
    first = source.store.compact(bytes_max=1, yield_to=lambda: yields.append(1))
    assert yields and not first.complete and first.segments_rewritten == 1
    source.store.compact()
    source.check()


def test_maintenance_is_done_by_one_process_at_a_time(source):
    with source.store.context.locks.maintenance():
        with raises(MAINTENANCE_BUSY):
            source.store.compact()
        with raises(MAINTENANCE_BUSY):
            source.store.retain(RetentionPolicy(), 0)


@pytest.mark.fault(52)
@pytest.mark.parametrize("name", ["", "../up", "a/b", "UPPER", "x" * 64, "a..b", "nul\0", "#", "a+b"])
def test_a_name_that_could_leave_the_store_is_refused(store, name):
    with raises(BAD_NAME):
        store.ensure_source(name)


def test_a_foreign_directory_is_neither_opened_nor_taken_over(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with raises(STORE_EXISTS):
        Store.create(tmp_path)
    with raises(NOT_A_STORE):
        Store.open(tmp_path)
    with raises(NOT_A_STORE):
        Store.open(tmp_path / "missing")
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_an_interrupted_create_is_finished_by_the_next(tmp_path):
    Store.create(tmp_path / "s").close()
    (tmp_path / "s" / "STORE").unlink()
    (tmp_path / "s" / "catalogue.sqlite-journal").touch()
    Store.create(tmp_path / "s").close()
    with raises(STORE_EXISTS):
        Store.create(tmp_path / "s")


def test_a_store_opened_for_reading_changes_nothing(source):
    source.write_random(5)
    source.cut()
    source.commit()
    with Store.open(source.store.context.directory, read_only=True) as reader:
        for act in (
            lambda: reader.ensure_source("other"),
            lambda: reader.writer("web1", generation=1),
            reader.compact,
            lambda: reader.pin(reader.points("web1")[0]),
        ):
            with raises(STORE_READ_ONLY):
                act()
        check_point(reader, reader.points("web1")[0], next(iter(source.points.values())))


@pytest.mark.fault(63)
def test_a_point_is_the_same_cut_of_all_volumes(source):
    for number in range(1, 20):
        source.write(1, 1000, bytes([number]) * 10)
        source.write(2, 1000, bytes([number]) * 10)
        source.cut()
        if number % 3 == 0:
            source.commit()
    for point in source.store.points("web1"):
        with source.store.view(point) as view:
            assert view.read(1, 1000, 10) == view.read(2, 1000, 10)


@pytest.mark.fault(61)
def test_points_are_ordered_by_sequence_whatever_the_clock_says(source):
    clock = source.store.context.clock
    for leap in (0, -86400, 10**6, -(10**7)):
        clock.jump_wall(leap)
        source.write_random(1)
        source.cut()
        source.commit()
    sequences = [point.sequence for point in source.store.points("web1")]
    assert sequences == sorted(sequences)
    assert source.store.find_point("web1", PointSelector()).sequence == sequences[-1]


def test_many_segments_are_seen_through_few_layers(store):
    source = Source(store, root=1_000_000)
    for number in range(300):
        source.write(1, (number * 7919) % 900_000, os.urandom(70_000))
    source.cut()
    source.commit()
    with store.view(store.points("web1")[0]) as view:
        assert len(files(store)) > 256
        assert len(view._stack) < 40
    source.check()
    source.writer.close()


def test_a_lost_or_damaged_layer_is_made_again(store):
    source = Source(store, root=1_000_000)
    for number in range(40):
        source.write(1, (number * 7919) % 900_000, os.urandom(70_000))
    source.cut()
    source.commit()
    source.writer.close()
    layers = files(store, ".map")
    assert layers
    for number, name in enumerate(layers):
        path = store.context.directory / name
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-3] + b"???")
    with Store.open(store.context.directory) as again:
        check_point(again, again.points("web1")[0], source.points["1-42"])


def test_uncommitted_cut_without_geometry_shows_an_empty_source(store):
    source = Source(store)
    name = source.cut()
    source.commit()
    assert source.point(name).geometry == ()
    source.writer.close()


def test_damaged_kind_is_what_reading_gives(source):
    source.write(1, 0, os.urandom(5000), level=None)
    name = source.cut()
    source.commit()
    path = source.store.context.directory / files(source.store)[0]
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    with source.store.view(source.point(name)) as view, raises(DAMAGED):
        view.read(1, 0, 5000)
    assert source.point(name).damaged
    with raises(UNKNOWN_POINT):
        source.store.find_point("web1", PointSelector())
