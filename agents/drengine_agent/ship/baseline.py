"""What the target has, as hashes, from wherever that is known: nowhere needed, the local index, the target itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from drengine.model.extents import BLOCK_BYTES, GRAIN_BYTES
from drengine_agent.capture.index import (
    DIGEST_BYTES,
    GRAIN_DIGEST_BYTES,
    SLAB_BLOCKS,
    SLAB_BYTES,
    UNKNOWN,
    BlockIndex,
    block_digest,
)

Ask = Callable[[int, int, int, int], "Future[bytes]"]
"""(volume, offset, chunk_bytes, count) -> digests to come."""


class Expected(NamedTuple):
    """What the target has at a slab: xxh3-128 of each block, and which of them the local index didn't know."""

    digests: bytes
    unknown: frozenset[int] = frozenset()


class Baseline(Protocol):
    """Hashes to compare a volume's slabs with. Called from worker threads; may block on the network."""

    zeros_everywhere: bool
    """The target reads as zeros: holes need no comparison."""

    def expected(self, volume: int, page: int, length: int) -> Expected:
        """The hashes of the slab `page`, which has `length` bytes."""
        ...

    def grains(self, volume: int, page: int, block: int, length: int, *, known: bool) -> tuple[bytes, int] | None:
        """Digests of each grain of a block of `length` bytes, and the bytes of each: 8 (xxh3-64) or
        16 (xxh3-128). `known`: the block was not in `Expected.unknown`. None: all of the block differs."""
        ...


def _blocks(length: int) -> int:
    return -(-length // BLOCK_BYTES)


class ZeroBaseline:
    """An empty target: everything reads as zeros."""

    zeros_everywhere = True

    def __init__(self) -> None:
        self._zeros = memoryview(bytes(BLOCK_BYTES))
        self._full = block_digest(self._zeros) * SLAB_BLOCKS

    def expected(self, volume: int, page: int, length: int) -> Expected:
        """See Baseline."""
        if length == SLAB_BYTES:
            return Expected(self._full)
        tail = length % BLOCK_BYTES
        whole = self._full[: length // BLOCK_BYTES * DIGEST_BYTES]
        return Expected(whole + (block_digest(self._zeros[:tail]) if tail else b""))

    def grains(self, volume: int, page: int, block: int, length: int, *, known: bool) -> None:
        """See Baseline; looking for zeros inside a block costs more than their compressed bytes."""


class TargetBaseline:
    """The target's own hashes, asked for ahead of the workers so that a long network doesn't slow a rescan."""

    zeros_everywhere = False

    def __init__(self, ask: Ask, sizes: Mapping[int, int], *, region_pages: int = 16, ahead: int = 8) -> None:
        self._ask = ask
        self._sizes = sizes
        self._region_bytes = region_pages * SLAB_BYTES
        self._region_pages = region_pages
        self._ahead = ahead
        self._lock = threading.Lock()
        self._regions: OrderedDict[tuple[int, int], Future[bytes]] = OrderedDict()

    def expected(self, volume: int, page: int, length: int) -> Expected:
        """See Baseline."""
        region, inside = divmod(page, self._region_pages)
        with self._lock:
            for number in range(region, region + self._ahead + 1):
                self._prefetch(volume, number)
            answer = self._regions[volume, region]
            while len(self._regions) > 4 * (self._ahead + 1):
                self._regions.popitem(last=False)
        at = inside * SLAB_BLOCKS * DIGEST_BYTES
        return Expected(answer.result()[at : at + _blocks(length) * DIGEST_BYTES])

    def grains(self, volume: int, page: int, block: int, length: int, *, known: bool) -> tuple[bytes, int]:
        """See Baseline."""
        offset = page * SLAB_BYTES + block * BLOCK_BYTES
        return self._ask(volume, offset, GRAIN_BYTES, -(-length // GRAIN_BYTES)).result(), DIGEST_BYTES

    def _prefetch(self, volume: int, region: int) -> None:
        offset = region * self._region_bytes
        length = min(self._region_bytes, self._sizes[volume] - offset)
        if length > 0 and (volume, region) not in self._regions:
            self._regions[volume, region] = self._ask(volume, offset, BLOCK_BYTES, _blocks(length))


class IndexBaseline:
    """The local index; what it doesn't know is asked of `fallback`."""

    zeros_everywhere = False

    def __init__(self, indexes: Mapping[int, BlockIndex], fallback: Baseline) -> None:
        self._indexes = indexes
        self._fallback = fallback

    def expected(self, volume: int, page: int, length: int) -> Expected:
        """See Baseline."""
        known = self._indexes[volume].digests(page)[: _blocks(length) * DIGEST_BYTES]
        if UNKNOWN not in known or not (unknown := _unknown_blocks(known)):
            return Expected(known)
        asked = self._fallback.expected(volume, page, length).digests
        merged = bytearray(known)
        for block in unknown:
            span = slice(block * DIGEST_BYTES, (block + 1) * DIGEST_BYTES)
            merged[span] = asked[span]
        return Expected(bytes(merged), unknown)

    def grains(self, volume: int, page: int, block: int, length: int, *, known: bool) -> tuple[bytes, int] | None:
        """See Baseline."""
        if not known:
            return self._fallback.grains(volume, page, block, length, known=False)
        grains = self._indexes[volume].grains(page, block)
        return grains[: -(-length // GRAIN_BYTES) * GRAIN_DIGEST_BYTES], GRAIN_DIGEST_BYTES


def _unknown_blocks(digests: bytes) -> frozenset[int]:
    return frozenset(
        block
        for block in range(len(digests) // DIGEST_BYTES)
        if digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] == UNKNOWN
    )
