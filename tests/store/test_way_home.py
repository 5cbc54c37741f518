"""Over and home again at the store: generations, divergent branches, what may differ, what a rebuild makes of it."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import Cut, PointKind, RecoveryPoint
from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.errors import FENCED, OUT_OF_RANGE, UNKNOWN_BRANCH
from drengine.store.log.branches import BranchInfo
from drengine.store.log.writer import BranchWriter
from drengine.store.store import Store
from tests.store.harness import Disk, Source, batch, check_point, mark, scratch, tiny_store

SHORT = RetentionPolicy(keep_all_seconds=100, steps=())
HOUR = 3600.0


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with scratch() as path:
        yield path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with tiny_store(tmp_path) as made:
        yield made


def raises(kind: object) -> pytest.RaisesExc[DrengineError]:
    return pytest.raises(DrengineError, check=lambda error: error.kind is kind)


def advance(store: Store, seconds: float) -> None:
    store.context.clock.advance(seconds)  # type: ignore[attr-defined]


def taken_over(store: Store, disk: Disk, points: dict[str, Disk]) -> Source:
    """The writer of the newest generation, going on with a disk."""
    source = Source(store)
    source.disk, source.points = disk.copy(), points
    return source


def grown(store: Store, seed: int = 1) -> Source:
    source = Source(store, seed=seed, root=300_000, data=100_001)
    for _ in range(4):
        source.write_random(3)
        source.cut()
    source.commit()
    return source


def newest(store: Store, branch: int) -> RecoveryPoint:
    return store.points("web1", branch=branch)[-1]


def write_beside(store: Store, branch: BranchInfo, data: bytes) -> RecoveryPoint:
    """What a fenced source ships to its divergent branch."""
    writer = store.writer("web1", generation=branch.generation, branch=branch.number)
    try:
        at = writer.appended_sequence + 1
        writer.append_batch(at, mark(at), batch((1, 0, data)), generation=branch.generation)
        cut = Cut(store.context.clock.now_ns(), PointKind.QUIET)
        writer.append_cut(at + 1, mark(at + 1), cut, generation=branch.generation)
        writer.commit(generation=branch.generation)
    finally:
        writer.close()
    return newest(store, branch.number)


@pytest.mark.fault(44)
@pytest.mark.parametrize("seed", range(3))
def test_over_and_home_and_over_again_each_writer_left_behind_is_refused_at_append_and_at_commit(
    store: Store, seed: int
) -> None:
    rng = random.Random(seed)
    line = grown(store, seed)
    stale: list[tuple[BranchWriter, int]] = []
    for generation in range(2, 7):
        line.write_random(2)  # appended, not committed: the tail that a promotion cuts off
        branch = line.writer.branch
        base = rng.choice(store.points("web1", branch=branch))
        made = store.promote(base, expected_generation=generation - 1)
        assert (made.generation, made.base_sequence, made.active) == (generation, base.sequence, True)
        with raises(FENCED):
            line.writer.commit(generation=line.generation)
        stale.append((line.writer, line.generation))
        line = taken_over(store, line.points[base.id], line.points)
        for _ in range(3):
            line.write_random(2)
            line.cut()
        line.commit()
        for writer, old in stale:
            with raises(FENCED):
                writer.append_batch(writer.appended_sequence + 1, mark(99_999), batch((1, 0, b"late")), generation=old)
            with raises(FENCED):
                writer.commit(generation=old)
    line.check()
    for writer, old in stale:
        writer.close()
        for carried in (old, line.generation):
            with raises(FENCED):
                store.writer("web1", generation=carried, branch=writer.branch)
    line.writer.close()


@pytest.mark.fault(44)
def test_a_writer_that_learns_of_a_promotion_only_at_its_commit_has_committed_nothing(store: Store) -> None:
    line = grown(store)
    durable = line.writer.durable
    line.write_random(2)
    with Store.open(store.context.directory) as elsewhere:
        elsewhere.promote(newest(store, 1), expected_generation=1)
    with raises(FENCED):
        line.commit()
    assert store.context.catalogue.branch("web1", 1).durable_sequence == durable.sequence
    line.writer.close()


@pytest.mark.fault(43)
def test_at_each_generation_of_many_promoters_one_wins(store: Store) -> None:
    line = grown(store)
    line.writer.close()
    points = store.points("web1")
    for generation in range(1, 6):
        won: list[BranchInfo] = []
        refused: list[DrengineError] = []
        ready = threading.Barrier(4)

        def promote(
            number: int,
            generation: int = generation,
            won: list[BranchInfo] = won,
            refused: list[DrengineError] = refused,
            ready: threading.Barrier = ready,
        ) -> None:
            with Store.open(store.context.directory) as mine:
                ready.wait()
                try:
                    won.append(mine.promote(points[number], expected_generation=generation))
                except DrengineError as lost:
                    refused.append(lost)

        threads = [threading.Thread(target=promote, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and {each.kind for each in refused} == {FENCED} and len(refused) == 3
        info = store.source("web1")
        assert (info.generation, info.active_branch) == (generation + 1, won[0].number)


@pytest.mark.fault(45)
def test_only_the_one_who_was_given_it_writes_a_divergent_branch_and_it_never_becomes_the_history(store: Store) -> None:
    line = grown(store)
    line.writer.close()
    promoted = store.promote(store.points("web1")[1], expected_generation=1)
    beyond = store.create_branch(newest(store, 1), role="divergent", label="run:1:divergent")
    assert (beyond.role, beyond.active, beyond.base_sequence) == ("divergent", False, newest(store, 1).sequence)
    with raises(FENCED):
        store.writer("web1", generation=1, branch=beyond.number)
    store.promote(newest_or_base(store, promoted), expected_generation=2)
    kept = write_beside(store, beyond, b"only the source had this")
    info = store.source("web1")
    assert (info.generation, info.active_branch) == (3, promoted.number + 2)
    assert not store.is_in_history(kept)
    assert store.is_in_history(store.points("web1")[0])
    store.close_branch("web1", beyond.number)
    with raises(UNKNOWN_BRANCH):
        store.writer("web1", generation=beyond.generation, branch=beyond.number)
    with store.view(kept) as view:
        assert view.read(1, 0, 24) == b"only the source had this"


def newest_or_base(store: Store, branch: BranchInfo) -> RecoveryPoint:
    points = store.points("web1", branch=branch.number)
    base = (branch.parent, branch.base_sequence)
    return points[-1] if points else next(p for p in store.points("web1") if (p.branch, p.sequence) == base)


def test_what_diverged_and_what_was_superseded_stay_until_their_retention_ends_and_never_beyond_need(
    store: Store,
) -> None:
    line = grown(store)
    line.writer.close()
    over = store.promote(store.points("web1")[1], expected_generation=1)
    beyond = store.create_branch(newest(store, 1), role="divergent")
    kept = write_beside(store, beyond, b"diverged")
    store.close_branch("web1", beyond.number)
    drill = store.create_branch(newest(store, 1), role="drill")
    write_beside(store, drill, b"a drill")
    store.close_branch("web1", drill.number)
    recovered = taken_over(store, line.points[newest_or_base(store, over).id], line.points)
    recovered.write_random(2)
    recovered.cut()
    recovered.commit()
    recovered.writer.close()
    store.promote(newest(store, over.number), expected_generation=2)
    home = taken_over(store, recovered.disk, line.points)

    store.retain(SHORT, store.context.clock.now_ns())
    store.compact()
    assert not store.points("web1", branch=drill.number), "a drill ends at once"
    with store.view(kept) as view:
        assert view.read(1, 0, 8) == b"diverged"

    for _ in range(3):
        advance(store, HOUR)
        home.write_random(2)
        home.cut()
        home.commit()
        store.retain(SHORT, store.context.clock.now_ns())
        store.compact()
    left = {point.branch for point in store.points("web1")}
    assert beyond.number not in left
    assert home.writer.branch in left
    roles = {branch.number: branch.closed for branch in store.branches("web1")}
    assert roles[over.number] and roles[1], "what a promotion left behind ends as well"
    last = newest(store, home.writer.branch)
    check_point(store, last, line.points[last.id])
    home.writer.close()


def test_retention_keeps_the_newest_verified_point_however_old_while_nobody_writes(store: Store) -> None:
    line = grown(store)
    line.writer.close()
    store.promote(newest(store, 1), expected_generation=1)
    last = newest(store, 1)
    for _ in range(5):
        advance(store, 1000 * HOUR)
        store.retain(SHORT, store.context.clock.now_ns())
        store.compact()
    check_point(store, store.points("web1", branch=1)[-1], line.points[last.id])
    assert store.points("web1", branch=1)[-1].id == last.id


@pytest.mark.parametrize("manifests", [True, False])
def test_a_rebuilt_catalogue_knows_each_branch_for_what_it_is(tmp_path: Path, manifests: bool) -> None:
    with tiny_store(tmp_path) as store:
        line = grown(store)
        line.writer.close()
        over = store.promote(store.points("web1")[1], expected_generation=1)
        recovered = taken_over(store, line.points[newest_or_base(store, over).id], line.points)
        recovered.write_random(2)
        recovered.cut()
        recovered.commit()
        recovered.writer.close()
        beyond = store.create_branch(newest(store, 1), role="divergent", label="run:7:divergent")
        kept = write_beside(store, beyond, b"diverged")
        before = {branch.number: branch for branch in store.branches("web1")}
    path = tmp_path / "store"
    (path / CATALOGUE_NAME).unlink()
    if not manifests:
        shutil.rmtree(path / "manifests")
        (path / "manifests").mkdir()
    Store.rebuild(path)
    with Store.open(path) as store:
        after = {branch.number: branch for branch in store.branches("web1")}
        assert {number: branch.role for number, branch in after.items()} == {1: "trunk", 2: "promoted", 3: "divergent"}
        info = store.source("web1")
        assert (info.generation, info.active_branch) == (2, over.number)
        assert after[3].generation == before[3].generation
        with store.view(next(p for p in store.points("web1", branch=3) if p.sequence == kept.sequence)) as view:
            assert view.read(1, 0, 8) == b"diverged"
        if manifests:
            assert after == before
        write_beside(store, after[3], b"and on")


def differing(one: Disk, other: Disk) -> dict[int, np.ndarray]:
    return {
        number: np.flatnonzero(np.frombuffer(data, np.uint8) != np.frombuffer(other.data[number], np.uint8))
        for number, data in one.data.items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_what_differs_between_two_positions_lies_where_the_log_says(store: Store, seed: int) -> None:
    """Also after retention and compaction, as long as the later one is a point that is kept."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    source = Source(store, seed=seed, root=300_000, data=100_001)
    for _ in range(12):
        source.write_random(rng.randrange(1, 5))
        source.cut()
        source.commit()
        advance(store, 60)
    everything = dict(source.points)
    for compacted in (False, True):
        if compacted:
            source.store.pin(rng.choice(store.points("web1")))
            store.retain(RetentionPolicy(keep_all_seconds=200, steps=()), store.context.clock.now_ns())
            store.compact()
        checked = 0
        for point in store.points("web1"):
            for name, disk in everything.items():
                sequence = int(name.split("-")[1])
                if sequence > point.sequence:
                    continue
                changes = store.changed_since(point, sequence)
                for volume, offsets in differing(disk, everything[point.id]).items():
                    starts, ends = changes.get(volume, (np.empty(0, np.uint64), np.empty(0, np.uint64)))
                    assert (starts[1:] > ends[:-1]).all() and (ends > starts).all()
                    inside = np.searchsorted(starts, offsets.astype(np.uint64), "right") - 1
                    assert (inside >= 0).all() and (offsets < ends[inside]).all()
                    checked += len(offsets)
        assert checked
    source.writer.close()


def test_no_comparison_by_the_log_where_it_would_mislead(store: Store) -> None:
    source = grown(store)
    first, last = store.points("web1")[0], newest(store, 1)
    assert store.changed_since(last, last.sequence) == {}
    for sequence in (-1, last.sequence + 1):
        with raises(OUT_OF_RANGE):
            store.changed_since(last, sequence)
    source.reshape(root=400_000, data=100_001)
    source.cut()
    source.commit()
    with raises(OUT_OF_RANGE):
        store.changed_since(newest(store, 1), first.sequence)
    over = store.promote(first, expected_generation=1)
    recovered = taken_over(store, source.points[first.id], source.points)
    recovered.write_random()
    recovered.cut()
    recovered.commit()
    with raises(OUT_OF_RANGE):
        store.changed_since(newest(store, over.number), first.sequence - 1)
    assert store.changed_since(newest(store, over.number), first.sequence)
    recovered.writer.close()
    source.writer.close()


def test_a_source_comes_to_a_new_store_under_the_generation_that_it_has_reached(store: Store) -> None:
    info = store.ensure_source("web1", generation=5)
    assert (info.generation, info.active_branch) == (5, 1)
    assert store.ensure_source("web1", generation=7).generation == 5
    store.writer("web1", generation=5).close()
