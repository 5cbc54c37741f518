"""What a flush of a writable branch promises, against a model: random writes, reads, flushes, cuts and kills."""

from __future__ import annotations

import random

import pytest

from drengine.model.points import PointKind
from drengine.store.log.writable import WritableView
from tests.store.harness import Disk, Source, check_head, check_point, crash, scratch, tiny_store

SIZE = 400_000


def _change(rng: random.Random, view: WritableView, disk: Disk) -> None:
    offset = rng.randrange(SIZE)
    length = rng.randrange(1, min(SIZE - offset, 20_000) + 1)
    match rng.randrange(4):
        case 0:
            view.zero(1, offset, length)
            disk.write(1, offset, length)
        case 1:
            view.discard(1, offset, length)
            disk.write(1, offset, length)
        case _:
            data = rng.randbytes(length)
            view.write(1, offset, data)
            disk.write(1, offset, data)


@pytest.mark.parametrize("seed", range(12))
def test_a_kill_leaves_exactly_what_the_last_flush_or_cut_covered(seed: int) -> None:
    rng = random.Random(seed)
    with scratch() as path:
        source = Source(tiny_store(path), seed=seed, disk=SIZE)
        source.write_random(5)
        point = source.cut()
        source.commit()
        drill = source.store.create_branch(source.point(point), role="drill", label="")
        disk, cuts = source.points[point].copy(), []
        for _ in range(4):
            view = source.store.writable("web1", drill.number, generation=drill.generation)
            flushed = disk.copy()
            for _ in range(40):
                _change(rng, view, disk)
                at = rng.randrange(SIZE - 5000)
                assert view.read(1, at, 5000) == disk.data[1][at : at + 5000]
                step = rng.random()
                if step < 0.1:
                    view.flush()
                    flushed = disk.copy()
                elif step < 0.15:
                    cuts.append((view.cut(PointKind.WRITE_ORDER), disk.copy()))
                    flushed = disk.copy()
            crash(view._writer)
            check_head(source.store, "web1", drill.number, flushed)
            disk = flushed
        for cut, shown in cuts:
            check_point(source.store, cut, shown)
        source.writer.close()
        source.store.close()
