"""The dirty bitmap against a set of block numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine_agent.capture.tap.dirty import BLOCK_BYTES, DirtyBitmap, DirtySet

SIZES = {1: 100 * BLOCK_BYTES + 513, 2: 7, 5: 64 * BLOCK_BYTES}
RANGES = st.sampled_from(sorted(SIZES)).flatmap(
    lambda volume: st.tuples(
        st.just(volume),
        st.integers(0, SIZES[volume] - 1),
        st.one_of(st.integers(1, 5000), st.integers(1, 120 * BLOCK_BYTES)),
    ).map(lambda r: (r[0], r[1], min(r[2], SIZES[r[0]] - r[1])))
)


def oracle(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return sorted(
        {
            (volume, block)
            for volume, offset, length in ranges
            for block in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1)
        }
    )


def blocks_of(ranges) -> list[tuple[int, int]]:
    found = []
    for part in ranges:
        assert part.offset % BLOCK_BYTES == 0
        assert part.length > 0
        assert part.offset + part.length <= SIZES[part.volume]
        assert part.length % BLOCK_BYTES == 0 or part.offset + part.length == SIZES[part.volume]
        found += [
            (part.volume, b) for b in range(part.offset // BLOCK_BYTES, -(-(part.offset + part.length) // BLOCK_BYTES))
        ]
    return found


@pytest.mark.fault(28)
@given(st.lists(RANGES, max_size=12), st.integers(1, 40))
def test_what_was_marked_comes_out_once_and_in_order(ranges, step) -> None:
    dirty = DirtySet(SIZES)
    for part in ranges:
        dirty.mark(*part)
    wanted = oracle(ranges)
    assert dirty.dirty_blocks == len(wanted)
    found, start = [], 0
    while True:
        part, start = dirty.ranges(start, step)
        if not part:
            break
        assert sum(-(-r.length // BLOCK_BYTES) for r in part) <= step
        found += blocks_of(part)
        assert start == len(found)
    assert found == wanted


@given(st.lists(RANGES, max_size=12), st.lists(st.integers(0, 200), max_size=8))
def test_ranges_can_be_asked_for_again_from_anywhere(ranges, starts) -> None:
    dirty = DirtySet(SIZES)
    for part in ranges:
        dirty.mark(*part)
    wanted = oracle(ranges)
    for place in starts:
        start = min(place, len(wanted))
        part, end = dirty.ranges(start, 17)
        assert blocks_of(part) == wanted[start : start + 17]
        assert end == min(start + 17, len(wanted))


def test_a_whole_volume_is_one_range_with_its_odd_tail() -> None:
    dirty = DirtySet(SIZES)
    dirty.mark_all()
    ranges, _ = dirty.ranges(0, 1 << 40)
    assert [(r.volume, r.offset, r.length) for r in ranges] == [(v, 0, s) for v, s in SIZES.items()]


def test_a_clean_map_holds_no_memory_and_no_runs() -> None:
    bitmap = DirtyBitmap(1 << 40)
    assert list(bitmap.runs()) == []
    bitmap.mark(0, 0)
    assert bitmap.dirty_blocks == 0
