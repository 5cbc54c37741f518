"""What the extent map of a volume takes, written sequentially and in random 4 KiB blocks, per TiB of volume written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import GIB, MIB, Bench
from benchmarks.results import Figure, Table
from benchmarks.streams import SOURCE, write_stream
from drengine.model.extents import BLOCK_BYTES, GRAIN_BYTES
from drengine.model.points import PointSelector
from drengine.store.store import Store

TIB = 1 << 40
SEQUENTIAL, RANDOM = "64 KiB blocks in sequence", "4 KiB blocks in random order"
AIM_MIB = 64


def measure(bench: Bench) -> list[Table]:
    """Bytes of the layers that a view of the newest point looks through."""
    written = 4 * GIB if bench.quick else 32 * GIB
    patterns: list[tuple[str, int, NDArray[np.uint64]]] = [
        (
            SEQUENTIAL,
            BLOCK_BYTES,
            np.arange(written // BLOCK_BYTES, dtype=np.uint64) * np.uint64(BLOCK_BYTES),
        ),
        (
            RANDOM,
            GRAIN_BYTES,
            np.random.default_rng(1).permutation(np.arange(written // 8 // GRAIN_BYTES, dtype=np.uint64))
            * np.uint64(GRAIN_BYTES),
        ),
    ]
    mapped: list[Figure] = []
    for name, extent_bytes, offsets in patterns:
        total = len(offsets) * extent_bytes
        store = bench.fresh("memory") / "store"
        write_stream(store, total, offsets, extent_bytes)
        rows, looked = _layers(store)
        note = f"{rows:,} mappings for {total / GIB:.1f} GiB; {looked / MIB:.1f} MiB to look through"
        per_tib = looked / total * TIB / MIB
        mapped.append(Figure(name, per_tib, (per_tib,), None, note, ours=True))
    return [
        Table(
            "store_memory",
            "Extent map for each TiB written",
            "MiB",
            tuple(mapped),
            aims={SEQUENTIAL: AIM_MIB},
            baseline=SEQUENTIAL,
            remark="Layers are mapped files: the kernel keeps what is used and may drop it; they take address space "
            "and page cache, not the process's own memory.",
        )
    ]


def _layers(path: Path) -> tuple[int, int]:
    """Mappings and bytes of the layers under the newest point."""
    with Store.open(path) as store:
        point = store.find_point(SOURCE, PointSelector())
        stack = store.context.layers.stack(SOURCE, point.branch, point.sequence, point.geometry)
        maps = [flat for layer in stack for flat in layer.maps.values()]
        rows, looked = sum(map(len, maps)), sum(flat.nbytes for flat in maps)
    return rows, looked
