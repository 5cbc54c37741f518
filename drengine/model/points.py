"""Recovery points, marks, and how a person names a point."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from drengine.model.errors import BAD_POINT, DrengineError


class PointKind(enum.StrEnum):
    """How a point is known to be a consistent cut (rule 1). No other point is offered."""

    WRITE_ORDER = "write-order"
    QUIET = "quiet"
    FROZEN = "frozen"
    APPLICATION = "application"


@dataclass(frozen=True, slots=True)
class Mark:
    """The capture position that a stream position stands for; opaque to the target.

    Attributes:
        epoch: 16 bytes naming the journal or tracking state; a position means nothing in another epoch.
        position: position inside it.
    """

    epoch: bytes = bytes(16)
    position: int = 0


@dataclass(frozen=True, slots=True)
class VolumeGeometry:
    """A volume as it was when it was declared.

    Attributes:
        volume: number inside its source, 1 to 2**32-1; never used again for another volume.
        name: what people call it (checked by names.check_name).
        identity: what the volume is, beyond its path: file-system UUID, serial, inode; printable, up to 255.
        size_bytes: its size; any number of bytes, a 512-byte tail is legal.
    """

    volume: int
    name: str
    identity: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A recovery point as the agent declares it, over all volumes of the source.

    Attributes:
        time_ns: source's wall clock at the moment the point shows, nanoseconds since the epoch (information
            only: order comes from the sequence, never from this).
        kind: how consistency is known.
        label: what a person called it, or empty.
    """

    time_ns: int
    kind: PointKind
    label: str = ""


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """A point in a store.

    Attributes:
        source: name of the source server.
        branch: number of the branch it lies on (1 is the trunk).
        sequence: stream position of its cut on that branch; points of a branch are ordered by it.
        time_ns, kind, label: see Cut.
        received_ns: target's wall clock when it became durable.
        geometry: volumes and their sizes at the cut.
        verified_ns: when all of it was last re-read and re-hashed; 0 if never since ingest, which verified each batch.
        damaged: a scrub or read found data of this point unreadable; it is not offered as `latest`.
        pinned: retention leaves it alone.
    """

    source: str
    branch: int
    sequence: int
    time_ns: int
    kind: PointKind
    received_ns: int
    geometry: tuple[VolumeGeometry, ...]
    label: str = ""
    verified_ns: int = 0
    damaged: bool = False
    pinned: bool = False

    @property
    def id(self) -> str:
        """Its name inside the source, ``branch-sequence``; the same after a rebuild."""
        return f"{self.branch}-{self.sequence}"

    @property
    def size_bytes(self) -> int:
        """Sum of its volumes' sizes."""
        return sum(volume.size_bytes for volume in self.geometry)


_ID = re.compile(r"([1-9][0-9]{0,9})-([1-9][0-9]{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class PointSelector:
    """What a person asked for: exactly one of an id, the latest, or the newest before a time.

    Attributes:
        branch, sequence: set together for an id.
        before_ns: newest point at or before this time.
    """

    branch: int | None = None
    sequence: int | None = None
    before_ns: int | None = None

    @staticmethod
    def parse(text: str) -> PointSelector:
        """Read ``latest``, ``before:ISO-8601`` (UTC unless it says otherwise) or an id.

        Raises:
            DrengineError: BAD_POINT.
        """
        if text == "latest":
            return PointSelector()
        if match := _ID.fullmatch(text):
            return PointSelector(branch=int(match[1]), sequence=int(match[2]))
        if text.startswith("before:"):
            try:
                moment = datetime.fromisoformat(text.removeprefix("before:"))
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                return PointSelector(before_ns=int(moment.timestamp() * 1e9))
            except (ValueError, OverflowError) as error:
                raise DrengineError(BAD_POINT, f"{text[:60]!r} has no valid time: {error}") from error
        raise DrengineError(BAD_POINT, f"{text[:60]!r} names no recovery point")
