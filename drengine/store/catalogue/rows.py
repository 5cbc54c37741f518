"""The catalogue's rows as values. Each row rests with a checksum over its table's name and all its values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple

import msgspec
import xxhash

from drengine.model.points import Mark, PointKind, RecoveryPoint
from drengine.store.blobs.index import ObjectRemovalRow, PartRow
from drengine.store.segments.format import Role, parse_geometry

_geometry = lru_cache(maxsize=16)(parse_geometry)
"""Points between which no volume changed share one value."""

SIDE_ROLES = frozenset(role.name.lower() for role in (Role.DRILL, Role.DIVERGENT))
"""Branches beside the source's history: fenced by a generation of their own, never the active one."""


class SourceRow(NamedTuple):
    """A source server. `generation` is the newest; only `active_branch` may be written under it."""

    name: str
    generation: int
    active_branch: int


class BranchRow(NamedTuple):
    """A branch and what is durable on it.

    `superseded_ns` is when a promotion left it behind, 0 while it is active.
    """

    source: str
    branch: int
    parent: int
    base_sequence: int
    generation: int
    role: str
    label: str
    closed: int
    created_ns: int
    superseded_ns: int
    durable_sequence: int
    durable_epoch: bytes
    durable_position: int
    geometry: bytes

    @property
    def mark(self) -> Mark:
        """Mark of the durable position."""
        return Mark(self.durable_epoch, self.durable_position)


class SegmentRow(NamedTuple):
    """A segment: how much of it is committed. `length` is the file's length once it is sealed.

    `state` is OPEN (its writer may append), SEALED (index and footer are there) or CUT_OFF (its writer ended
    without sealing it; whatever lies behind `committed_length` is a torn tail). `seal` is the last tag of an encrypted
    segment's chain up to there (drengine/crypt/segment.py); empty for one in clear.
    """

    source: str
    branch: int
    segment: int
    revision: int
    state: str
    first_sequence: int
    last_sequence: int
    committed_length: int
    length: int
    plain_bytes: int
    dead_bytes: int
    seal: bytes = b""


OPEN, SEALED, CUT_OFF = "open", "sealed", "cut-off"


class PointRow(NamedTuple):
    """A recovery point that is kept. `damaged`: 1 when it needs what can't be read, ERASED when that was erased."""

    source: str
    branch: int
    sequence: int
    time_ns: int
    received_ns: int
    kind: str
    label: str
    geometry: bytes
    verified_ns: int
    damaged: int
    pinned: int
    note: str

    @property
    def id(self) -> str:
        """See RecoveryPoint."""
        return f"{self.branch}-{self.sequence}"

    def value(self) -> RecoveryPoint:
        """As the model's value."""
        return RecoveryPoint(
            source=self.source,
            branch=self.branch,
            sequence=self.sequence,
            time_ns=self.time_ns,
            kind=PointKind(self.kind),
            received_ns=self.received_ns,
            geometry=_geometry(self.geometry),
            label=self.label,
            verified_ns=self.verified_ns,
            damaged=bool(self.damaged),
            erased=self.damaged == ERASED,
            pinned=bool(self.pinned),
        )


ERASED = 2
"""`PointRow.damaged` of a point that needs data whose key was forgotten."""


class DamageRow(NamedTuple):
    """A record that cannot be read; `record` is -1 when all of the segment from `sequence` on is unknown."""

    source: str
    branch: int
    segment: int
    record: int
    sequence: int
    found_ns: int
    reason: str


class EpochRow(NamedTuple):
    """The one row that numbers the catalogue's transactions (epoch.py). `id` is always 1; `lineage` is random."""

    id: int
    lineage: int
    number: int


class HeadRow(NamedTuple):
    """The seal over all rows of an encrypted store's catalogue (seal.py). `id` is always 1."""

    id: int
    sum: bytes
    tag: bytes


class RemovalRow(NamedTuple):
    """A decision to remove a segment's file. It leaves the catalogue after the file is gone."""

    source: str
    branch: int
    segment: int
    revision: int


class GrantRow(NamedTuple):
    """Who may do what with a branch or a point, until it is taken back (grants.py).

    `sequence` is 0 for the branch itself; `secret` is the SHA-256 of a capability's, empty for a `holder`.
    """

    id: str
    source: str
    branch: int
    sequence: int
    access: str
    holder: str
    instance: str
    secret: bytes
    issued_ns: int
    expires_ns: int


class MirrorRow(NamedTuple):
    """That the store is a copy, and how far: of a source, or with an empty name of the whole (copies.py).

    `state` is COPY, or PARTED once somebody else than the mirror has changed it. `origin` says where the original lay,
    `lineage` is of its catalogue; at `as_of_ns`, by the mirror's clock, the copy held all that the original held.
    """

    source: str
    state: str
    origin: str
    lineage: int
    as_of_ns: int


COPY, PARTED = "copy", "parted"


