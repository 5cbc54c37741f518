"""Windows against the layers that they stand for, and what a branch shows through them while it is written."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drengine.model.points import PointKind
from drengine.store.log.writable import WritableView
from drengine.store.views.extentmap import FlatMap, resolve
from drengine.store.views.stack import StackLayer
from drengine.store.views.view import View, look_up
from drengine.store.views.windows import WINDOW_BYTES, Piece, Window, Windows, resolve_window
from tests.store.harness import Disk, Source, scratch, tiny_store

SPAN = 1000
BASE = WINDOW_BYTES - SPAN // 2
"""Where the small worlds of these tests lie: across the boundary of two windows."""

rows = st.lists(
    st.tuples(st.integers(0, SPAN - 1), st.integers(1, 300), st.integers(0, 3), st.integers(0, 50)), max_size=12
)


def flat_of(found: list[tuple[int, int, int, int]], base: int = BASE) -> FlatMap:
    """Rows of (start, length, segment, record); plain offsets follow from the order."""
    columns = np.array(found, dtype=np.int64).reshape(-1, 4)
    plain = np.arange(len(columns)) * 1000
    start, length, segment, record = columns.T
    return resolve(start + base, length, segment=segment, record=record, plain_offset=plain)


def shown(pieces: Iterator[Piece] | list[Piece]) -> list[tuple[int, int, int, int] | None]:
    """What each byte comes from; zeros and holes are the same."""
    return [
        (p.branch, p.segment, p.record, p.plain_offset + i) if p.segment > 0 else None
        for p in pieces
        for i in range(p.length)
    ]


def all_of(window: Window) -> list[tuple[int, int, int, int] | None]:
    at, pieces = 0, []
    while at < window.length:
        pieces.append(window.piece(at, window.length))
        at += pieces[-1].length
    return shown(pieces)


@given(st.lists(st.tuples(st.integers(1, 3), rows), max_size=5), st.integers(0, SPAN), st.integers(1, SPAN))
def test_a_window_shows_what_its_layers_show(
    layers: list[tuple[int, list[tuple[int, int, int, int]]]], start: int, length: int
) -> None:
    stack = [StackLayer(branch, {1: flat_of(found)}) for branch, found in layers]
    window = resolve_window(stack, 1, BASE + start, BASE + start + length)
    assert all_of(window) == shown(look_up(stack, 1, BASE + start, length))
    assert all_of(resolve_window(stack, 2, 0, length)) == [None] * length


@given(rows, st.lists(rows, min_size=1, max_size=4))
def test_windows_that_rows_were_laid_over_show_what_windows_resolved_anew_do(
    oldest: list[tuple[int, int, int, int]], newer: list[list[tuple[int, int, int, int]]]
) -> None:
    windows, keys = Windows(1 << 20), ((1, 0), (1, 1))
    stack = [StackLayer(1, {1: flat_of(oldest)})]
    for key in keys:
        windows.put(key, fresh(stack, key), windows.begin(key))
    for number, found in enumerate(newer, 2):
        flat = flat_of(found)
        stack.insert(0, StackLayer(number, {1: flat}))
        windows.lay(1, flat, number)
        for key in keys:
            kept = windows.get(key)
            assert kept is not None
            assert around(kept, key) == around(fresh(stack, key), key)


def fresh(stack: list[StackLayer], key: tuple[int, int]) -> Window:
    return resolve_window(stack, key[0], key[1] * WINDOW_BYTES, (key[1] + 1) * WINDOW_BYTES)


def around(window: Window, key: tuple[int, int]) -> list[tuple[int, int, int, int] | None]:
    """The part of it that these tests change."""
    at, end = (BASE, WINDOW_BYTES) if key[1] == 0 else (0, 2 * SPAN)
    pieces = []
    while at < end:
        pieces.append(window.piece(at, end))
        at += pieces[-1].length
    return shown(pieces)


def test_a_window_resolved_before_a_write_is_not_kept_after_it() -> None:
    windows, key = Windows(1 << 20), (1, 0)
    ticket = windows.begin(key)
    old = resolve_window([], 1, 0, WINDOW_BYTES)
    windows.lay(1, flat_of([(0, 10, 1, 0)], base=0), 1)
    windows.put(key, old, ticket)
    assert windows.get(key) is None
    windows.put(key, old, windows.begin(key))
    assert windows.get(key) is old


@pytest.mark.parametrize("count", [1, 100])
def test_much_written_at_once_makes_a_window_forgotten_and_never_wrong(count: int) -> None:
    windows, key = Windows(1 << 20), (1, 0)
    windows.put(key, resolve_window([], 1, 0, WINDOW_BYTES), windows.begin(key))
    windows.lay(1, flat_of([(at * 20, 10, 1, at) for at in range(count)], base=0), 1)
    assert (windows.get(key) is None) == (count == 100)
    windows.put(key, resolve_window([], 1, 0, WINDOW_BYTES), windows.begin(key))
    windows.lay(1, flat_of([(0, 1 << 30, 0, 0)], base=0), 1)
    assert windows.get(key) is None


def test_the_windows_that_are_kept_are_bounded_by_bytes() -> None:
    windows = Windows(100_000)
    for number in range(1000):
        key = (1, number)
        windows.put(key, resolve_window([], 1, 0, WINDOW_BYTES), windows.begin(key))
    kept = [number for number in range(1000) if windows.get((1, number))]
    assert 50 < len(kept) < 100
    assert kept[-1] == 999


# A branch.

SIZE = 2 * WINDOW_BYTES + 300_000
PLACES = (0, WINDOW_BYTES, 2 * WINDOW_BYTES, SIZE)
"""Changes and reads gather around these."""


@contextmanager
def branch(seed: int = 0) -> Iterator[tuple[Source, WritableView, Disk]]:
    with scratch() as path:
        source = Source(tiny_store(path), seed=seed, disk=SIZE)
        source.write(1, WINDOW_BYTES - 5000, source.random.randbytes(10_000))
        point = source.cut()
        source.commit()
        drill = source.store.create_branch(source.point(point), role="drill", label="")
        with source.store.writable("web1", drill.number, generation=drill.generation) as view:
            yield source, view, source.points[point].copy()
        source.writer.close()
        source.store.close()


def compare(view: View, disk: Disk, offset: int, length: int) -> bool:
    """All ways of reading agree with the model; whether `read_now` had an answer."""
    expected = disk.data[1][offset : offset + length]
    now = view.read_now(1, offset, length)
    assert now is None or bytes(now) == expected
    assert view.read(1, offset, length) == expected
    buffer = bytearray(b"\xee" * length)
    view.read_into(1, offset, buffer)
    assert buffer == expected
    again = view.read_now(1, offset, length)
    assert again is None or bytes(again) == expected
    return again is not None


ranges = st.tuples(st.sampled_from(PLACES), st.integers(-9000, 9000), st.integers(1, 12_000)).map(
    lambda drawn: (max(0, min(drawn[0] + drawn[1], SIZE - 1)), drawn[2])
)


class BranchMachine(RuleBasedStateMachine):
    """A drill's branch, written and read at any alignment; segments close often, so layers change."""

    @initialize()
    def begin(self) -> None:
        self.held = branch()
        self.source, self.view, self.disk = self.held.__enter__()
        self.answered = 0

    def teardown(self) -> None:
        if hasattr(self, "held"):
            self.held.__exit__(None, None, None)

    @rule(where=ranges, seed=st.integers(0, 1 << 16))
    def write(self, where: tuple[int, int], seed: int) -> None:
        offset, length = where[0], min(where[1], SIZE - where[0])
        data = random.Random(seed).randbytes(length)
        if not self.view.write_now(1, offset, data):
            self.view.write(1, offset, data)
        self.disk.write(1, offset, data)

    @rule(where=ranges, keep=st.booleans())
    def clear(self, where: tuple[int, int], keep: bool) -> None:
        offset, length = where[0], min(where[1], SIZE - where[0])
        (self.view.zero if keep else self.view.discard)(1, offset, length)
        self.disk.write(1, offset, length)

    @rule()
    def clear_much(self) -> None:
        self.view.discard(1, 0, SIZE)
        self.disk.write(1, 0, SIZE)

    @rule()
    def flush(self) -> None:
        self.view.flush()

    @rule()
    def cut(self) -> None:
        self.view.cut(PointKind.WRITE_ORDER)

    @rule()
    def many_small_writes(self) -> None:
        for at in range(0, 100 * 600, 600):
            self.view.write(1, at, b"\x01" * 300)
            self.disk.write(1, at, b"\x01" * 300)

    @rule(where=ranges)
    def read(self, where: tuple[int, int]) -> None:
        compare(self.view, self.disk, where[0], min(where[1], SIZE - where[0]))

    @invariant()
    def every_boundary_is_right(self) -> None:
        if hasattr(self, "view"):
            compare(self.view, self.disk, WINDOW_BYTES - 3000, 6000)


