"""Layer files: what is written comes back; whatever is damaged is refused, so that it is made again."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.store.blobs import Call, Fault, FaultyStorage, LocalStorage, MemoryStorage
from drengine.store.errors import DAMAGED, STORE_FULL
from drengine.store.views.extentmap import FlatMap, resolve
from drengine.store.views.layers import FANOUT, LEVEL_MAX, cover, open_layer, write_layer

NAME = "segments/web/00000001/00000001.L1.map"


def some_map(rows: int, segment: int = 3) -> FlatMap:
    return resolve(
        np.arange(rows) * 8192,
        np.full(rows, 4096),
        segment=np.full(rows, segment),
        record=np.arange(rows),
        plain_offset=np.arange(rows) * 512,
    )


def same(left: FlatMap, right: FlatMap) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left.columns, right.columns, strict=True))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_layer_comes_back_as_it_was_written(kind: str, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path) if kind == "local" else MemoryStorage()
    maps = {1: some_map(5), 7: some_map(1), 9: FlatMap.empty(), 4_000_000_000: some_map(400)}
    write_layer(storage, NAME, maps)
    found = open_layer(storage, NAME)
    assert found.keys() == maps.keys()
    assert all(same(found[volume], maps[volume]) for volume in maps)
    for column in found[1].columns:
        assert column.ctypes.data % column.itemsize == 0


def test_an_empty_layer_comes_back() -> None:
    storage = MemoryStorage()
    write_layer(storage, NAME, {})
    assert open_layer(storage, NAME) == {}


def test_a_missing_layer_is_told_from_a_damaged_one() -> None:
    with pytest.raises(FileNotFoundError):
        open_layer(MemoryStorage(), NAME)


@pytest.mark.fault(9)
def test_every_flipped_bit_and_every_cut_is_found() -> None:
    storage = MemoryStorage()
    write_layer(storage, NAME, {1: some_map(3), 2: some_map(2)})
    good = bytes(storage.files[NAME])
    damaged = [good[:length] for length in range(len(good))]
    damaged += [good + b"\0", good + good]
    for bit in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        storage.put(NAME, data)
        with pytest.raises(DrengineError) as caught:
            open_layer(storage, NAME)
        assert caught.value.kind is DAMAGED
    storage.put(NAME, good)
    assert same(open_layer(storage, NAME)[1], some_map(3))


def test_a_layer_under_another_name_is_refused() -> None:
    storage = MemoryStorage()
    write_layer(storage, NAME, {1: some_map(3)})
    other = NAME.replace(".L1.", ".L2.")
    storage.put(other, bytes(storage.files[NAME]))
    with pytest.raises(DrengineError, match="another name"):
        open_layer(storage, other)


def test_an_unreadable_layer_counts_as_damaged() -> None:
    def unreadable(call: Call) -> Fault | None:
        return Fault(errno.EIO) if call.operation == "read_at" else None

    storage = FaultyStorage(MemoryStorage())
    write_layer(storage, NAME, {1: some_map(3)})
    storage.plan = unreadable
    with pytest.raises(DrengineError) as caught:
        open_layer(storage, NAME)
    assert caught.value.kind is DAMAGED


def test_a_full_disk_keeps_the_layer_from_being_written_and_says_so() -> None:
    storage = FaultyStorage(MemoryStorage(), lambda call: Fault(errno.ENOSPC))
    with pytest.raises(DrengineError) as caught:
        write_layer(storage, NAME, {1: some_map(3)})
    assert caught.value.kind is STORE_FULL


@given(st.integers(0, 3 * FANOUT**LEVEL_MAX))
def test_the_groups_cover_each_segment_once_in_order_and_aligned(segment: int) -> None:
    groups = cover(segment)
    following = 1
    for level, first, last in groups:
        assert first == following
        assert last - first + 1 == FANOUT**level
        assert (first - 1) % FANOUT**level == 0
        following = last + 1
    assert following == segment + 1
    assert len(groups) <= (FANOUT - 1) * LEVEL_MAX + segment // FANOUT**LEVEL_MAX


@given(st.integers(1, 2 * FANOUT**LEVEL_MAX))
def test_a_group_once_made_is_not_made_again_until_it_is_swallowed(segment: int) -> None:
    # A segment that closes adds one group, or closes groups into larger ones; no other group changes.
    before, after = set(cover(segment - 1)), set(cover(segment))
    added = after - before
    assert len(added) == 1
    ((_, first, last),) = added
    assert last == segment
    assert all(first <= gone_first and gone_last < last for _, gone_first, gone_last in before - after)
