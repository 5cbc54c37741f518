"""The disk image that all copies are measured on: 35 % zeros, 35 % compressible 3:1, 30 % random, in mixed runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHUNK_BYTES = 64 << 10
GRAIN_BYTES = 4096


def _compressible(rng: np.random.Generator) -> bytes:
    """64 KiB that zstd -1 shrinks about 3:1: random words from a small vocabulary between random bytes."""
    words = rng.integers(0, 256, (64, 24), dtype=np.uint8)
    rows = CHUNK_BYTES // 32
    body = np.empty((rows, 32), dtype=np.uint8)
    body[:, :24] = words[rng.integers(0, 64, rows)]
    body[:, 24:] = rng.integers(0, 256, (rows, 8), dtype=np.uint8)
    return body.tobytes()


def make_image(path: Path, size_bytes: int, *, seed: int = 1) -> None:
    """Write the image whole, without holes, so that every tool reads the same bytes."""
    rng = np.random.default_rng(seed)
    lengths = random.Random(seed)
    templates = [_compressible(rng) for _ in range(64)]
    with path.open("wb") as image:
        left = size_bytes // CHUNK_BYTES
        while left:
            run = min(left, lengths.choice((1, 2, 4, 16, 64, 128)))
            kind = lengths.random()
            if kind < 0.35:
                image.write(bytes(run * CHUNK_BYTES))
            elif kind < 0.70:
                for _ in range(run):
                    block = bytearray(lengths.choice(templates))
                    block[:8] = lengths.randbytes(8)
                    image.write(block)
            else:
                image.write(rng.bytes(run * CHUNK_BYTES))
            left -= run


def random_blocks(size_bytes: int, share: float, *, seed: int) -> Iterator[tuple[int, bytes]]:
    """A share of the 4 KiB blocks in random places, in the order of their offsets, with half-random contents."""
    blocks = size_bytes // GRAIN_BYTES
    for block in sorted(random.Random(seed).sample(range(blocks), int(blocks * share))):
        yield (
            block * GRAIN_BYTES,
            random.Random(seed + block).randbytes(GRAIN_BYTES // 2) + bytes(GRAIN_BYTES // 2),
        )


def change_random(path: Path, share: float, *, seed: int) -> int:
    """Overwrite a share of the 4 KiB blocks at random places; returns how many."""
    count = 0
    with path.open("r+b") as image:
        for offset, data in random_blocks(path.stat().st_size, share, seed=seed):
            image.seek(offset)
            image.write(data)
            count += 1
    return count


def change_contiguous(path: Path, share: float, *, seed: int) -> int:
    """Overwrite one contiguous share in the middle; returns its length in bytes."""
    size = path.stat().st_size
    length = int(size * share) // GRAIN_BYTES * GRAIN_BYTES
    with path.open("r+b") as image:
        image.seek(size // 2 // GRAIN_BYTES * GRAIN_BYTES)
        image.write(random.Random(seed).randbytes(length))
    return length
