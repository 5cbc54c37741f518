"""Extent maps against an oracle that paints bytes one by one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.store.views import extentmap
from drengine.store.views.extentmap import FlatMap, coalesce, merge, resolve

SIZE = 96
FAR = (1 << 63) - SIZE
"""Offsets near the largest legal one: where float arithmetic would go wrong."""


class Row(NamedTuple):
    start: int
    length: int
    segment: int
    record: int
    plain_offset: int


rows = st.lists(
    st.builds(
        Row,
        start=st.integers(0, SIZE - 1),
        length=st.integers(0, SIZE // 2),
        segment=st.integers(0, 3),
        record=st.integers(0, 2),
        plain_offset=st.integers(0, 40),
    ).map(lambda row: row._replace(length=min(row.length, SIZE - row.start))),
    max_size=24,
)
bases = st.sampled_from([0, 1 << 32, FAR])

Byte = tuple[int, int, int] | None
"""Where one byte comes from: (segment, record, plain offset); zeros are (0, 0, 0); None was never written."""


def flat_map(log: list[Row], base: int = 0) -> FlatMap:
    columns = np.array(log, dtype=np.uint64).reshape(-1, 5)
    return resolve(
        columns[:, 0] + np.uint64(base),
        columns[:, 1],
        segment=columns[:, 2],
        record=columns[:, 3],
        plain_offset=columns[:, 4],
    )


def painted(log: list[Row]) -> list[Byte]:
    disk: list[Byte] = [None] * SIZE
    for row in log:
        for i in range(row.length):
            disk[row.start + i] = (row.segment, row.record, row.plain_offset + i) if row.segment else (0, 0, 0)
    return disk


def unpacked(flat: FlatMap, base: int = 0) -> list[Byte]:
    disk: list[Byte] = [None] * SIZE
    for start, length, segment, record, plain_offset in zip(*map(np.ndarray.tolist, flat.columns), strict=True):
        for i in range(length):
            disk[start - base + i] = (segment, record, plain_offset + i) if segment else (0, 0, 0)
    return disk


def check_invariant(flat: FlatMap) -> None:
    assert np.all(flat.lengths > 0)
    assert np.all(flat.ends[:-1] <= flat.starts[1:])
    zeros = flat.segments == 0
    assert not flat.records[zeros].any()
    assert not flat.plain_offsets[zeros].any()
    again = coalesce(flat)
    assert len(again) == len(flat), "neighbours that continue each other were left apart"


@given(log=rows, base=bases)
def test_the_newest_extent_wins_whatever_the_overlaps(log: list[Row], base: int) -> None:
    flat = flat_map(log, base)
    check_invariant(flat)
    assert unpacked(flat, base) == painted(log)


@given(log=rows, expansion=st.integers(1, 8))
def test_painting_in_parts_gives_the_same_map(log: list[Row], expansion: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extentmap, "EXPANSION_MAX", expansion)
        flat = flat_map(log)
    assert unpacked(flat) == painted(log)


@given(older=rows, newer=rows, base=bases)
def test_a_merge_equals_both_logs_one_after_the_other(older: list[Row], newer: list[Row], base: int) -> None:
    merged = merge(flat_map(newer, base), flat_map(older, base))
    check_invariant(merged)
    assert unpacked(merged, base) == painted(older + newer)


@given(log=rows, base=bases, offset=st.integers(0, SIZE - 1), length=st.integers(0, SIZE))
def test_a_lookup_hands_out_the_range_and_nothing_else(log: list[Row], base: int, offset: int, length: int) -> None:
    length = min(length, SIZE - offset)
    found = flat_map(log, base).lookup(base + offset, length)
    disk: list[Byte] = [None] * SIZE
    end = base + offset
    for piece in found:
        assert piece.start >= end
        end = piece.start + piece.length
        for i in range(piece.length):
            byte = (piece.segment, piece.record, piece.plain_offset + i) if piece.segment else (0, 0, 0)
            disk[piece.start - base + i] = byte
    assert end <= base + offset + length or not found
    expected = painted(log)
    expected[:offset] = [None] * offset
    expected[offset + length :] = [None] * (SIZE - offset - length)
    assert disk == expected


@given(log=rows, size=st.integers(0, SIZE))
def test_a_clipped_map_forgets_what_lies_behind_the_size(log: list[Row], size: int) -> None:
    clipped = flat_map(log).clip(size)
    check_invariant(clipped)
    assert unpacked(clipped) == painted(log)[:size] + [None] * (SIZE - size)


@given(log=rows)
def test_maps_share_nothing_with_their_input(log: list[Row]) -> None:
    columns = np.array(log, dtype=np.uint64).reshape(-1, 5)
    before = columns.copy()
    flat = resolve(
        columns[:, 0], columns[:, 1], segment=columns[:, 2], record=columns[:, 3], plain_offset=columns[:, 4]
    )
    assert np.array_equal(columns, before)
    columns[:] = 77
    assert unpacked(flat) == painted(log)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_many_random_extents_over_several_layers(seed: int) -> None:
    random = np.random.default_rng(seed)
    oracle = np.full(4096, -1, dtype=np.int64)
    whole = FlatMap.empty()
    for layer in range(1, 6):
        count = 400
        starts = random.integers(0, 4000, count)
        lengths = random.integers(1, 96, count)
        segments = np.full(count, layer)
        records = np.arange(count)
        whole = merge(
            resolve(
                starts,
                lengths,
                segment=segments,
                record=records,
                plain_offset=np.zeros(count),
            ),
            whole,
        )
        for start, length, record in zip(starts, lengths, records, strict=True):
            oracle[start : start + length] = layer * 1_000_000_000 + record * 1000 + np.arange(length)
    found = np.full(4096, -1, dtype=np.int64)
    for start, length, segment, record, plain_offset in zip(*map(np.ndarray.tolist, whole.columns), strict=True):
        found[start : start + length] = segment * 1_000_000_000 + record * 1000 + plain_offset + np.arange(length)
    assert np.array_equal(found, oracle)


def test_a_sequential_terabyte_needs_28_bytes_per_mapping() -> None:
    # Records of 1 MiB, each in 16 extents that continue each other: one mapping a record.
    records = 4096
    count = records * 16
    flat = resolve(
        np.arange(count) * 65536,
        np.full(count, 65536),
        segment=np.ones(count),
        record=np.arange(count) // 16,
        plain_offset=np.arange(count) % 16 * 65536,
    )
    assert len(flat) == records
    assert flat.nbytes == 28 * records
    bytes_per_tib = flat.nbytes * (1 << 40) // (records << 20)
    assert bytes_per_tib <= 64 << 20
