"""Extent tables: the log lets in exactly what the rules of the model let in; an older record is still read."""

from __future__ import annotations

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
    Batch,
    Codec,
    Extent,
    ExtentKind,
    check_table,
    pack_table,
)
from drengine.store.segments import format as segment
from drengine.store.store import Store
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


def verdict(check, table: bytes, plain_length: int) -> bool:
    try:
        check(table, plain_length, SIZES)
    except DrengineError as error:
        assert error.kind is BAD_EXTENTS
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(st.lists(ROWS, max_size=6), st.booleans(), st.integers(-1, 4 << 20), st.integers(0, 7), st.integers(0, 255))
def test_the_log_lets_in_what_the_rules_let_in(rows, honest, claimed, pad, noise):
    table = bytearray(pack_table(rows))
    if table and noise < 20 and pad:
        table[5 + pad % 3] = noise
    plain = sum(row.length for row in rows if row.kind == ExtentKind.DATA) if honest else claimed
    assert verdict(segment.check_table, bytes(table), plain) == verdict(check_table, bytes(table), plain)


@pytest.mark.parametrize("seed", range(20))
def test_a_full_table_is_judged_by_its_worst_row(seed):
    rng = random.Random(seed)
    rows = [Extent(1, ExtentKind.DATA, at * 8, 8, b"d" * 16) for at in range(BATCH_EXTENTS_MAX)]
    assert verdict(segment.check_table, pack_table(rows), 8 * len(rows))
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
        segment.check_table(pack_table(rows), sum(row.length for row in rows if row.kind == 1), SIZES)
    assert caught.value.kind is BAD_EXTENTS


@pytest.mark.parametrize("length", [1, EXTENT.size - 1, EXTENT.size * (BATCH_EXTENTS_MAX + 1)])
def test_a_torn_or_endless_table_is_refused(length):
    assert not verdict(segment.check_table, bytes(length), 0)
    assert not verdict(check_table, bytes(length), 0)


def test_a_record_that_was_let_in_before_the_rule_was_checked_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_store(tmp_path) as store:
        source = Source(store, root=300_000)
        source.write(1, 0, b"x" * 8192)
        with monkeypatch.context() as patch:
            patch.setattr(segment, "check_table", lambda *_: None)
            old = Batch(pack_table([Extent(1, ExtentKind.ZERO, 4096, 4096, b"d" * 16)]), Codec.RAW, 0, b"")
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
