"""Layout and bitmaps against a plain set of blocks. Needs no kernel."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf.bits import Half, runs
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import Layout, WatchedVolume
from drengine_agent.capture.tracker import Range

BLOCK = at.BLOCK_BYTES
SECTORS = 8


def volume(number: int, disk: int, start: int, sectors: int, size: int | None = None) -> WatchedVolume:
    device = BlockDevice(f"d{disk}p{number}", 1000 + number, disk, start, sectors, False, 1, "")
    return WatchedVolume(number, device, sectors * 512 if size is None else size)


def halves(layout: Layout) -> Iterator[tuple[mmap.mmap, Half, Half]]:
    with closing(mmap.mmap(-1, layout.half_words * 16)) as view:
        yield view, Half(view, layout, 0), Half(view, layout, 1)


@given(st.binary(max_size=300))
def test_runs_of_ones_are_those_of_the_bits(bits: bytes) -> None:
    found = [bit for first, count in runs(bits) for bit in range(first, first + count)]
    assert found == [bit for bit in range(len(bits) * 8) if bits[bit >> 3] >> (bit & 7) & 1]


volumes_of_disks = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40_000), st.integers(1, 90_000)), min_size=1, max_size=5
)


@given(volumes_of_disks, st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_added_is_found_whole_and_at_most_one_block_more_on_each_side(
    shapes: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Partitions of one disk may overlap and lie at any sector: every byte asked for is handed out."""
    volumes = [volume(number, *shape) for number, shape in enumerate(shapes, 1)]
    layout = at.plan(volumes)
    for _, half, other in halves(layout):
        asked: list[Range] = []
        for _ in range(data.draw(st.integers(0, 6))):
            each = data.draw(st.sampled_from(volumes))
            offset = data.draw(st.integers(0, each.size_bytes - 1))
            asked.append(Range(each.volume, offset, data.draw(st.integers(1, each.size_bytes - offset))))
        half.add(half.bits_of(asked))
        found = list(half.ranges())
        assert other.is_empty()
        assert half.is_empty() == (not asked)
        sizes = {each.volume: each.size_bytes for each in volumes}
        for each in found:
            assert 0 <= each.offset < each.offset + each.length <= sizes[each.volume]
            assert each.offset % BLOCK == 0
        for one, two in pairwise(found):
            assert one.volume < two.volume or one.offset + one.length < two.offset
        for want in asked:
            assert any(
                have.volume == want.volume
                and have.offset <= want.offset
                and want.offset + want.length <= have.offset + have.length
                for have in found
            )
        if len(volumes) == 1:
            exact = {b for r in asked for b in range(r.offset // BLOCK, (r.offset + r.length - 1) // BLOCK + 1)}
            assert {b for r in found for b in range(r.offset // BLOCK, -(-(r.offset + r.length) // BLOCK))} == exact
            assert half.count_blocks() == len(exact)
        half.clear()
        assert half.is_empty()
        assert list(half.ranges()) == []


@given(st.sets(st.integers(0, 99_999), max_size=50), st.sets(st.integers(0, 99_999), max_size=50))
@settings(max_examples=100, deadline=None)
def test_clearing_keeps_what_it_is_told_to_and_nothing_else(dirty: set[int], keep: set[int]) -> None:
    layout = at.plan([volume(1, 0, 0, 100_000 * SECTORS)])
    for view, half, _ in halves(layout):
        half.add((layout.regions[0].fine_bit + block, 1) for block in dirty)
        half.clear([(layout.regions[0].fine_bit + block, 1) for block in keep])
        left = {b for r in half.ranges() for b in range(r.offset // BLOCK, (r.offset + r.length) // BLOCK)}
        assert left == dirty & keep
        half.clear()
        assert not any(view[:])


def test_a_coarse_bit_hands_out_all_of_its_blocks_clipped_to_the_volume() -> None:
    layout = at.plan([volume(1, 0, 0, 5000 * SECTORS, 5000 * BLOCK - 1000)])
    for _, half, _ in halves(layout):
        half.add([(layout.regions[0].coarse_bit + 1, 1), (layout.regions[0].fine_bit + 4095, 2)])
        assert list(half.ranges()) == [Range(1, 4095 * BLOCK, 905 * BLOCK - 1000)]


def test_memory_is_a_bit_a_block_twice_and_little_more() -> None:
    layout = at.plan([volume(1, 0, 0, 2 << 30, 1 << 40)])
    assert layout.half_words * 16 == 64 * (1 << 20) + 2 * (2 + 1) * 4096


def test_a_group_of_no_volume_or_of_too_many_disks_is_refused() -> None:
    with pytest.raises(ValueError, match="disks"):
        at.plan([])
    with pytest.raises(ValueError, match="disks"):
        at.plan([volume(number, number, 0, 8) for number in range(1, at.DISKS_MAX + 2)])


def test_any_change_of_a_volume_changes_the_geometry() -> None:
    base = at.plan([volume(1, 0, 0, 800)]).geometry_hash
    others = [volume(2, 0, 0, 800), volume(1, 1, 0, 800), volume(1, 0, 8, 800), volume(1, 0, 0, 808)]
    assert len({base, *(at.plan([other]).geometry_hash for other in others)}) == 5
