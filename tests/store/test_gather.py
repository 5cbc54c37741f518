"""Gathered reads against the disk that was written, and against the same reads one by one; with damage, and while it is
written and compacted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES
from drengine.model.points import PointSelector
from drengine.store.errors import DAMAGED
from drengine.store.store import Store
from drengine.store.views import gather, records, view, windows
from drengine.store.views.gather import Places, frame_parts, reads
from drengine.store.views.view import View
from drengine.store.views.windows import WINDOW_BYTES
from tests.store.harness import Source, scratch, tiny_store
from tests.store.test_windows import SIZE, BranchMachine, branch, compare, ranges

DISK = 400_000


@dataclass
class Gathered:
    """How many reads were gathered, to the end."""

    count: int = 0


@contextmanager
def gathering(*, always: bool = True) -> Iterator[Gathered]:
    """Everything is gathered, or nothing; in small buffers and parts, so that a few blocks meet every boundary."""
    found, whole = Gathered(), records.Records.gather

    def counted(self: records.Records, *args: object) -> None:
        whole(self, *args)  # type: ignore[arg-type]
        found.count += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_SCATTERED_PIECES", 0 if always else 1 << 40)
        patch.setattr(windows, "_SCATTERED_BYTES", 1 << 40)
        patch.setattr(view, "GATHERED_BYTES", 70_001)
        patch.setattr(gather, "JOINED_GAP_BYTES", 200)
        patch.setattr(records, "_GATHERED_BYTES_MAX", 150_000)
        patch.setattr(records.Records, "gather", counted)
        yield found


def scattered(source: Source, rng: random.Random, count: int) -> None:
    """Batches of small writes at any alignment, some of them zeros, over each other."""
    for _ in range(count):
        if rng.random() < 0.2:
            source.write_random()
            continue
        writes = []
        for _ in range(rng.randrange(1, 12)):
            offset = rng.randrange(DISK)
            length = min(rng.randrange(1, 9000), DISK - offset, BLOCK_BYTES - offset % BLOCK_BYTES)
            writes.append((1, offset, rng.choice((rng.randbytes(length), b"drengine" * length))[:length]))
        source.write_together(*writes)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 25))
def test_what_is_gathered_is_what_was_written(seed: int, count: int) -> None:
    rng = random.Random(seed)
    with scratch() as path, gathering() as gathered, tiny_store(path) as store:
        source = Source(store, seed=seed, disk=DISK)
        scattered(source, rng, count)
        name = source.cut()
        source.commit()
        with store.view(source.point(name)) as shown:
            for _ in range(10):
                offset = rng.randrange(DISK)
                compare(shown, source.disk, offset, rng.randrange(1, DISK - offset + 1))
            shown.prepare(1, 0)
            for _ in range(10):
                offset = rng.randrange(DISK)
                length = rng.randrange(1, DISK - offset + 1)
                parts = shown.parts_now(1, offset, length)
                assert parts is not None
                found = b"".join(bytes(size) if data is None else data for size, data in parts)
                assert found == source.disk.data[1][offset : offset + length]
        assert gathered.count >= 10
        source.writer.close()


class GatheredBranchMachine(BranchMachine):
    """All reads of a branch are gathered, and windows prepared, while it is written and its source goes on."""

    @initialize()
    def begin(self) -> None:
        self.patched = gathering()
        self.gathered = self.patched.__enter__()
        super().begin()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "patched"):
            self.patched.__exit__(None, None, None)

    @rule(number=st.integers(0, 2))
    def prepare(self, number: int) -> None:
        self.view.prepare(1, number * WINDOW_BYTES)

    @rule(where=ranges)
    def read_prepared(self, where: tuple[int, int]) -> None:
        offset, length = where[0], min(where[1], SIZE - where[0])
        parts = self.view.parts_now(1, offset, length)
        if parts is not None:
            found = b"".join(bytes(size) if data is None else data for size, data in parts)
            assert found == self.disk.data[1][offset : offset + length]

    @rule(seed=st.integers(0, 1 << 16))
    def the_source_goes_on_and_is_compacted(self, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(4):
            self.source.write(1, WINDOW_BYTES - rng.randrange(9000), rng.randbytes(rng.randrange(1, 9000)))
        self.source.cut()
        self.source.commit()
        self.source.store.compact()


TestGatheredBranch = GatheredBranchMachine.TestCase
TestGatheredBranch.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def outcome(shown: View, offset: int, length: int) -> bytes | str:
    """What a read gives: bytes, or words about damage."""
    try:
        return shown.read(1, offset, length)
    except DrengineError as error:
        assert error.kind is DAMAGED
        return error.message


@pytest.mark.fault(2)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_damage_is_refused_in_the_same_words_and_for_the_same_ranges(seed: int) -> None:
    rng = random.Random(seed)
    with scratch() as path:
        with tiny_store(path) as store:
            source = Source(store, seed=seed, disk=DISK)
            scattered(source, rng, 15)
            name = source.cut()
            source.commit()
            source.writer.close()
        for file in sorted((path / "store" / "segments").rglob("*.seg")):
            data = bytearray(file.read_bytes())
            for _ in range(rng.randrange(4)):
                data[rng.randrange(len(data) // 3, len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        wanted = [(offset, rng.randrange(1, DISK - offset + 1)) for offset in (rng.randrange(DISK) for _ in range(12))]
        wanted += [(offset, min(3000, DISK - offset)) for offset in range(0, DISK, 40_000)]
        found = []
        for always in (True, False):
            with gathering(always=always), Store.open(path / "store", read_only=True) as store:
                try:
                    shown = store.view(store.find_point("web1", PointSelector.parse(name)))
                except DrengineError as error:
                    found.append([error.message])
                    continue
                with shown:
                    found.append([outcome(shown, *where) for where in wanted])
        assert found[0] == found[1]
        for (offset, length), read in zip(wanted, found[0], strict=False):
            if isinstance(read, bytes):
                assert read == source.disk.data[1][offset : offset + length]


@pytest.mark.fault(2)
def test_what_memory_holds_over_a_damaged_frame_is_read_and_the_rest_is_refused() -> None:
    with gathering(), branch() as (source, shown, disk):
        at, length = WINDOW_BYTES - 5000, 10_000
        (file,) = (source.store.context.storage.root / "segments").rglob("*.seg")
        stored = bytearray(file.read_bytes())
        stored[stored.index(disk.data[1][at : at + 100]) + 50] ^= 4
        file.write_bytes(stored)
        assert "cannot be read" in str(outcome(shown, at, length))
        fresh = random.Random(1).randbytes(length)
        shown.write(1, at, fresh)
        assert shown.read(1, at - 100, length + 200) == bytes(100) + fresh + bytes(100)
        shown.discard(1, at, 6000)
        shown.flush()
        assert shown.read(1, at, length) == bytes(6000) + fresh[6000:]


def test_kept_frames_hold_no_more_memory_than_is_counted() -> None:
    with gathering(), scratch() as path, tiny_store(path) as store:
        source, rng = Source(store, disk=DISK), random.Random(3)
        scattered(source, rng, 25)
        name = source.cut()
        source.commit()
        with store.view(source.point(name)) as shown:
            for _ in range(20):
                shown.read(1, rng.randrange(DISK - 9000), 9000)
        kept = [value for value, _ in store.context.records._frames._values.values()]
        assert kept
        for plain in kept:
            assert memoryview(plain.obj).nbytes <= len(plain) + 1 or len(plain) >= BLOCK_BYTES // 2
        source.writer.close()


columns = st.integers(1, 300)


@given(st.lists(columns, min_size=1, max_size=20), st.data())
def test_parts_of_frames_cover_each_piece_once_and_in_order(lengths: list[int], data: st.DataObject) -> None:
    plain_starts = np.concatenate(([0], np.cumsum(lengths)))
    total = int(plain_starts[-1])
    drawn = data.draw(st.lists(st.tuples(st.integers(0, total - 1), st.integers(1, total)), min_size=1, max_size=9))
    starts = np.array([start for start, _ in drawn])
    sizes = np.array([min(size, total - start) for start, size in drawn])
    begins = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    none = np.zeros(len(drawn), np.int64)
    found = frame_parts(Places(begins, sizes, none, none, none, none), starts, plain_starts)
    target = np.full(int(sizes.sum()), -1)
    for begin, end, which, start, stop in zip(*found[2:], strict=True):
        frame = found.frames[which]
        assert np.all(target[begin:end] == -1)
        assert 0 <= start < stop <= lengths[frame]
        target[begin:end] = np.arange(plain_starts[frame] + start, plain_starts[frame] + stop)
    expected = np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    assert np.array_equal(target, expected)
    assert list(found.frames) == sorted(set(found.frames))
    assert int(found.wanted.sum()) == len(target)


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 9000)), min_size=1, max_size=30))
def test_reads_cover_each_frame_and_join_only_neighbours(rows: list[tuple[int, int]]) -> None:
    gaps, sizes = np.array(rows).T
    offsets = np.cumsum(gaps + np.concatenate(([0], sizes[:-1])))
    found = list(reads(offsets, sizes))
    assert [number for first, last, *_ in found for number in range(first, last)] == list(range(len(rows)))
    for first, last, begin, length in found:
        assert (begin, begin + length) == (offsets[first], offsets[last - 1] + sizes[last - 1])
        assert all(gaps[first + 1 : last] <= gather.JOINED_GAP_BYTES)
    assert all(gaps[first] > gather.JOINED_GAP_BYTES for first, *_ in found[1:])
