"""A writer whose every record can be told again from its position: for real kills and real full disks.

Run as ``python -m tests.crash.stamps STORE SEED`` it replicates until it is killed, and prints each position that was
acknowledged to it.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from drengine.model.clock import SystemClock
from drengine.model.extents import ExtentKind
from drengine.model.points import Cut, Mark, PointKind
from drengine.store.care.retention import RetentionPolicy
from drengine.store.log.writer import BranchWriter
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from tests.crash.workload import SOURCE, Content, Write, batch, changed, geometry

SIZES = (192 * 1024, 64 * 1024 + 512)
OPTIONS = StoreOptions(segment_bytes_max=64 << 10, segment_extents_max=256)
CUT_EVERY = 5
KEEP_NONE = RetentionPolicy.parse("all for 0s")


def writes_at(seed: int, sequence: int) -> tuple[Write, ...]:
    """What the record at a position changes; position 1 is the geometry, each CUT_EVERYth is a cut."""
    chosen = random.Random(f"{seed}/{sequence}")
    made = []
    for _ in range(chosen.randint(1, 4)):
        volume = chosen.randrange(len(SIZES))
        length = chosen.choice((512, 4096, 8192))
        offset = chosen.randrange(0, SIZES[volume] - length, 512)
        length = min(length, 65536 - offset % 65536)
        kind = ExtentKind.DATA if chosen.random() < 0.9 else ExtentKind.ZERO
        made.append(Write(volume + 1, kind, offset, length, chosen.randrange(1 << 30)))
    return tuple(made)


def is_cut(sequence: int) -> bool:
    """Whether a position holds a cut."""
    return sequence % CUT_EVERY == 0


class History:
    """Content at ascending positions, told from the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sequence = 0
        self._content: Content = {}

    def at(self, sequence: int) -> Content:
        """Content at a position, not lower than one asked for before."""
        assert sequence >= self._sequence, "positions must ascend"
        while self._sequence < sequence:
            self._sequence += 1
            if self._sequence == 1:
                self._content = {number: bytes(size) for number, size in enumerate(SIZES, 1)}
            elif not is_cut(self._sequence):
                self._content = changed(self._content, writes_at(self._seed, self._sequence))
        return self._content


def append_next(writer: BranchWriter, seed: int) -> None:
    """Append the record at the next position."""
    sequence, generation = writer.appended_sequence + 1, writer.generation
    mark = Mark(b"s" * 16, sequence)
    if sequence == 1:
        writer.append_geometry(sequence, mark, geometry(SIZES), generation=generation)
    elif is_cut(sequence):
        now_ns = SystemClock().now_ns()
        writer.append_cut(sequence, mark, Cut(now_ns, PointKind.QUIET), generation=generation)
    else:
        writer.append_batch(sequence, mark, batch(writes_at(seed, sequence)), generation=generation)


def check(store: Store, seed: int, acknowledged: int) -> int:
    """Every point and the head show exactly a prefix, and the head is not behind what was acknowledged.

    Returns:
        The durable position.
    """
    history = History(seed)
    for point in store.points(SOURCE):
        assert not point.damaged
        with store.view(point) as view:
            expected = history.at(point.sequence)
            assert {number: view.read(number, 0, len(data)) for number, data in expected.items()} == expected
    (branch,) = store.branches(SOURCE)
    assert branch.durable_sequence >= acknowledged, "an acknowledged position is gone"
    with store.head_view(SOURCE) as view:
        expected = history.at(branch.durable_sequence)
        assert {number: view.read(number, 0, len(data)) for number, data in expected.items()} == expected
    return branch.durable_sequence


def replicate(store: Store, seed: int, say: Callable[[int], None], *, records: int | None = None) -> None:
    """Append and commit, with retention and compaction in between; for ever, or `records` records."""
    chosen = random.Random(f"{seed}/{os.getpid()}")
    store.ensure_source(SOURCE)
    writer = store.writer(SOURCE, generation=1)
    done = 0
    try:
        while records is None or done < records:
            for _ in range(chosen.randint(1, 6)):
                append_next(writer, seed)
                done += 1
            say(writer.commit(generation=1).sequence)
            if chosen.random() < 0.1:
                store.retain(KEEP_NONE, SystemClock().now_ns())
                store.compact()
    finally:
        writer.close()


def main() -> None:
    """The child: STORE SEED."""
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    store = Store.open(path, options=OPTIONS) if (path / "STORE").exists() else Store.create(path, options=OPTIONS)
    replicate(store, seed, lambda sequence: print(sequence, flush=True))


if __name__ == "__main__":
    main()
