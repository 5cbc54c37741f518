"""Recovery points, marks, and how a person names a point."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from drengine.model.errors import BAD_LABEL, BAD_POINT, DrengineError
from drengine.model.sectors import recorded_sectors


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
        identity: what the volume is, beyond its path: file-system UUID, serial, inode; printable, up to 255. Ends in
            ``:sector=BYTES`` where its disk's logical sectors are not of 512 bytes.
        size_bytes: its size; any number of bytes, a 512-byte tail is legal.
    """

    volume: int
    name: str
    identity: str
    size_bytes: int

    @property
    def sector_bytes(self) -> int:
        """Logical sector size of its disk when it was first protected, as its identity tells; 512 if it tells none."""
        return recorded_sectors(self.identity)


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
    erased: bool = False
    pinned: bool = False

    @property
    def id(self) -> str:
        """Its name inside the source, ``branch-sequence``; the same after a rebuild."""
        return f"{self.branch}-{self.sequence}"

    @property
    def shown_ns(self) -> int:
        """The earlier of both clocks: all that the source wrote after this moment counts as lost."""
        return min(self.time_ns, self.received_ns)

    @property
    def before_ns(self) -> int:
        """The later of both clocks: nothing in the point was written after this moment, and lists show it."""
        return max(self.time_ns, self.received_ns)

    @property
    def size_bytes(self) -> int:
        """Sum of its volumes' sizes."""
        return sum(volume.size_bytes for volume in self.geometry)


LATEST = "latest"
BEFORE = "before:"
LABELLED = "label:"
LABEL_CHARACTERS_MAX = 255
NEW_LABEL_CHARACTERS_MAX = 200
_ID = re.compile(r"([1-9][0-9]{0,9})-([1-9][0-9]{0,18})", re.ASCII)
_TO_THE_SECOND = re.compile(r"(?<=[T ])(\d\d:?\d\d:?\d\d)(?:[.,](\d{1,9}))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class PointSelector(NamedTuple):
    """What a person asked for: an id, the newest by a time, the newest that was called so, or else the latest.

    Attributes:
        branch, sequence: set together for an id.
        before_ns: newest point that was cut and received at or before this time, each by the clock of its host.
        label: newest point of this label.
    """

    branch: int | None = None
    sequence: int | None = None
    before_ns: int | None = None
    label: str | None = None

    @staticmethod
    def parse(text: str) -> PointSelector:
        """Read ``latest``, an id, ``before:TIME`` or just the time (ISO 8601, UTC unless it says otherwise),
        ``label:NAME`` or just the name.

        A time that is written to the second or finer stands for all of its last digit, because times are shown cut
        off there: a shown time finds the point that it was shown for.

        Raises:
            DrengineError: BAD_POINT.
        """
        if text == LATEST:
            return PointSelector()
        if match := _ID.fullmatch(text):
            return PointSelector(branch=int(match[1]), sequence=int(match[2]))
        try:
            return PointSelector(before_ns=_last_ns(text.removeprefix(BEFORE)))
        except (ValueError, OverflowError) as error:
            if text.startswith(BEFORE):
                raise DrengineError(BAD_POINT, f"{text[:60]!r} has no valid time: {error}") from error
        label = text.removeprefix(LABELLED)
        if not label.strip() or not label.isprintable() or len(label) > LABEL_CHARACTERS_MAX:
            raise DrengineError(BAD_POINT, f"{text[:60]!r} names no recovery point")
        return PointSelector(label=label)

    def fits(self, before_ns: int, label: str) -> bool:
        """Whether a point of this `RecoveryPoint.before_ns` and label is one of those asked for, when it was not asked
        for by its id.
        """
        return (self.before_ns is None or before_ns <= self.before_ns) and (self.label is None or label == self.label)


def check_new_label(label: str) -> str:
    """A label for a new point, if it may be one: empty, or what `PointSelector.parse` reads as just this label.

    Raises:
        DrengineError: BAD_LABEL.
    """
    if len(label) > NEW_LABEL_CHARACTERS_MAX or not label.isprintable():
        raise DrengineError(BAD_LABEL, f"a label has at most {NEW_LABEL_CHARACTERS_MAX} printable characters")
    try:
        found = PointSelector.parse(label).label if label else label
    except DrengineError:
        found = None
    if found != label:
        raise DrengineError(BAD_LABEL, f"{label[:60]!r} would be read as something else when a point is asked for")
    return label


def _last_ns(text: str) -> int:
    """The last nanosecond that a time stands for.

    Raises:
        ValueError, OverflowError: it is no time.
    """
    digits, cover_ns = "", 1
    if found := _TO_THE_SECOND.search(text):
        digits = found[2] or ""
        cover_ns = 10 ** (9 - len(digits))
        text = text[: found.end(1)] + text[found.end() :]
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole_ns = (moment - _EPOCH) // _MICROSECOND * 1000
    return whole_ns + int(digits or 0) * cover_ns + cover_ns - 1
