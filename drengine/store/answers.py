"""Recovery points as people and programs are told of them: the command line and REST give the same JSON."""

from __future__ import annotations

from dataclasses import dataclass

from drengine.model.points import RecoveryPoint
from drengine.terminal import exact_time


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeAnswer:
    """A volume of a point; `sector_bytes` is what its disk had when it was first protected."""

    volume: int
    name: str
    identity: str
    size_bytes: int
    sector_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointAnswer:
    """A recovery point.

    Attributes:
        time: the later of the next two, in UTC: `before:` this time finds it.
        time_ns: the moment that it shows, by the source's clock, in nanoseconds since the epoch.
        received_ns: when it was durable here, by the target's clock.
        verified_ns: when all of it was last read again and hashed; 0: each batch was when it was received.
        damaged: it needs data that can't be read.
        erased: ... because the key of that data was forgotten.
        uploaded: the object store has all of it, so that it is there without this host; None: there is no object store,
            or nobody asked.
        locked_seconds: for how long nobody can remove it (care/locking.py).
        lag_seconds: from the moment that it shows until it was durable here; 0 where the clocks disagree.
    """

    id: str
    source: str
    branch: int
    sequence: int
    time: str
    time_ns: int
    received_ns: int
    kind: str
    label: str
    verified_ns: int
    damaged: bool
    erased: bool
    size_bytes: int
    lag_seconds: float
    pinned: bool
    locked_seconds: int
    uploaded: bool | None
    volumes: list[VolumeAnswer]


def point_answer(point: RecoveryPoint, uploaded_sequence: int | None = None, locked_seconds: int = 0) -> PointAnswer:
    """A recovery point; `uploaded_sequence` of its branch and `locked_seconds` as Store tells them."""
    return PointAnswer(
        id=point.id,
        source=point.source,
        branch=point.branch,
        sequence=point.sequence,
        time=exact_time(point.before_ns),
        time_ns=point.time_ns,
        received_ns=point.received_ns,
        kind=point.kind.value,
        label=point.label,
        verified_ns=point.verified_ns,
        damaged=point.damaged,
        erased=point.erased,
        size_bytes=point.size_bytes,
        lag_seconds=max(0.0, (point.received_ns - point.time_ns) / 1e9),
        pinned=point.pinned,
        locked_seconds=locked_seconds,
        uploaded=None if uploaded_sequence is None else point.sequence <= uploaded_sequence,
        volumes=[
            VolumeAnswer(
                volume=each.volume,
                name=each.name,
                identity=each.identity,
                size_bytes=each.size_bytes,
                sector_bytes=each.sector_bytes,
            )
            for each in point.geometry
        ],
    )
