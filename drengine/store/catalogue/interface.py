"""The catalogue: what is committed. One transaction of it is the store's only commit point.

Every row carries a checksum (rows.py), which is checked whenever the row is read. Each transaction has a number, its
epoch; in an encrypted store it also keeps a seal over the rows (seal.py). Both belong to a *partition*: SQLite has one
for the whole store, a catalogue that several targets share has one for each source, so that no row is in
everybody's way. Threads may share a connection, which does one thing at a time; each writer has its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

from drengine.model.errors import DrengineError
from drengine.store.blobs.index import ObjectRemovalRow, PartRow
from drengine.store.catalogue.epoch import Epoch
from drengine.store.catalogue.rows import (
    CUT_OFF,
    OPEN,
    SIDE_ROLES,
    BranchRow,
    ClockRow,
    DamageRow,
    GrantRow,
    HeadRow,
    InventoryRow,
    JudgementRow,
    LockPolicyRow,
    MirrorRow,
    PointLockRow,
    PointRow,
    RemovalRow,
    SegmentRow,
    SourceRow,
    Table,
    Tables,
)
from drengine.store.errors import FENCED, UNKNOWN_BRANCH, UNKNOWN_SOURCE

_POINTS_AT_ONCE = 32
_LAST_LETTER = "\U0010ffff"


class Fence(NamedTuple):
    """A lock that a transaction relies on: refused once somebody else has taken it, by its number."""

    name: str
    token: int


class Usage(NamedTuple):
    """How much a source has: segments, their bytes as in SegmentRow, and points."""

    segments: int
    stored_bytes: int
    plain_bytes: int
    dead_bytes: int
    points: int
    points_damaged: int
    points_pinned: int


class Catalogue(ABC):
    """One connection to a store's catalogue.

    Attributes:
        has_epochs: its transactions are numbered; False where one of the first version is opened only for reading.
        upgraded: opening it brought it from the first version, which knew no epochs.
        is_shared: hosts share it, so what this one has noted may be little.
    """

    has_epochs: bool = True
    upgraded: bool = False
    is_shared: bool = False

    @abstractmethod
    def another(self) -> Catalogue:
        """Another connection to the same catalogue, with the same key, for one writer."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def check(self, key: bytes = b"", *, every_row: bool = True) -> None:
        """Check every row's checksum, and the seal if this is its key; from then on transactions keep the seal.

        `every_row`: False leaves rows in clear to those who read them.

        Raises:
            DrengineError: CATALOGUE_DAMAGED, STORE_TAMPERED.
        """

    @abstractmethod
    def transaction(self, source: str | None = None, *, fence: Fence | None = None) -> AbstractContextManager[None]:
        """All of the block or nothing; durable when it has left.

        Args:
            source: whose rows alone it changes, empty: the store's own; None: any. Those of a source follow each other.
            fence: a lock that must still be held when it commits.

        Raises:
            DrengineError: STORE_FULL, STORE_IO, STORE_READ_ONLY, MAINTENANCE_BUSY; nothing was changed, except
                that after STORE_IO it may still come to light after a crash. CATALOGUE_DAMAGED when it is older than
                the segments.
        """

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """What is read in the block is of one moment; it changes nothing."""

    @abstractmethod
    def seal(self, key: bytes) -> None:
        """Seal all rows, and keep them sealed from now on; nothing happens where a seal fits already."""

    @abstractmethod
    def head(self) -> HeadRow | None:
        """The seal; None where the store is not encrypted."""

    @abstractmethod
    def epoch(self, source: str = "") -> Epoch:
        """The newest transaction of a source's partition; without a source, of the store's."""

    def state_of(self, source: str) -> Hashable:
        """A value that changes whenever anything that the catalogue says of a source changes."""
        return self.epoch(source)

    @abstractmethod
    def noted_epoch(self, source: str = "") -> Epoch | None:
        """The newest transaction that is known beside the segments; None when nothing readable says it."""

    @abstractmethod
    def note_epoch(self, epoch: Epoch, source: str = "", *, sync: bool = False) -> None:
        """Note beside the segments that this transaction was committed."""

    @abstractmethod
    def data_version(self) -> int:
        """A number that changes after another connection has committed something: a hint, which may come late."""

    @abstractmethod
    def put(self, *rows: Any) -> None:
        """Insert or replace rows of any kind, inside a transaction."""

    @abstractmethod
    def remove(self, *rows: Any) -> None:
        """Delete rows by their keys, inside a transaction."""

    @abstractmethod
    def _values(self, table: Table, where: str = "", *keys: Any) -> list[tuple[Any, ...]]:
        """Rows of a table, without their checksums, which were checked. Keys stand as ``?`` in `where`."""

    @abstractmethod
    def _added_up(self, table: Table, sums: str, where: str, *keys: Any) -> tuple[int, ...]:
        """Sums over rows, added up where they lie, so that none is read and checked; of none at all each is 0."""

    def usage(self, source: str) -> Usage:
        """How much a source has, for figures: nothing is decided by them."""
        stored = f"sum(CASE state WHEN '{OPEN}' THEN committed_length ELSE length END)"
        segments = self._added_up(
            Tables.SEGMENT, f"count(*), {stored}, sum(plain_bytes), sum(dead_bytes)", "WHERE source = ?", source
        )
        damaged = "sum(CASE damaged WHEN 0 THEN 0 ELSE 1 END)"
        points = self._added_up(Tables.POINT, f"count(*), {damaged}, sum(pinned)", "WHERE source = ?", source)
        return Usage(*segments, *points)

    def sources(self) -> list[SourceRow]:
        """All sources, by name."""
        return cast("list[SourceRow]", self._select(Tables.SOURCE, "ORDER BY name"))

    def source(self, name: str) -> SourceRow:
        """One source.

        Raises:
            DrengineError: UNKNOWN_SOURCE.
        """
        found = self.known_source(name)
        if found is None:
            raise DrengineError(UNKNOWN_SOURCE, f"the store holds no source {name[:80]!r}")
        return found

    def known_source(self, name: str) -> SourceRow | None:
        """One source, or None."""
        found = self._select(Tables.SOURCE, "WHERE name = ?", name)
        return cast(SourceRow, found[0]) if found else None

    def source_count(self) -> int:
        """How many sources there are."""
        return self._added_up(Tables.SOURCE, "count(*)", "")[0]

    def branches(self, source: str) -> list[BranchRow]:
        """All branches of a source, by number."""
        return cast("list[BranchRow]", self._select(Tables.BRANCH, "WHERE source = ? ORDER BY branch", source))

    def branch(self, source: str, branch: int) -> BranchRow:
        """One branch, closed or not.

        Raises:
            DrengineError: UNKNOWN_BRANCH.
        """
        found = self._select(Tables.BRANCH, "WHERE source = ? AND branch = ?", source, branch)
        if not found:
            raise DrengineError(UNKNOWN_BRANCH, f"source {source!r} has no branch {branch}")
        return cast(BranchRow, found[0])

    def segments(self, source: str, branch: int, since: int | None = None) -> list[SegmentRow]:
        """All segments of a branch, oldest first; or those that reach to a position, or begin behind it."""
        where, keys = "WHERE source = ? AND branch = ?", [source, branch]
        if since is not None:
            where, keys = f"{where} AND last_sequence >= ?", [*keys, since]
        return cast("list[SegmentRow]", self._select(Tables.SEGMENT, f"{where} ORDER BY segment", *keys))

    def segments_due(self, source: str, branch: int, dead_fraction: float, *, sealed: bool) -> int:
        """How many segments of a branch are to be written anew: cut off, for so much of them dead, or not sealed."""
        due = f"state = '{CUT_OFF}' OR (dead_bytes > 0 AND dead_bytes >= ? * plain_bytes)"
        due = f"{due} OR length(seal) = 0" if sealed else due
        where = f"WHERE source = ? AND branch = ? AND ({due})"
        return self._added_up(Tables.SEGMENT, "count(*)", where, source, branch, dead_fraction)[0]

    def segment(self, source: str, branch: int, segment: int) -> SegmentRow | None:
        """One segment, or None."""
        where = "WHERE source = ? AND branch = ? AND segment = ?"
        found = self._select(Tables.SEGMENT, where, source, branch, segment)
        return cast(SegmentRow, found[0]) if found else None

    def segment_at(self, source: str, branch: int, sequence: int) -> SegmentRow | None:
        """The newest segment that begins at or before a position, or None."""
        where = "WHERE source = ? AND branch = ? AND first_sequence <= ? ORDER BY segment DESC LIMIT 1"
        found = self._select(Tables.SEGMENT, where, source, branch, sequence)
        return cast(SegmentRow, found[0]) if found else None

    def points(self, source: str, branch: int | None = None) -> list[PointRow]:
        """Points of a source, or of one of its branches; by branch, then oldest first."""
        if branch is None:
            found = self._select(Tables.POINT, "WHERE source = ? ORDER BY branch, sequence", source)
        else:
            where = "WHERE source = ? AND branch = ? ORDER BY sequence"
            found = self._select(Tables.POINT, where, source, branch)
        return cast("list[PointRow]", found)

    def points_newest_first(self, source: str, branch: int, until: int) -> Iterator[PointRow]:
        """Points of a branch at or before a position, newest first, read a few at a time."""
        where = "WHERE source = ? AND branch = ? AND sequence <= ? ORDER BY sequence DESC LIMIT ?"
        while True:
            found = self._select(Tables.POINT, where, source, branch, until, _POINTS_AT_ONCE)
            yield from found
            if len(found) < _POINTS_AT_ONCE:
                return
            until = found[-1].sequence - 1

    def newest_point(self, source: str, branch: int) -> PointRow | None:
        """The newest point of a branch, damaged or not."""
        where = "WHERE source = ? AND branch = ? ORDER BY sequence DESC LIMIT 1"
        found = self._select(Tables.POINT, where, source, branch)
        return cast(PointRow, found[0]) if found else None

    def point(self, source: str, branch: int, sequence: int) -> PointRow | None:
        """One point, or None."""
        where = "WHERE source = ? AND branch = ? AND sequence = ?"
        found = self._select(Tables.POINT, where, source, branch, sequence)
        return cast(PointRow, found[0]) if found else None

    def damage(self, source: str) -> list[DamageRow]:
        """Records of a source that cannot be read."""
        return cast("list[DamageRow]", self._select(Tables.DAMAGE, "WHERE source = ?", source))

    def removals(self, source: str, branch: int) -> list[RemovalRow]:
        """Files of a branch that are to be removed, or were a moment ago."""
        found = self._select(Tables.REMOVAL, "WHERE source = ? AND branch = ? ORDER BY segment", source, branch)
        return cast("list[RemovalRow]", found)

    def parts(self, source: str, name: str) -> list[PartRow]:
        """The objects of a file, by where their bytes begin; see blobs/index.py."""
        found = self._select(Tables.PART, "WHERE source = ? AND name = ? ORDER BY begin", source, name)
        return cast("list[PartRow]", found)

    def part_names(self, source: str | None, prefix: str) -> list[str]:
        """Names of files in an object store that begin with `prefix`; None: of every source, and the store's own."""
        return sorted({row.name for row in self.parts_below(source, prefix)})

    def parts_below(self, source: str | None, prefix: str) -> list[PartRow]:
        """The objects of files whose names begin with `prefix`, of a source or of all."""
        where, keys = "WHERE name >= ? AND name < ?", [prefix, prefix + _LAST_LETTER]
        if source is not None:
            where, keys = f"{where} AND source = ?", [*keys, source]
        return cast("list[PartRow]", self._select(Tables.PART, where, *keys))

    def all_parts(self) -> list[PartRow]:
        """The objects of all files."""
        return cast("list[PartRow]", self._select(Tables.PART, ""))

    def object_removals(self) -> list[ObjectRemovalRow]:
        """Objects that are to be deleted, or were a moment ago."""
        return cast("list[ObjectRemovalRow]", self._select(Tables.OBJECT_REMOVAL, ""))

    def mirrored(self) -> dict[str, MirrorRow]:
        """By source what is known of the original that this is a copy of; under the empty name, of the whole."""
        return {row.source: row for row in cast("list[MirrorRow]", self._select(Tables.MIRROR, ""))}

    def judgement(self, source: str, branch: int) -> JudgementRow | None:
        """By which roots a branch was last judged; None: it never was."""
        found = self._select(Tables.JUDGEMENT, "WHERE source = ? AND branch = ?", source, branch)
        return cast(JudgementRow, found[0]) if found else None

    def point_locks(self, source: str) -> list[PointLockRow]:
        """Points of a source that are locked, or were."""
        return cast("list[PointLockRow]", self._select(Tables.POINT_LOCK, "WHERE source = ?", source))

    def lock_policy(self, source: str) -> LockPolicyRow:
        """Which points of a source are locked."""
        found = self._select(Tables.LOCK_POLICY, "WHERE source = ?", source)
        return cast(LockPolicyRow, found[0]) if found else LockPolicyRow(source, 0, 0)

    def inventory(self, source: str) -> InventoryRow | None:
        """What a source is made of; None: it never told."""
        found = self._select(Tables.INVENTORY, "WHERE source = ?", source)
        return cast(InventoryRow, found[0]) if found else None

    def clocks(self) -> dict[str, ClockRow]:
        """What the compliance clock said, by boot; empty where nothing was ever locked."""
        return {row.boot: row for row in cast("list[ClockRow]", self._select(Tables.CLOCK, ""))}

    def grants(self) -> list[GrantRow]:
        """All grants, expired ones too."""
        return cast("list[GrantRow]", self._select(Tables.GRANT, ""))

    def require_writable(self, source: str, branch: int, generation: int) -> tuple[SourceRow, BranchRow]:
        """The rows of a branch that this generation may write now (rule 4).

        A branch beside the history is fenced by its own generation; any other must be the active one.

        Raises:
            DrengineError: FENCED, UNKNOWN_BRANCH.
        """
        source_row, row = self.source(source), self.branch(source, branch)
        if row.closed:
            raise DrengineError(UNKNOWN_BRANCH, f"branch {branch} of {source!r} is closed")
        beside = row.role in SIDE_ROLES
        wanted = row.generation if beside else source_row.generation
        if generation != wanted or not (beside or source_row.active_branch == branch):
            raise DrengineError(
                FENCED,
                f"generation {generation} may not write branch {branch} of {source!r}: "
                f"generation {source_row.generation} writes branch {source_row.active_branch}",
            )
        return source_row, row

    def _select(self, table: Table, where: str, *keys: Any) -> list[Any]:
        return [table.row(*values) for values in self._values(table, where, *keys)]
