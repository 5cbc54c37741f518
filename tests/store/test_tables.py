"""Extent tables: the log lets in exactly what the rules of the model let in; an older record is still read."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import BAD_EXTENTS, DrengineError
from drengine.model.extents import (
    BATCH_EXTENTS_MAX,
    BLOCK_BYTES,
    EXTENT,
    FRAME,
    Batch,
    Extent,
    ExtentKind,
    check_table,
    pack_table,
)
from drengine.store.segments import format as segment
from drengine.store.store import Store
from drengine.wire.payload import frame_lengths
from tests.store.harness import Source, mark, tiny_store

SIZES = {1: 300_000, 2: 1, 7: (1 << 63) - 1, 9: 1 << 63}
EDGES = sorted(
    {0, 1, BLOCK_BYTES, 1 << 63, (1 << 64) - 1, *SIZES.values()}
    | {value - 1 for value in (BLOCK_BYTES, 2 * BLOCK_BYTES, *SIZES.values())}
)
NUMBERS = st.one_of(st.sampled_from(EDGES), st.integers(0, 400_000))
ROWS = st.builds(
    Extent,
    st.sampled_from([1, 1, 1, 2, 3, 7, 9]),
    st.sampled_from([1, 1, 2, 3, 4, 9]),
    NUMBERS,
    NUMBERS,
    st.sampled_from([bytes(16), bytes(16), b"d" * 16, bytes(15) + b"d", b"d" + bytes(15)]),
)


def frames_of(lengths: list[int]) -> bytes:
    """Raw frames of these plain lengths, however impossible."""
    return b"".join(FRAME.pack(length & 0xFFFFFFFF, length & 0xFFFFFFFF, 0, 0, 0, 0, 0) for length in lengths)


def verdict(check, table: bytes, frames: bytes) -> bool:
    try:
        check(table, frames, SIZES)
    except DrengineError as error:
        assert error.kind is BAD_EXTENTS
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(st.lists(ROWS, max_size=6), st.booleans(), st.data(), st.integers(0, 7), st.integers(0, 255))
def test_the_log_lets_in_what_the_rules_let_in(rows, honest, data, pad, noise):
    table = bytearray(pack_table(rows))
    if table and noise < 20 and pad:
        table[5 + pad % 3] = noise
    lengths = [row.length for row in rows if row.kind == ExtentKind.DATA and row.length <= BLOCK_BYTES]
    if honest:
        frames = frames_of(list(frame_lengths(lengths)))
    else:
        frames = frames_of(data.draw(st.lists(st.sampled_from([*lengths, 1, 5, BLOCK_BYTES]), max_size=6)))
    assert verdict(segment.check_table, bytes(table), frames) == verdict(check_table, bytes(table), frames)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, BLOCK_BYTES), min_size=1, max_size=40), st.data())
def test_an_extent_never_crosses_the_end_of_a_frame(lengths, data):
    rows, at = [], 0
    for length in lengths:
        rows.append(Extent(9, ExtentKind.DATA, at, length))
        at += BLOCK_BYTES
    frames = list(frame_lengths(lengths))
    assert max(frames) <= BLOCK_BYTES and sum(frames) == sum(lengths)
    table = pack_table(rows)
    assert verdict(segment.check_table, table, frames_of(frames)) and verdict(check_table, table, frames_of(frames))
    ends = set(itertools.accumulate(lengths))
    cut = data.draw(st.integers(1, sum(lengths)))
    parted = frames_of([cut, sum(lengths) - cut] if cut < sum(lengths) else [cut])
    for check in (segment.check_table, check_table):
        assert verdict(check, table, parted) == (cut in ends)


@pytest.mark.parametrize("seed", range(20))
def test_a_full_table_is_judged_by_its_worst_row(seed):
    rng = random.Random(seed)
    rows = [Extent(1, ExtentKind.DATA, at * 8, 8, b"d" * 16) for at in range(BATCH_EXTENTS_MAX)]
    frames = frames_of(list(frame_lengths([8] * len(rows))))
    assert verdict(segment.check_table, pack_table(rows), frames)
    at = rng.randrange(len(rows))
    rows[at] = rng.choice(
        [
            Extent(1, ExtentKind.ZERO, 0, 8, b"d" * 16),
            Extent(1, ExtentKind.DATA, SIZES[1] - 7, 8, b"d" * 16),
            Extent(1, ExtentKind.DATA, BLOCK_BYTES - 1, 8, b"d" * 16),
            Extent(4, ExtentKind.DATA, 0, 8, b"d" * 16),
            Extent(1, ExtentKind.DROPPED, 0, 8, b"d" * 16),
        ]
    )
    with pytest.raises(DrengineError, match=f"row {at}: ") as caught:
        segment.check_table(pack_table(rows), frames, SIZES)
    assert caught.value.kind is BAD_EXTENTS


@pytest.mark.parametrize("length", [1, EXTENT.size - 1, EXTENT.size * (BATCH_EXTENTS_MAX + 1)])
def test_a_torn_or_endless_table_is_refused(length):
    assert not verdict(segment.check_table, bytes(length), b"")
    assert not verdict(check_table, bytes(length), b"")


def test_a_record_that_was_let_in_before_the_rule_was_checked_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        source.write(1, 0, b"x" * 8192)
        with monkeypatch.context() as patch:
            patch.setattr(segment, "check_table", lambda *_: None)
            old = Batch(pack_table([Extent(1, ExtentKind.ZERO, 4096, 4096, b"d" * 16)]))
            source.writer.append_batch(source.next, mark(source.next), old, generation=1)
        source.disk.write(1, 4096, 4096)
        source.cut()
        source.commit()
        source.check()
        assert not store.scrub().records_damaged
        source.writer.close()
    assert Store.rebuild(tmp_path / "store").lost == []
    with Store.open(tmp_path / "store") as store:
        source.store = store
        source.check()
