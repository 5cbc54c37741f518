"""A store with a known history, made without a daemon."""

from __future__ import annotations

import random
from pathlib import Path

from drengine.model.extents import Batch, Extent, ExtentKind, pack_table
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint, VolumeGeometry
from drengine.store.store import Store
from tests.target.agent import data_batch

SIZE = (6 << 20) + 512
"""Several (shrunken) restore units and an odd tail."""


def make(directory: Path, *, seed: int = 1, source: str = "shop", identity: str = "file:1") -> dict[str, bytes]:
    """A store with two points of a volume that has data, zeros, holes and a 512-byte tail; contents by point id."""
    rng, model = random.Random(seed), bytearray(SIZE)
    store = Store.open(directory) if (directory / "STORE").exists() else Store.create(directory)
    found: dict[str, bytes] = {}
    with store:
        store.ensure_source(source)
        writer = store.writer(source, generation=1)
        sequence = 1
        writer.append_geometry(1, Mark(), (VolumeGeometry(1, "data", identity, SIZE),), generation=1)
        for number in range(2):
            for _ in range(24):
                sequence += 1
                offset = rng.randrange(SIZE // 65536) * 65536
                if rng.random() < 0.2:
                    extent = Extent(1, ExtentKind.ZERO, offset, 65536)
                    model[offset : offset + 65536] = bytes(65536)
                    batch = Batch(pack_table([extent]))
                else:
                    data = rng.randbytes(rng.choice((512, 4096, 65536)))
                    model[offset : offset + len(data)] = data
                    batch = data_batch([(offset, data)])
                writer.append_batch(sequence, Mark(), batch, generation=1)
            tail = rng.randbytes(512)
            model[-512:] = tail
            sequence += 2
            writer.append_batch(sequence - 1, Mark(), data_batch([(SIZE - 512, tail)]), generation=1)
            cut = Cut(1_700_000_000_000_000_000 + number * 1_234_567, PointKind.WRITE_ORDER, f"cut {number}")
            writer.append_cut(sequence, Mark(), cut, generation=1)
            writer.commit(generation=1)
            found[f"1-{sequence}"] = bytes(model)
        writer.close()
    return found


def point_of(store: Store, point_id: str, source: str = "shop") -> RecoveryPoint:
    return next(point for point in store.points(source) if point.id == point_id)


def make_several(directory: Path, sizes: dict[str, int], *, seed: int = 1) -> dict[str, bytes]:
    """A store with one point of several volumes, each with data in its first MiB; what that holds, by volume."""
    rng = random.Random(seed)
    contents = {name: rng.randbytes(min(size, 1 << 20)) for name, size in sizes.items()}
    volumes = tuple(VolumeGeometry(number, name, "", size) for number, (name, size) in enumerate(sizes.items(), 1))
    with Store.create(directory) as store:
        store.ensure_source("shop")
        writer = store.writer("shop", generation=1)
        writer.append_geometry(1, Mark(), volumes, generation=1)
        for sequence, volume in enumerate(volumes, 2):
            batch = data_batch([(0, contents[volume.name])], volume=volume.volume)
            writer.append_batch(sequence, Mark(), batch, generation=1)
        writer.append_cut(len(volumes) + 2, Mark(), Cut(1_700_000_000 * 10**9, PointKind.QUIET), generation=1)
        writer.commit(generation=1)
        writer.close()
    return contents
