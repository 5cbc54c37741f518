"""The bitmaps as user space sees them: one mapping of both halves, walked by whole pages through the summary."""

from __future__ import annotations

import mmap
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Final

from drengine_agent.capture.ebpf.layout import (
    BLOCK_BYTES,
    COARSE_BLOCKS,
    PAGE_BITS,
    PAGE_BYTES,
    Layout,
    Placement,
)
from drengine_agent.capture.tracker import Range

_RUN: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)
_EMPTY_PAGE: Final = bytes(PAGE_BYTES)


def _runs_of_byte(value: int) -> tuple[tuple[int, int], ...]:
    """(first bit, count) of each run of ones in a byte."""
    runs, first = [], 0
    while value:
        skip = (value & -value).bit_length() - 1
        value >>= skip
        count = (~value & (value + 1)).bit_length() - 1
        runs.append((first + skip, count))
        first += skip + count
        value >>= count
    return tuple(runs)


_RUNS_OF_BYTE: Final = tuple(_runs_of_byte(value) for value in range(256))


class Half:
    """One of the two bitmaps. Reading is always safe; storing only in the half that no program can write to."""

    def __init__(self, view: mmap.mmap, layout: Layout, index: int) -> None:
        """Half 0 or 1 of a mapping of both."""
        self._view = view
        self._layout = layout
        self._start = index * layout.half_words * 8
        self._summary_bytes = layout.summary_words * 8

    def is_empty(self) -> bool:
        """No bit is set (or was, when its summary word was read)."""
        start = self._start
        return not any(self._view[start : start + self._summary_bytes])

    def pages(self) -> list[int]:
        """Pages of this half with bits, ascending."""
        summary = self._view[self._start : self._start + self._summary_bytes]
        return [page for first, count in runs(summary) for page in range(first, first + count)]

    def count_blocks(self) -> int:
        """Blocks that are marked; a coarse bit counts for all of its blocks."""
        total = 0
        for page in self.pages():
            count = int.from_bytes(self._page(page), "little").bit_count()
            total += count * (COARSE_BLOCKS if page >= self._coarse_page else 1)
        return total

    def ranges(self) -> Iterator[Range]:
        """What is marked, as bytes of volumes: by volume, ascending, joined, clipped to each volume."""
        pages = self.pages()
        for placement in sorted(self._layout.placements, key=lambda each: each.volume):
            yield from self._volume_ranges(placement, pages)

    def clear(self, keep: Iterable[tuple[int, int]] = ()) -> None:
        """Forget every bit but those of `keep` (runs of bits of this half).

        A page is cleared before its summary bit, so that a kill in between leaves an empty page that is looked at.
        """
        kept: dict[int, int] = {}
        for first, count in keep:
            for page in range(first // PAGE_BITS, (first + count - 1) // PAGE_BITS + 1):
                low = max(first - page * PAGE_BITS, 0)
                high = min(first + count - page * PAGE_BITS, PAGE_BITS)
                kept[page] = kept.get(page, 0) | (1 << high) - (1 << low)
        for page in self.pages():
            here = self._start + page * PAGE_BYTES
            mask = kept.get(page)
            if mask is None:
                self._view[here : here + PAGE_BYTES] = _EMPTY_PAGE
            else:
                left = int.from_bytes(self._page(page), "little") & mask
                self._view[here : here + PAGE_BYTES] = left.to_bytes(PAGE_BYTES, "little")
        summary = 0
        for page in kept:
            summary |= 1 << page
        self._view[self._start : self._start + self._summary_bytes] = summary.to_bytes(self._summary_bytes, "little")

    def add(self, bits: Iterable[tuple[int, int]]) -> None:
        """Set runs of bits; the summary first, so that a kill in between hides nothing."""
        for first, count in bits:
            for page in range(first // PAGE_BITS, (first + count - 1) // PAGE_BITS + 1):
                low = max(first - page * PAGE_BITS, 0)
                high = min(first + count - page * PAGE_BITS, PAGE_BITS)
                self._view[self._start + page // 8] |= 1 << page % 8
                here = self._start + page * PAGE_BYTES
                value = int.from_bytes(self._page(page), "little") | (1 << high) - (1 << low)
                self._view[here : here + PAGE_BYTES] = value.to_bytes(PAGE_BYTES, "little")

    def bits_of(self, ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
        """The fine bits of ranges of volumes, clipped to each volume.

        Raises:
            ValueError: a volume that is not watched.
        """
        places = {each.volume: each for each in self._layout.placements}
        for each in ranges:
            place = places.get(each.volume)
            if place is None:
                raise ValueError(f"volume {each.volume} is not watched")
            start, end = max(each.offset, 0), min(each.offset + each.length, place.size_bytes)
            if start < end:
                first = (place.offset_bytes + start) // BLOCK_BYTES
                last = (place.offset_bytes + end - 1) // BLOCK_BYTES
                yield self._layout.regions[place.region].fine_bit + first, last - first + 1

    @property
    def _coarse_page(self) -> int:
        return self._layout.regions[0].coarse_bit // PAGE_BITS

    def _page(self, page: int) -> bytes:
        start = self._start + page * PAGE_BYTES
        return self._view[start : start + PAGE_BYTES]

    def _volume_ranges(self, place: Placement, pages: list[int]) -> Iterator[Range]:
        """Runs of the region's fine and coarse bits that touch the volume, as whole blocks of the volume."""
        region = self._layout.regions[place.region]
        low = place.offset_bytes // BLOCK_BYTES
        high = -(-(place.offset_bytes + place.size_bytes) // BLOCK_BYTES)
        fine = self._bit_runs(pages, region.fine_bit, low, high, 1)
        coarse = self._bit_runs(
            pages, region.coarse_bit, low // COARSE_BLOCKS, -(-high // COARSE_BLOCKS), COARSE_BLOCKS
        )
        start = end = 0
        for first, after in merge(fine, coarse):
            begin = max(first * BLOCK_BYTES - place.offset_bytes, 0) // BLOCK_BYTES * BLOCK_BYTES
            stop = -(-(after * BLOCK_BYTES - place.offset_bytes) // BLOCK_BYTES) * BLOCK_BYTES
            begin, stop = min(begin, place.size_bytes), min(max(stop, 0), place.size_bytes)
            if begin <= end:
                end = max(end, stop)
                continue
            if start < end:
                yield Range(place.volume, start, end - start)
            start, end = begin, stop
        if start < end:
            yield Range(place.volume, start, end - start)

    def _bit_runs(self, pages: list[int], base: int, low: int, high: int, scale: int) -> Iterator[tuple[int, int]]:
        """(first, after) of runs of set bits between `low` and `high`, counted from `base`, times `scale`."""
        first_page, last_page = (base + low) // PAGE_BITS, (base + high - 1) // PAGE_BITS
        for page in pages[bisect_right(pages, first_page - 1) : bisect_right(pages, last_page)]:
            offset = page * PAGE_BITS - base
            for first, count in runs(self._page(page)):
                begin, end = max(offset + first, low), min(offset + first + count, high)
                if begin < end:
                    yield begin * scale, end * scale


def runs(bits: bytes) -> Iterator[tuple[int, int]]:
    """(first bit, count) of runs of ones, ascending; some may touch."""
    for match in _RUN.finditer(bits):
        start, end = match.span()
        if bits[start] == 0xFF:
            yield start << 3, end - start << 3
        else:
            for first, count in _RUNS_OF_BYTE[bits[start]]:
                yield (start << 3) + first, count


def load_word(view: mmap.mmap, offset: int) -> int:
    """A 64-bit number of a shared mapping. Aligned, so it is never half old and half new."""
    return int(memoryview(view).cast("Q")[offset >> 3])


def store_word(view: mmap.mmap, offset: int, value: int) -> None:
    """Store a 64-bit number into a shared mapping, in one step."""
    memoryview(view).cast("Q")[offset >> 3] = value


def store_bytes(view: mmap.mmap, offset: int, value: bytes) -> None:
    """Store bytes that nobody reads before a later word says so."""
    struct.pack_into(f"{len(value)}s", view, offset, value)
