"""Extent maps of what a writable branch made durable since its newest segments were closed."""

from __future__ import annotations

from typing import NamedTuple, Self

from drengine.store.log.pending import laid_over
from drengine.store.views.extentmap import FlatMap

_RATIO = 2


class TailLayer(NamedTuple):
    """Maps by volume; `segment` is the newest that they tell of."""

    segment: int
    maps: dict[int, FlatMap]


class Tail(tuple[TailLayer, ...]):
    """Few layers, oldest first. A value: it does not change."""

    __slots__ = ()

    def extended(self, segment: int, maps: dict[int, FlatMap]) -> Self:
        """With newer maps: they swallow older ones of the same segment that are not much larger."""
        layers = list(self)
        while layers and layers[-1].segment == segment and _mappings(layers[-1].maps) <= _RATIO * _mappings(maps):
            maps = laid_over(maps, layers.pop().maps)
        return type(self)([*layers, TailLayer(segment, maps)])

    def since(self, segment: int) -> Self:
        """Without what tells only of earlier segments."""
        return type(self)(layer for layer in self if layer.segment >= segment)


def _mappings(maps: dict[int, FlatMap]) -> int:
    return sum(len(flat) for flat in maps.values())
