"""Where two positions of a branch may differ: the extents that were logged in between, joined.

Compaction does not spoil the answer. A row is dropped only when no kept point sees it; so of whatever differs between
an earlier position and a kept point, the row that the point sees lies between the two and is still there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drengine.model.errors import DrengineError
from drengine.store.catalogue.rows import PointRow
from drengine.store.context import StoreContext
from drengine.store.errors import DAMAGED, OUT_OF_RANGE
from drengine.store.segments.format import RecordType
from drengine.store.segments.rowset import row_set

Spans = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Starts and ends of ranges, ascending, neither overlapping nor touching."""


def changed_since(context: StoreContext, point: PointRow, sequence: int) -> dict[int, Spans]:
    """See Store.changed_since."""
    catalogue = context.catalogue
    branch = catalogue.branch(point.source, point.branch)
    if not branch.base_sequence <= sequence <= point.sequence:
        raise DrengineError(
            OUT_OF_RANGE, f"position {sequence} lies not before {point.sequence} on branch {point.branch}"
        )
    if any(damage.branch == point.branch for damage in catalogue.damage(point.source)):
        raise DrengineError(
            DAMAGED, f"branch {point.branch} of {point.source!r} has damage, so its changes are unknown"
        )
    found: dict[int, list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]] = {}
    for segment in catalogue.segments(point.source, point.branch):
        if segment.last_sequence <= sequence or segment.first_sequence > point.sequence:
            continue
        first = max(0, sequence + 1 - segment.first_sequence)
        count = min(point.sequence, segment.last_sequence) + 1 - segment.first_sequence - first
        index = context.records.index(segment, first + count)
        if (index.records["type"][first : first + count] == RecordType.GEOMETRY).any():
            raise DrengineError(OUT_OF_RANGE, f"the volumes of {point.source!r} changed after position {sequence}")
        rows = row_set(index, first, count)
        for volume in rows.volumes():
            mine = rows.volume == volume
            starts = rows.start[mine]
            found.setdefault(volume, []).append((starts, starts + rows.length[mine]))
    return {volume: _joined(parts) for volume, parts in found.items()}


def _joined(parts: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]) -> Spans:
    """The union of ranges."""
    starts = np.concatenate([start for start, _ in parts])
    ends = np.concatenate([end for _, end in parts])
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = starts[1:] > reach[:-1]
    first = np.flatnonzero(begins)
    return starts[first], reach[np.append(first[1:], len(starts)) - 1]
