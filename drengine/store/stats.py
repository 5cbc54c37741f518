"""Sizes and counts of a store, for status and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from drengine.store.context import StoreContext
from drengine.store.errors import os_errors


@dataclass(frozen=True, slots=True)
class SourceStats:
    """One source.

    Attributes:
        stored_bytes: file bytes of its segments.
        plain_bytes: bytes before compression that they hold.
        dead_bytes: of those, what the last compaction found to be visible from no position.
        points_damaged: points that need unreadable data.
        newest_point_ns: source's clock at its newest point on the active branch; 0 when it has none.
    """

    name: str
    generation: int
    branches: int
    segments: int
    stored_bytes: int
    plain_bytes: int
    dead_bytes: int
    points: int
    points_damaged: int
    points_pinned: int
    records_damaged: int
    newest_point_ns: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The whole store.

    Attributes:
        free_bytes: room left on its disk; None where there is no such limit.
        sources: by name.
    """

    free_bytes: int | None
    sources: tuple[SourceStats, ...]

    @property
    def stored_bytes(self) -> int:
        """File bytes of all segments."""
        return sum(source.stored_bytes for source in self.sources)

    @property
    def plain_bytes(self) -> int:
        """Bytes before compression."""
        return sum(source.plain_bytes for source in self.sources)

    @property
    def live_bytes(self) -> int:
        """Plain bytes that somebody can see, as of the last compaction."""
        return sum(source.plain_bytes - source.dead_bytes for source in self.sources)

    @property
    def points(self) -> int:
        """Recovery points kept."""
        return sum(source.points for source in self.sources)


def store_stats(context: StoreContext) -> StoreStats:
    """Ask the catalogue how much each source has, and the storage for its free space."""
    catalogue = context.catalogue
    sources = []
    for source in catalogue.sources():
        usage, newest = catalogue.usage(source.name), catalogue.newest_point(source.name, source.active_branch)
        sources.append(
            SourceStats(
                name=source.name,
                generation=source.generation,
                branches=len(catalogue.branches(source.name)),
                **usage._asdict(),
                records_damaged=len(catalogue.damage(source.name)),
                newest_point_ns=newest.time_ns if newest else 0,
            )
        )
    with os_errors("asking for free space"):
        return StoreStats(context.storage.free_bytes(), tuple(sources))