TestBranch = BranchMachine.TestCase
TestBranch.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_read_now_answers_what_was_read_or_brought_near() -> None:
    with branch() as (_, view, disk):
        assert not compare(view, disk, WINDOW_BYTES - 3000, 6000), "it crosses windows"
        assert compare(view, disk, WINDOW_BYTES - 3000, 3000)
        assert compare(view, disk, 0, 4096), "zeros"
        assert view.read_now(1, WINDOW_BYTES * 2, 4096) is None, "nobody has looked there yet"
        view.read(1, WINDOW_BYTES * 2, 4096)
        assert view.read_now(1, WINDOW_BYTES * 2, 4096) == bytes(4096)


def test_concurrent_readers_see_each_write_from_when_it_was_answered() -> None:
    """Blocks carry a number that only grows; a read shows one that was answered before it began, or a newer one."""
    blocks, size = 16, 4096
    with branch() as (_, view, _):
        answered, begun = [0] * blocks, [0] * blocks
        stopped, wrong = threading.Event(), []

        def read(seed: int) -> None:
            rng = random.Random(seed)
            while not stopped.is_set():
                block = rng.randrange(blocks)
                least = answered[block]
                data = view.read_now(1, block * size, size) if seed % 2 else view.read(1, block * size, size)
                if data is not None:
                    number = int.from_bytes(data[:4], "big")
                    if bytes(data) != number.to_bytes(4, "big") * (size // 4) or not least <= number <= begun[block]:
                        wrong.append((block, least, number, begun[block]))

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        rng = random.Random(5)
        for step in range(1, 400):
            block = rng.randrange(blocks)
            begun[block] = step
            view.write(1, block * size, step.to_bytes(4, "big") * (size // 4))
            answered[block] = step
            if step % 7 == 0:
                view.flush()
        stopped.set()
        for reader in readers:
            reader.join()
        assert wrong == []
