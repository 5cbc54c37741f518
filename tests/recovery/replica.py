"""A store with a known history, made without a daemon."""

from __future__ import annotations

import random
from pathlib import Path

from drengine.model.extents import Batch, Codec, Extent, ExtentKind, pack_table
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
                    batch = Batch(pack_table([extent]), Codec.RAW, 0, b"")
                else:
                    data = rng.randbytes(rng.choice((512, 4096, 65536)))
                    model[offset : offset + len(data)] = data
                    batch = data_batch([(offset, data)])
                writer.append_batch(sequence, Mark(), batch, generation=1)
            tail = rng.randbytes(512)
            model[-512:] = tail
            sequence += 2
            writer.append_batch(sequence - 1, Mark(), data_batch([(SIZE - 512, tail)]), generation=1)
            cut = Cut(1_700_000_000_000_000_000 + number, PointKind.WRITE_ORDER, f"cut {number}")
            writer.append_cut(sequence, Mark(), cut, generation=1)
            writer.commit(generation=1)
            found[f"1-{sequence}"] = bytes(model)
        writer.close()
    return found


def point_of(store: Store, point_id: str, source: str = "shop") -> RecoveryPoint:
    return next(point for point in store.points(source) if point.id == point_id)