class PointLockRow(NamedTuple):
    """A point that nobody may remove before its time, by the compliance clock (care/locking.py).

    It was locked at `made_ns`. The row stays when its time is over, so that no point is locked by policy twice.
    """

    source: str
    branch: int
    sequence: int
    made_ns: int
    until_ns: int


class LockPolicyRow(NamedTuple):
    """Which points of a source are locked: one in each `every_seconds` (0: all), for so long; 0: none from now on."""

    source: str
    every_seconds: int
    for_seconds: int


class ClockRow(NamedTuple):
    """What the compliance clock said so long after a boot of a host, named by its random id."""

    boot: str
    since_boot_ns: int
    reading_ns: int


class InventoryRow(NamedTuple):
    """What a source is made of, as its agent told last (inventories.py).

    `document` is a JSON document; where `data_key` names a data key of the source, it is encrypted under that.
    """

    source: str
    data_key: bytes
    document: bytes


class JudgementRow(NamedTuple):
    """By which roots a branch was last judged whole (care/liveness.py): its `dead_bytes` are as of these.

    `roots` are the positions, packed by `pack_roots`. Derived: without it the branch is judged anew.
    """

    source: str
    branch: int
    roots: bytes


def pack_roots(positions: Sequence[int]) -> bytes:
    """Ascending positions, as MessagePack of the steps between them."""
    return msgspec.msgpack.encode([after - before for before, after in pairwise([0, *positions])])


def unpack_roots(roots: bytes) -> list[int]:
    """Positions that were packed."""
    return list(accumulate(msgspec.msgpack.decode(roots, type=list[int])))


Row = (
    SourceRow
    | BranchRow
    | SegmentRow
    | PointRow
    | DamageRow
    | EpochRow
    | RemovalRow
    | GrantRow
    | HeadRow
    | PartRow
    | ObjectRemovalRow
    | MirrorRow
    | PointLockRow
    | LockPolicyRow
    | ClockRow
    | JudgementRow
    | InventoryRow
)


class Table(NamedTuple):
    """Where a kind of row rests. Its first `keys` fields are the key; an older version lacks its last `later` ones."""

    name: str
    row: type[Any]
    keys: int
    later: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of its columns."""
        names: tuple[str, ...] = self.row._fields
        return names[: len(names) - self.later]


class Tables:
    """Every table."""

    SOURCE: ClassVar = Table("source", SourceRow, 1)
    BRANCH: ClassVar = Table("branch", BranchRow, 2)
    SEGMENT: ClassVar = Table("segment", SegmentRow, 3)
    POINT: ClassVar = Table("point", PointRow, 3)
    DAMAGE: ClassVar = Table("damage", DamageRow, 4)
    EPOCH: ClassVar = Table("epoch", EpochRow, 1)
    REMOVAL: ClassVar = Table("removal", RemovalRow, 4)
    GRANT: ClassVar = Table("access_grant", GrantRow, 1)
    HEAD: ClassVar = Table("head", HeadRow, 1)
    MIRROR: ClassVar = Table("mirror", MirrorRow, 1)
    JUDGEMENT: ClassVar = Table("judgement", JudgementRow, 2)
    SEGMENT_3: ClassVar = Table("segment", SegmentRow, 3, later=1)
    VERSION_1: ClassVar = (SOURCE, BRANCH, SEGMENT_3, POINT, DAMAGE)
    VERSION_2: ClassVar = (*VERSION_1, EPOCH, REMOVAL)
    VERSION_3: ClassVar = (*VERSION_2, GRANT)
    PART: ClassVar = Table("part", PartRow, 3)
    OBJECT_REMOVAL: ClassVar = Table("object_removal", ObjectRemovalRow, 2)
    VERSION_4: ClassVar = (SOURCE, BRANCH, SEGMENT, POINT, DAMAGE, EPOCH, REMOVAL, GRANT, HEAD)
    VERSION_5: ClassVar = (*VERSION_4, PART, OBJECT_REMOVAL)
    VERSION_6: ClassVar = (*VERSION_5, MIRROR)
    VERSION_7: ClassVar = (*VERSION_6, JUDGEMENT)
    POINT_LOCK: ClassVar = Table("point_lock", PointLockRow, 3)
    LOCK_POLICY: ClassVar = Table("lock_policy", LockPolicyRow, 1)
    CLOCK: ClassVar = Table("clock", ClockRow, 1)
    VERSION_8: ClassVar = (*VERSION_7, POINT_LOCK, LOCK_POLICY, CLOCK)
    INVENTORY: ClassVar = Table("inventory", InventoryRow, 1)
    VERSION_9: ClassVar = (*VERSION_8, INVENTORY)
    NEWEST: ClassVar = VERSION_9


TABLE_OF: dict[type[Any], Table] = {table.row: table for table in Tables.NEWEST}


def row_checksum(table: str, values: tuple[Any, ...]) -> int:
    """xxh3-64 of the table's name and the values in MessagePack, as a signed integer for SQLite."""
    number = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode((table, *values)))
    return number - (1 << 64) if number >> 63 else number
