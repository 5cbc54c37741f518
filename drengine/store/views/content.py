"""The bytes of a whole window, as a reader that goes forward through a disk is given them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

_COST_BYTES = 1024
"""Of its objects, without the bytes."""

Buffer = bytes | bytearray | memoryview
Part = tuple[int, Buffer | None]
"""Length and bytes (None: zeros)."""


class Content:
    """A window's bytes, which nobody may change, as parts in order (None: zeros)."""

    __slots__ = ("_parts", "_starts", "nbytes")

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(length for length, _ in parts)]
        self.nbytes = _COST_BYTES + sum(length for length, data in parts if data is not None)

    def cut(self, begin: int, end: int) -> list[Part]:
        """A range of it."""
        starts = self._starts
        cut: list[Part] = []
        for number in range(bisect_right(starts, begin) - 1, bisect_left(starts, end)):
            start = starts[number]
            length, data = self._parts[number]
            first, last = max(begin - start, 0), min(end - start, length)
            cut.append((last - first, None if data is None else memoryview(data)[first:last]))
        return cut
