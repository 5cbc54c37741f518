"""A recovery point as steps and reports tell of it."""

from __future__ import annotations

import msgspec

from drengine.model.points import RecoveryPoint
from drengine.store.store import Store


class PointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A recovery point.

    Attributes:
        point: its id.
        time_ns: the moment that it shows, by the source's clock.
        kind: how it is known to be consistent.
        verified_ns: when all of it was last read again and hashed; 0: never.
        volumes: sizes by name.
    """

    point: str = ""
    time_ns: int = 0
    kind: str = ""
    label: str = ""
    verified_ns: int = 0
    size_bytes: int = 0
    volumes: dict[str, int] = {}


def point_facts(point: RecoveryPoint) -> PointFacts:
    """The facts of a point in the store."""
    return PointFacts(
        point=point.id,
        time_ns=point.time_ns,
        kind=point.kind.value,
        label=point.label,
        verified_ns=point.verified_ns,
        size_bytes=point.size_bytes,
        volumes={volume.name: volume.size_bytes for volume in point.geometry},
    )


def point_with_id(store: Store, source: str, id: str) -> RecoveryPoint | None:
    """A point of the source; None when it is not in the store."""
    return next((point for point in store.points(source) if point.id == id), None)
