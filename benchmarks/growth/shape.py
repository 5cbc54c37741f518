"""What one synthetic source has in a store: the rows that a real one makes in a week under the default retention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from drengine.model.extents import EXTENT, FRAME
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine.store.care.retention import RetentionPolicy, plan
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import SEALED, BranchRow, PointRow, SegmentRow, SourceRow
from drengine.store.segments.format import CHECKSUM, CUT_FIXED, FOOTER, HEADER, RECORD, pack_geometry

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
NS = 1_000_000_000
NOW = 1_800_000_000
"""The moment at which the sources are looked at; a whole hour, so that runs thin the same points. Seconds."""
BRANCH, VOLUME, GENERATION = 1, 1, 1
SEGMENT_BYTES = 64 * MIB
COPY_RECORD_BYTES = MIB
COPY_EXTENT_BYTES = 64 * KIB
CHANGE_EXTENT_BYTES = 8 * KIB
_DAY_SECONDS = 86_400
_LEFT = ((1, 720), (600, 4800), (3600, 26 * 3600), (_DAY_SECONDS, 8 * _DAY_SECONDS))
"""One point each so many seconds, up to such an age."""


@dataclass(frozen=True, slots=True)
class Span:
    """A segment of a source: `copy` says that it belongs to the initial copy, of one record a MiB."""

    segment: int
    first_sequence: int
    records: int
    copy: bool

    @property
    def last_sequence(self) -> int:
        """Position of its last record."""
        return self.first_sequence + self.records - 1

    def plain_lengths(self, batch_bytes: int) -> list[int]:
        """Plain bytes of each record; 0 for a cut."""
        return [COPY_RECORD_BYTES] * self.records if self.copy else [batch_bytes, 0] * (self.records // 2)

    @property
    def cuts(self) -> int:
        """How many of its records are cuts."""
        return 0 if self.copy else self.records // 2

    def plain_bytes(self, batch_bytes: int) -> int:
        """Of all records."""
        return (self.records - self.cuts) * (COPY_RECORD_BYTES if self.copy else batch_bytes)

    @property
    def extent_bytes(self) -> int:
        """Of each extent, which has a frame of its own."""
        return COPY_EXTENT_BYTES if self.copy else CHANGE_EXTENT_BYTES


@dataclass(frozen=True)
class Shape:
    """A source that was copied once and has changed evenly since: each second one batch and one point.

    Attributes:
        copied_bytes: of the initial copy, also the size of the volume.
        changed_bytes: what the last `days` days wrote, as it is stored.
    """

    copied_bytes: int = 72 * GIB
    changed_bytes: int = 30 * GIB + 400 * MIB
    days: int = 7

    @property
    def stored_bytes(self) -> int:
        """Of all segments, about."""
        return self.copied_bytes + self.changed_bytes

    @property
    def batch_bytes(self) -> int:
        """Written each second, in extents at random places."""
        return max(1, self.changed_bytes // (self.days * _DAY_SECONDS) // CHANGE_EXTENT_BYTES) * CHANGE_EXTENT_BYTES

    @property
    def volumes(self) -> tuple[VolumeGeometry, ...]:
        """Its one disk."""
        return (VolumeGeometry(VOLUME, "data", "8c1f42f0-5a2e-4f0b-9d3c-0123456789ab", self.copied_bytes),)

    @cached_property
    def spans(self) -> list[Span]:
        """Its segments, oldest first, all sealed: the next writer begins another one."""
        copies = self.copied_bytes // SEGMENT_BYTES
        each = SEGMENT_BYTES // COPY_RECORD_BYTES
        found = [Span(number + 1, 1 + number * each, each, True) for number in range(copies)]
        seconds = SEGMENT_BYTES // self.batch_bytes
        first = copies * each + 1
        for number in range(self.changed_bytes // SEGMENT_BYTES):
            found.append(Span(copies + number + 1, first, 2 * seconds, False))
            first += 2 * seconds
        return found

    @property
    def head(self) -> int:
        """Its newest position, a point."""
        return self.spans[-1].last_sequence

    def kept(self, now: int) -> list[int]:
        """The moments, in seconds, whose points the default retention keeps at a moment; oldest first.

        It chooses among those that its earlier turns have left: of older ones the first of each period.
        """
        begun = NOW - (self.head - 1) // 2
        moments: list[int] = []
        for every, until in _LEFT:
            first = max(begun, now - until)
            moments += range(-(-first // every) * every, now + 1, every)
        moments = sorted(set(moments))
        points = [self.point("any", moment).value() for moment in moments]
        gone = {point.sequence for point in plan(points, now * NS, RetentionPolicy())}
        return [moment for moment in moments if self.position(moment) not in gone]

    def position(self, moment: int) -> int:
        """Of the point of a moment, in seconds."""
        return self.head - 2 * (NOW - moment)

    def lengths(self, span: Span, source: str) -> tuple[int, int]:
        """Where a segment's records end, and how long its file is."""
        tail = 1 + len(source) + len(pack_geometry(self.volumes))
        plain = span.plain_bytes(self.batch_bytes)
        rows = plain // span.extent_bytes
        index = span.records * RECORD.size + rows * (EXTENT.size + FRAME.size) + span.cuts * CUT_FIXED.size
        end = HEADER.size + tail + CHECKSUM.size + index + plain
        return end, end + index + FOOTER.size

    def rows(self, source: str) -> Iterator[SourceRow | BranchRow | SegmentRow | PointRow]:
        """All rows of a source."""
        yield SourceRow(source, GENERATION, BRANCH)
        yield BranchRow(
            source=source,
            branch=BRANCH,
            parent=0,
            base_sequence=0,
            generation=GENERATION,
            role="trunk",
            label="",
            closed=0,
            created_ns=(NOW - self.days * _DAY_SECONDS) * NS,
            superseded_ns=0,
            durable_sequence=self.head,
            durable_epoch=mark(self.head).epoch,
            durable_position=mark(self.head).position,
            geometry=pack_geometry(self.volumes),
        )
        yield from self.segments(source)
        yield from (self.point(source, moment) for moment in self.kept_now)

    def segments(self, source: str) -> Iterator[SegmentRow]:
        """Rows of its segments."""
        for span in self.spans:
            committed, length = self.lengths(span, source)
            yield SegmentRow(
                source=source,
                branch=BRANCH,
                segment=span.segment,
                revision=1,
                state=SEALED,
                first_sequence=span.first_sequence,
                last_sequence=span.last_sequence,
                committed_length=committed,
                length=length,
                plain_bytes=span.plain_bytes(self.batch_bytes),
                dead_bytes=0,
            )

    @cached_property
    def kept_now(self) -> list[int]:
        """As `kept`, at the moment at which the sources are looked at."""
        return self.kept(NOW)

    def point(self, source: str, moment: int) -> PointRow:
        """The point of a moment; those after NOW show no new data."""
        return PointRow(
            source=source,
            branch=BRANCH,
            sequence=self.position(moment),
            time_ns=moment * NS - NS // 20,
            received_ns=moment * NS,
            kind=PointKind.WRITE_ORDER.value,
            label="",
            geometry=pack_geometry(self.volumes),
            verified_ns=0,
            damaged=0,
            pinned=0,
            note="",
        )


def mark(sequence: int) -> Mark:
    """The mark that a position has."""
    return Mark(b"growth-simulated", sequence)


def name_of(number: int) -> str:
    """A source's name."""
    return f"server-{number:04d}"


def fill(catalogue: Catalogue, shape: Shape, sources: int) -> None:
    """Put the rows of so many sources into an empty catalogue."""
    for number in range(sources):
        with catalogue.transaction():
            catalogue.put(*shape.rows(name_of(number)))
