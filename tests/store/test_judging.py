"""Compaction looks again only at what may have died: it decides the same, and reads no more than that."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drengine.store.blobs import FaultyStorage, LocalStorage
from drengine.store.care.liveness import (
    BranchRoots,
    SegmentLiveness,
    branch_liveness,
    branch_roots,
    first_changed,
    to_judge,
)
from drengine.store.catalogue.rows import SegmentRow, pack_roots, unpack_roots
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source, scratch, tiny_store


def state_of(store: Store, source: str, branch: int) -> tuple[BranchRoots, list[SegmentRow]]:
    context = store.context
    found = branch_roots(context.catalogue, context.catalogue.branches(source), context.locks.leased_positions())
    roots = next(each for each in found if each.branch.branch == branch)
    return roots, context.catalogue.segments(source, branch)


def judged(store: Store, roots: BranchRoots, segments: list[SegmentRow]) -> dict[int, SegmentLiveness]:
    return {each.row.segment: each for each in branch_liveness(store.context.records, roots, segments)}


def is_the_same(one: SegmentLiveness, other: SegmentLiveness) -> bool:
    same = (one.needed, one.dead_bytes) == (other.needed, other.dead_bytes)
    return same and np.array_equal(one.live, other.live) and np.array_equal(one.record, other.record)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_not_judged_again_is_as_it_was_and_the_rest_as_by_judging_all(tmp_path: Path, seed: int) -> None:
    """Roots come and go at random (points, leases, a branch's base, an end by closing); the judgement follows."""
    dice = random.Random(seed)
    with tiny_store(tmp_path) as store:
        source = Source(store, seed=seed, root=150_000, data=90_000)
        views = []
        for turn in range(12):
            roots, segments = state_of(store, "web1", 1)
            before = judged(store, roots, segments)
            for _ in range(dice.randrange(4) if turn <= 10 else 0):
                source.write_random(dice.randrange(1, 5))
                source.cut()
                source.commit()
            points = store.context.catalogue.points("web1", 1)
            if points and dice.random() < 0.3:
                views.append(store.view(dice.choice(points).value()))
            if views and dice.random() < 0.3:
                views.pop(dice.randrange(len(views))).close()
            with store.context.catalogue.transaction("web1"):
                store.context.catalogue.remove(*dice.sample(points, dice.randrange(len(points) // 2 + 1)))
                if turn == 10:
                    row = store.context.catalogue.branch("web1", 1)
                    store.context.catalogue.put(row._replace(closed=1))
            now, segments = state_of(store, "web1", 1)
            due = np.array([dice.random() < 0.1 for _ in segments], bool)
            wanted = to_judge(now, roots.positions, segments, due)
            everything = judged(store, now, segments)
            none_due = np.zeros(len(segments), bool)
            changed = to_judge(now, roots.positions, segments, none_due)
            part = store.context.catalogue.segments("web1", 1, since=first_changed(now, roots.positions))
            assert part[-1:] == segments[-1:]
            some = branch_liveness(
                store.context.records, now, part, to_judge(now, roots.positions, part, none_due[: len(part)])
            )
            in_part = {each.row.segment: each for each in some}
            assert set(in_part) == {row.segment for row, again in zip(segments, changed.judged, strict=True) if again}
            assert all(is_the_same(each, everything[number]) for number, each in in_part.items())
            found = {each.row.segment: each for each in branch_liveness(store.context.records, now, segments, wanted)}
            assert set(found) == {row.segment for row, again in zip(segments, wanted.judged, strict=True) if again}
            for number, whole in everything.items():
                assert is_the_same(found.get(number) or before[number], whole), (turn, number)
        for view in views:
            view.close()


def test_roots_are_packed_and_unpacked() -> None:
    for positions in ([], [0], [5], [1, 2, 3, 1 << 62]):
        assert unpack_roots(pack_roots(positions)) == positions


def opens(storage: FaultyStorage) -> list[str]:
    return [call.name for call in storage.calls if call.operation == "open" and call.name.endswith(".seg")]


def test_a_compaction_after_which_nothing_changed_reads_no_segment() -> None:
    with scratch() as place:
        clock = ManualClock()
        with Store.create(place / "store", options=TINY, clock=clock) as store:
            source = Source(store, root=150_000)
            for _ in range(30):
                source.write_random(3)
                source.cut()
                source.commit()
                clock.advance(60)
            source.writer.close()
            segments = len(store.context.catalogue.segments("web1", 1))
            store.compact()
        assert segments > 8
        storage = FaultyStorage(LocalStorage(place / "store"))
        with Store.open(place / "store", options=TINY, clock=clock, storage=storage) as store:
            store.compact()
            assert opens(storage) == []
            # One point goes: what lies between its neighbours is looked at, and what shares the newest interval.
            points = store.context.catalogue.points("web1", 1)
            with store.context.catalogue.transaction("web1"):
                store.context.catalogue.remove(points[2])
            store.compact()
            assert 0 < len(set(opens(storage))) < segments / 2
            for point in store.points("web1"):
                assert store.verify(point).intact


def test_a_segment_written_anew_by_a_scrub_keeps_what_is_known_to_be_dead() -> None:
    """It was written with all that is dead in it: were that forgotten, compaction would never come back to it."""
    with scratch() as place:
        options = replace(TINY, compact_dead_fraction=2.0)
        with Store.create(place / "store", options=options, clock=ManualClock()) as store:
            source = Source(store, root=150_000)
            for _ in range(12):
                source.write(1, 0, random.Random(1).randbytes(20_000))
                source.cut()
                source.commit()
            source.writer.close()
            with store.context.catalogue.transaction("web1"):
                store.context.catalogue.remove(*store.context.catalogue.points("web1", 1)[:-1])
            store.compact()
            row = next(row for row in store.context.catalogue.segments("web1", 1) if row.dead_bytes)
            path = place / "store" / "segments" / "web1" / "00000001" / f"{row.segment:08d}.{row.revision:04d}.seg"
            data = bytearray(path.read_bytes())
            data[-60] ^= 1  # the copy of the index, or its footer
            path.write_bytes(data)
            assert store.scrub().segments_repaired == 1
            after = store.context.catalogue.segment("web1", 1, row.segment)
            assert after is not None and after.revision > row.revision
            assert after.dead_bytes == row.dead_bytes
        with Store.open(place / "store", options=TINY, clock=ManualClock()) as store:
            assert store.compact().segments_rewritten + store.compact().segments_removed > 0
