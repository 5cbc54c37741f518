"""Streams written straight to a store, for works that ask what a long history costs: no disk is read for them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drengine.model.extents import BATCH_PLAIN_BYTES_MAX, EXTENT, Batch, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.store.log.writer import BranchWriter
from drengine.store.store import Store
from drengine.wire.payload import digest, encode_frames

SOURCE, VOLUME, COMMIT_EVERY = "source", 1, 64
_ROW = np.dtype(
    {"names": ["volume", "kind", "offset", "length", "digest"], "formats": ["<u4", "u1", "<u8", "<u8", "V16"],
     "offsets": [0, 4, 8, 16, 24], "itemsize": EXTENT.size}
)  # fmt: skip


def write_stream(path: Path, size_bytes: int, offsets: NDArray[np.uint64], extent_bytes: int) -> None:
    """A store with one volume whose extents were written at `offsets`, in this order, and one recovery point.

    Every extent has the same compressible content, so that a long history takes little disk.
    """
    block = (b"drengine" * (extent_bytes // 8))[:extent_bytes]
    per_batch = min(BATCH_PLAIN_BYTES_MAX // 4, 16 << 20) // extent_bytes
    payloads = {}
    mark = Mark(bytes(15) + b"\1", 1)
    with Store.create(path) as store:
        generation = store.ensure_source(SOURCE).generation
        writer = store.writer(SOURCE, generation=generation)
        try:
            writer.append_geometry(1, mark, (VolumeGeometry(VOLUME, "disk", "", size_bytes),), generation=generation)
            sequence = 1
            for number, first in enumerate(range(0, len(offsets), per_batch)):
                part = offsets[first : first + per_batch]
                if len(part) not in payloads:
                    payloads[len(part)] = encode_frames([extent_bytes] * len(part), block * len(part), 1)
                rows = np.zeros(len(part), _ROW)
                rows["volume"], rows["kind"], rows["offset"], rows["length"] = (
                    VOLUME,
                    ExtentKind.DATA,
                    part,
                    extent_bytes,
                )
                rows["digest"] = np.void(digest(block))
                sequence += 1
                batch = Batch(rows.tobytes(), *payloads[len(part)])
                writer.append_batch(sequence, mark, batch, generation=generation)
                if number % COMMIT_EVERY == COMMIT_EVERY - 1:
                    writer.commit(generation=generation)
            _end(writer, sequence + 1, mark, generation)
        finally:
            writer.close()


def _end(writer: BranchWriter, sequence: int, mark: Mark, generation: int) -> None:
    writer.append_cut(sequence, mark, Cut(time.time_ns(), PointKind.QUIET), generation=generation)
    writer.commit(generation=generation)
