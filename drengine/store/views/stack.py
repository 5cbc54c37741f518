"""The layers a view looks through, newest first.

Each closed segment has a flat map of its own (level 0); aligned groups of 16, 256 and 4096 segments have merged
ones. They are derived data: one that is missing or damaged is made again from the segments' indexes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.store.blobs import Storage
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import OPEN, DamageRow, SegmentRow
from drengine.store.errors import DAMAGED
from drengine.store.names import layer_name
from drengine.store.options import StoreOptions
from drengine.store.segments.rowset import RowSet, row_set
from drengine.store.views.cache import ByteCache
from drengine.store.views.extentmap import FlatMap, merge, resolve
from drengine.store.views.layers import FANOUT, cover, open_layer, write_layer
from drengine.store.views.records import Records

_log = logging.getLogger(__name__)

Maps = Mapping[int, FlatMap]
_LAYER_COST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class StackLayer:
    """Flat maps by volume, whose segment numbers belong to `branch`."""

    branch: int
    maps: Maps


class Layers:
    """Finds, makes and keeps the layers of a store."""

    def __init__(
        self,
        storage: Storage,
        catalogue: Catalogue,
        records: Records,
        options: StoreOptions,
        *,
        read_only: bool,
        key: bytes,
    ) -> None:
        self._key = key
        self._storage = storage
        self._catalogue = catalogue
        self._records = records
        self._options = options
        self._read_only = read_only
        self._open: ByteCache[Maps] = ByteCache(options.index_cache_bytes_max)

    def stack(self, source: str, branch: int, sequence: int, geometry: tuple[VolumeGeometry, ...]) -> list[StackLayer]:
        """Everything visible at a position, through the branches it grew from, newest first.

        Where part of the log is lost, only what was written after it counts, and it must cover every volume.

        Raises:
            DrengineError: DAMAGED when what is needed cannot be known.
        """
        layers: list[StackLayer] = []
        damage = self._catalogue.damage(source)
        while branch:
            row = self._catalogue.branch(source, branch)
            lost = [bad for bad in damage if bad.branch == branch and self._is_lost(bad, sequence)]
            after = max((bad.segment for bad in lost), default=0)
            found = self._of_branch(source, branch, sequence, after)
            layers += [StackLayer(branch, maps) for maps in found if maps]
            if lost:
                if not _covers(layers, geometry):
                    raise DrengineError(
                        DAMAGED,
                        f"positions from {lost[0].sequence} of branch {branch} of {source!r} are lost",
                    )
                break
            branch, sequence = row.parent, row.base_sequence
        return layers

    def _is_lost(self, bad: DamageRow, sequence: int) -> bool:
        """Whether damage leaves a hole in the log before a position: not even its tables can be read."""
        if bad.record >= 0 or bad.sequence > sequence:
            return False
        row = self._catalogue.segment(bad.source, bad.branch, bad.segment)
        if row is None or not row.first_sequence <= bad.sequence <= row.last_sequence:
            return True
        try:
            self._records.index(row)
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
            return self._read(layer_name(bad.source, bad.branch, 0, bad.segment)) is None
        return False

    def segment_closed(self, source: str, branch: int, segment: int) -> None:
        """Make the layers that a newly closed segment completes. What fails is left for later: they are derived."""
        try:
            for group in cover(segment):
                self._group(source, branch, *group)
        except DrengineError as error:
            _log.warning("layers of %s/%d up to segment %d: %s", source, branch, segment, error)

    def forget(self, source: str, branch: int) -> None:
        """Drop what is kept in memory of a branch's layers."""
        self._open.forget_all(lambda key: isinstance(key, tuple) and key[:2] == (source, branch))

    def _of_branch(self, source: str, branch: int, sequence: int, after: int) -> list[Maps]:
        """Layers of a branch up to a position, newest first; only of segments behind `after`."""
        newest = self._catalogue.segment_at(source, branch, sequence)
        if newest is None or newest.segment <= after:
            return []
        layers, closed = [], newest.segment
        if newest.state == OPEN or newest.last_sequence > sequence:
            layers.append(self._partial(newest, sequence))
            closed -= 1
        groups = [(0, number, number) for number in range(after + 1, closed + 1)] if after else cover(closed)
        for group in reversed(groups):
            layers += self._group(source, branch, *group)
        return layers

    def _partial(self, row: SegmentRow, sequence: int) -> Maps:
        count = min(sequence, row.last_sequence) - row.first_sequence + 1
        key = (row.source, row.branch, row.segment, "head", count)
        found = self._open.get(key)
        if found is None:
            index = self._records.index(row, count)
            found = resolve_rows(row.segment, row_set(index.head(count)))
            self._open.put(key, found, _memory_bytes(found))
        return found

    def _group(self, source: str, branch: int, level: int, first: int, last: int) -> list[Maps]:
        """A group's layer, or those of the groups inside it while merging them would take too much memory."""
        key = (source, branch, level, first)
        name = layer_name(source, branch, level, first)
        found = self._open.get(key)
        found = self._read(name) if found is None else found
        if found is None and level == 0:
            row = self._catalogue.segment(source, branch, first)
            # A number without a row: its segment was never committed, or nothing of it can be seen any more.
            found = resolve_rows(first, row_set(self._records.index(row))) if row else {}
            self._keep(name, found)
        elif found is None:
            inner: list[Maps] = []
            step = FANOUT ** (level - 1)
            for start in range(last - step + 1, first - 1, -step):
                inner += self._group(source, branch, level - 1, start, start + step - 1)
            if len(inner) > FANOUT or sum(map(_mappings, inner)) > self._options.merge_mappings_max:
                return inner
            found = _merged(inner)
            self._keep(name, found)
        # A mapped layer costs address space, not memory; the bound only keeps their number finite.
        self._open.put(key, found, _LAYER_COST_BYTES)
        return [found]

    def _read(self, name: str) -> Maps | None:
        try:
            return open_layer(self._storage, name, self._key)
        except FileNotFoundError:
            return None
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
            _log.warning("%s is made again: %s", name, error)
            return None

    def _keep(self, name: str, maps: Maps) -> None:
        if self._read_only:
            return
        try:
            write_layer(self._storage, name, maps, self._key)
        except (OSError, DrengineError) as error:
            _log.warning("%s is not kept: %s", name, error)


