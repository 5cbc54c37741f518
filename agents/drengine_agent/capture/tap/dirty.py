"""Which blocks of the volumes are dirty, without order: one bit per 4 KiB block.

Cost: 32 MiB for a dirty volume of 1 TiB; a clean volume costs nothing. Scanning runs in C (patterns and
big integers over the bytes), so an almost clean map of 1 TiB is walked in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from drengine_agent.capture.tracker import Range

BLOCK_BYTES = 4096
_SHIFT = 12
_RUN = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)


class DirtyBitmap:
    """The dirty blocks of one volume. Not thread-safe: its owner locks."""

    def __init__(self, size_bytes: int) -> None:
        """A clean map for a volume of so many bytes (any number: the last block may be short)."""
        self.size_bytes = size_bytes
        self.blocks = -(-size_bytes // BLOCK_BYTES)
        self.dirty_blocks = 0
        self._bits = bytearray()

    def mark(self, offset: int, length: int) -> None:
        """Every block that this range touches is dirty from now on."""
        if length <= 0:
            return
        if not self._bits:
            self._bits = bytearray(-(-self.blocks // 8))
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        low, high = first >> 3, last >> 3
        bits = self._bits
        if low == high:
            mask = ((2 << (last - first)) - 1) << (first & 7)
            old = bits[low]
            if old | mask != old:
                bits[low] = old | mask
                self.dirty_blocks += (mask & ~old).bit_count()
            return
        old_count = int.from_bytes(bits[low : high + 1], "little").bit_count()
        new = bytearray(b"\xff") * (high + 1 - low)
        new[0] = bits[low] | (0xFF << (first & 7)) & 0xFF
        new[-1] = bits[high] | ((2 << (last & 7)) - 1)
        bits[low : high + 1] = new
        self.dirty_blocks += int.from_bytes(new, "little").bit_count() - old_count

    def mark_all(self) -> None:
        """The whole volume is dirty."""
        self.mark(0, self.size_bytes)

    def merge(self, other: DirtyBitmap) -> None:
        """What is dirty in another map of the same volume is dirty here too."""
        if other.dirty_blocks:
            self.load(other._bits)

    def dump(self) -> bytes:
        """Its bits, for `load`."""
        return bytes(self._bits)

    def load(self, bits: bytes | bytearray) -> None:
        """Add the bits of a dump of a map of the same size.

        Raises:
            ValueError: they are of another size.
        """
        if len(bits) not in (0, -(-self.blocks // 8)):
            raise ValueError("the map is of another size")
        both = int.from_bytes(self._bits, "little") | int.from_bytes(bits, "little")
        if both:
            self.dirty_blocks = both.bit_count()
            self._bits = bytearray(both.to_bytes(-(-self.blocks // 8), "little"))

    def clear_before(self, block: int) -> None:
        """Blocks below `block` are clean."""
        if self._bits:
            low = min(block >> 3, len(self._bits))
            self._bits[:low] = bytes(low)
            if low < len(self._bits):
                self._bits[low] &= 0xFF << (block & 7) & 0xFF
            self.dirty_blocks = int.from_bytes(self._bits, "little").bit_count()

    def runs(self, block: int = 0) -> Iterator[tuple[int, int]]:
        """Runs of dirty blocks from `block` on: (first block, count), ascending; some may touch."""
        for match in _RUN.finditer(self._bits, block >> 3):
            start, end = match.span()
            if self._bits[start] == 0xFF:
                first = max(start << 3, block)
                if end << 3 > first:
                    yield first, (end << 3) - first
                continue
            value = self._bits[start] >> (max(0, block - (start << 3)))
            first = max(start << 3, block)
            while value:
                skip = (value & -value).bit_length() - 1
                value >>= skip
                count = (~value & (value + 1)).bit_length() - 1
                yield first + skip, count
                first += skip + count
                value >>= count


class DirtySet:
    """The dirty blocks of all volumes, numbered as one list: by volume, then by offset."""

    def __init__(self, sizes: Mapping[int, int]) -> None:
        """Clean maps for volumes by number, with their sizes in bytes."""
        self._maps = {volume: DirtyBitmap(size) for volume, size in sorted(sizes.items())}
        self._place = (
            0,
            0,
            0,
        )  # where `ranges` ended: dirty blocks before, volume index, block

    def mark(self, volume: int, offset: int, length: int) -> None:
        """Blocks of this range are dirty."""
        self._maps[volume].mark(offset, length)

    def mark_all(self) -> None:
        """Everything is dirty."""
        for bitmap in self._maps.values():
            bitmap.mark_all()

    def merge(self, other: DirtySet) -> None:
        """What is dirty in a set of the same volumes is dirty here too."""
        for volume, bitmap in other._maps.items():
            self._maps[volume].merge(bitmap)
        self._place = (0, 0, 0)

    def dump(self) -> dict[int, bytes]:
        """The bits of each volume that has any."""
        return {volume: bitmap.dump() for volume, bitmap in self._maps.items() if bitmap.dirty_blocks}

    def load(self, maps: Mapping[int, bytes]) -> None:
        """Add the bits of a dump of a set of the same volumes.

        Raises:
            KeyError, ValueError: it is of others.
        """
        for volume, bits in maps.items():
            self._maps[volume].load(bits)
        self._place = (0, 0, 0)

    def clear_first(self, count: int) -> None:
        """The first `count` dirty blocks are clean; places of `ranges` count from the rest."""
        rest, _ = self.ranges(count, 1)
        for volume, bitmap in self._maps.items():
            if not rest or volume < rest[0].volume:
                bitmap.clear_before(bitmap.blocks)
            elif volume == rest[0].volume:
                bitmap.clear_before(rest[0].offset >> _SHIFT)
        self._place = (0, 0, 0)

    @property
    def dirty_blocks(self) -> int:
        """How many blocks are dirty."""
        return sum(bitmap.dirty_blocks for bitmap in self._maps.values())

    def ranges(self, start: int, blocks_max: int) -> tuple[list[Range], int]:
        """Up to `blocks_max` dirty blocks from the `start`-th on, as ranges inside the volumes, and the next
        `start`.

        Only meaningful while nothing is marked between calls. Going on where the last call ended costs
        nothing extra; any other place is looked for from the beginning.
        """
        before, index, block = self._place if self._place[0] <= start else (0, 0, 0)
        maps = list(self._maps.items())
        found: list[Range] = []
        wanted = blocks_max
        while index < len(maps) and wanted:
            volume, bitmap = maps[index]
            for first, count in bitmap.runs(block):
                skipped = min(count, start - before)
                before += skipped
                taken = min(count - skipped, wanted)
                before, start, wanted = before + taken, start + taken, wanted - taken
                block = first + skipped + taken
                if taken:
                    _add(found, volume, bitmap, first + skipped, taken)
                if not wanted:
                    break
            else:
                index, block = index + 1, 0
        self._place = (before, index, block)
        return found, before


def _add(found: list[Range], volume: int, bitmap: DirtyBitmap, block: int, count: int) -> None:
    offset = block << _SHIFT
    end = min((block + count) << _SHIFT, bitmap.size_bytes)
    if found and found[-1].volume == volume and found[-1].offset + found[-1].length == offset:
        offset = found.pop().offset
    found.append(Range(volume, offset, end - offset))
