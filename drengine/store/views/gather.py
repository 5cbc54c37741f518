"""Many pieces at once. A disk that was written at random lies in hundreds of small pieces for each window of it.

Read one by one, each costs far more of the interpreter's time than of copying. Here numpy finds the pieces of a segment
together, and what is left to do for each is one copy. Pure: columns in, columns out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drengine.store.views.extentmap import Index, runs

JOINED_GAP_BYTES = 8 << 10
"""Frames so far from each other in a file are read together: the headers and tables of records lie between them."""


class Places(NamedTuple):
    """Pieces of data, as columns: where their bytes go (`begins`, in some buffer), and where they come from."""

    begins: Index
    lengths: Index
    branches: Index
    segments: Index
    records: Index
    plain_offsets: Index

    def take(self, rows: Any) -> Places:
        """Some of them, by slice, mask or index."""
        return Places(*(column[rows] for column in self))

    def by_segment(self) -> Iterator[tuple[int, int, Places]]:
        """Branch, segment, and the pieces of that segment."""
        keys = self.branches << 32 | self.segments
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        bounds = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(keys)]
        for first, last in pairwise(bounds if len(keys) else []):
            key = int(keys[first])
            yield key >> 32, key & 0xFFFFFFFF, self.take(order[first:last])


class FrameParts(NamedTuple):
    """Parts of a segment's frames, as columns.

    Attributes:
        frames: the frames that hold them: rows of the segment's index, sorted, each once.
        wanted: how many plain bytes of each of these are wanted.
        begins, ends: where each part goes.
        which: its frame, counted in `frames`.
        starts, stops: where it lies in that frame's plain bytes.
    """

    frames: Index
    wanted: Index
    begins: Index
    ends: Index
    which: Index
    starts: Index
    stops: Index


def frame_parts(places: Places, starts: Index, plain_starts: Index) -> FrameParts:
    """The parts of frames that pieces of one segment come from.

    Args:
        places: the pieces; each lies inside its record.
        starts: where each piece begins in the segment's plain form: that of all its records, one after another.
        plain_starts: where each frame begins there, and one more: where the last one ends.
    """
    stops = starts + places.lengths
    first = plain_starts.searchsorted(starts, "right") - 1
    counts = plain_starts.searchsorted(stops, "left") - first
    pieces = np.repeat(np.arange(len(starts)), counts)
    rows = runs(first, counts)
    frame_starts = plain_starts[rows]
    begin = np.maximum(starts[pieces], frame_starts)
    end = np.minimum(stops[pieces], plain_starts[rows + 1])
    to = places.begins[pieces] + begin - starts[pieces]
    frames, which = np.unique(rows, return_inverse=True)
    wanted = np.bincount(which, end - begin).astype(np.int64)
    return FrameParts(frames, wanted, to, to + end - begin, which, begin - frame_starts, end - frame_starts)


def reads(offsets: Index, lengths: NDArray[Any]) -> Iterator[tuple[int, int, int, int]]:
    """How to read frames (sorted by offset) in few reads: first and last + 1 of them, file offset and length."""
    ends = offsets + lengths
    breaks = np.flatnonzero(offsets[1:] - ends[:-1] > JOINED_GAP_BYTES) + 1
    firsts, lasts = [0, *breaks.tolist()], [*breaks.tolist(), len(offsets)]
    for first, last in zip(firsts, lasts, strict=True):
        begin = int(offsets[first])
        yield first, last, begin, int(ends[last - 1]) - begin