def resolve_rows(segment: int, rows: RowSet) -> dict[int, FlatMap]:
    """One flat map a volume from rows in log order."""
    maps = {}
    for volume in rows.volumes():
        mine = rows.take(rows.volume == volume)
        maps[volume] = resolve(
            mine.start,
            mine.length,
            segment=mine.carries * segment,
            record=mine.record,
            plain_offset=mine.plain_offset,
        )
    return maps


def _covers(layers: list[StackLayer], geometry: tuple[VolumeGeometry, ...]) -> bool:
    """Whether every byte of every volume is mapped."""
    for volume in geometry:
        flats = [layer.maps[volume.volume] for layer in layers if volume.volume in layer.maps]
        spans = sorted(span for flat in flats for span in zip(flat.starts.tolist(), flat.ends.tolist(), strict=True))
        reached = 0
        for start, end in spans:
            if start > reached:
                return False
            reached = max(reached, end)
        if reached < volume.size_bytes:
            return False
    return True


def _merged(newest_first: list[Maps]) -> Maps:
    """One layer of several: per volume, pairs of neighbours until one is left."""
    maps: dict[int, FlatMap] = {}
    for volume in {volume for layer in newest_first for volume in layer}:
        flats = [layer[volume] for layer in newest_first if volume in layer]
        while len(flats) > 1:
            pairs = [merge(flats[i], flats[i + 1]) for i in range(0, len(flats) - 1, 2)]
            flats = pairs + flats[len(flats) & ~1 :]
        maps[volume] = flats[0]
    return maps


def _mappings(maps: Maps) -> int:
    return sum(len(flat) for flat in maps.values())


def _memory_bytes(maps: Maps) -> int:
    return _LAYER_COST_BYTES + sum(flat.nbytes for flat in maps.values())
