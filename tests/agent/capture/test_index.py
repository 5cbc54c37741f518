"""The hash index: what it says it knows is so, whatever happened to its file."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.points import Mark, VolumeGeometry
from drengine_agent.capture.index import (
    DIGEST_BYTES,
    PAGE_BYTES,
    UNKNOWN,
    BlockIndex,
    IndexState,
    block_digest,
    hash_block,
)
from drengine_agent.capture.indexes import HashIndexes

MIB = 1 << 20
STATE = IndexState(b"e" * 16, 7, 42)
ENTRY = hash_block(memoryview(b"content" * 1000))


def volume(size: int = 3 * MIB + 1000, identity: str = "file:1") -> VolumeGeometry:
    return VolumeGeometry(1, "data", identity, size)


def filled(path: Path) -> None:
    index = BlockIndex(path, volume())
    index.reset(zeros=False)
    index.mark_open(STATE)
    index.remember(1, {3: ENTRY})
    index.close(STATE)


def test_a_clean_index_is_taken_up_with_what_it_knew(tmp_path: Path) -> None:
    filled(tmp_path / "i")
    index = BlockIndex(tmp_path / "i", volume())
    assert index.load() == STATE
    digests = index.digests(1)
    assert digests[3 * DIGEST_BYTES : 4 * DIGEST_BYTES] == ENTRY.digest
    assert digests[:DIGEST_BYTES] == UNKNOWN
    assert index.grains(1, 3)[: len(ENTRY.grains)] == ENTRY.grains
    index.close(None)


@pytest.mark.fault(22)
@pytest.mark.parametrize("stopped_after", ["reset", "mark_open", "remember", "forget"])
def test_an_index_that_was_not_closed_is_not_believed(tmp_path: Path, stopped_after: str) -> None:
    index = BlockIndex(tmp_path / "i", volume())
    steps = {
        "reset": lambda: index.reset(zeros=False),
        "mark_open": lambda: index.mark_open(STATE),
        "remember": lambda: index.remember(1, {3: ENTRY}),
        "forget": lambda: index.forget(1, [3]),
    }
    for name, step in steps.items():
        step()
        if name == stopped_after:
            break
    index.close(None)
    again = BlockIndex(tmp_path / "i", volume())
    assert again.load() is None
    again.close(None)


@pytest.mark.parametrize("other", [volume(4 * MIB), volume(identity="file:2")])
def test_an_index_of_another_volume_is_not_believed(tmp_path: Path, other: VolumeGeometry) -> None:
    filled(tmp_path / "i")
    index = BlockIndex(tmp_path / "i", other)
    assert index.load() is None
    index.close(None)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 4096 + 4 * PAGE_BYTES - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_makes_it_lie(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "i"
    filled(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    index = BlockIndex(path, volume())
    state = index.load()
    assert state in (None, STATE)
    if state is not None:
        for page in range(4):
            for block in range(16):
                digest = index.digests(page)[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
                assert digest == UNKNOWN or (digest == ENTRY.digest and (page, block) == (1, 3))
    index.close(None)


@pytest.mark.parametrize("length", [0, 100, 4095, 4096, 4096 + PAGE_BYTES, 4096 + 4 * PAGE_BYTES - 1])
def test_a_torn_index_begins_anew(tmp_path: Path, length: int) -> None:
    filled(tmp_path / "i")
    os.truncate(tmp_path / "i", length)
    index = BlockIndex(tmp_path / "i", volume())
    assert index.load() is None
    index.reset(zeros=False)
    assert set(index.digests(0)) == {0}
    index.close(None)


def test_an_index_begun_with_an_empty_target_knows_zeros_to_the_last_byte(tmp_path: Path) -> None:
    index = BlockIndex(tmp_path / "i", volume(MIB + 70_000))
    index.reset(zeros=True)
    assert index.digests(0) == block_digest(bytes(65536)) * 16
    last = index.digests(1)
    assert last[:16] == block_digest(bytes(65536))
    assert last[16:32] == block_digest(bytes(70_000 - 65536))
    assert last[32:48] == UNKNOWN
    index.close(None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_it_equals_a_dictionary_under_any_order_of_changes(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    random = Random(seed)
    index = BlockIndex(tmp_path_factory.mktemp("model") / "i", volume())
    index.reset(zeros=False)
    known: dict[tuple[int, int], bytes] = {}
    for _ in range(30):
        page, block = random.randrange(3), random.randrange(16)
        if random.random() < 0.6:
            entry = hash_block(memoryview(random.randbytes(5000)))
            index.remember(page, {block: entry})
            known[page, block] = entry.digest
        else:
            index.forget(page, [block])
            known.pop((page, block), None)
    for page in range(3):
        expected = b"".join(known.get((page, block), UNKNOWN) for block in range(16))
        assert index.digests(page) == expected
    index.close(None)


def test_a_target_of_another_epoch_makes_everything_unknown(tmp_path: Path) -> None:
    indexes = HashIndexes(tmp_path, [volume()])
    mark = indexes.begin(Mark(), target_empty=True)
    indexes.next_round()
    indexes.remember([(1, 1, 3, ENTRY)])
    indexes.close(clean=True)
    indexes = HashIndexes(tmp_path, [volume()])
    assert indexes.begin(Mark(b"another epoch...", 5), target_empty=False).epoch != mark.epoch
    assert indexes.take_doubt() == "epoch-changed"
    assert set(indexes.by_volume[1].digests(1)) == {0}
    indexes.close(clean=True)
