"""Keeping a second copy of a store: pass by pass, what the original has committed since.

Of each source, in this order, so that a crash at any moment leaves a store that can be recovered from:

1. the original's rows are read, of one moment; keyrings are brought up to date;
2. the bytes of new records are copied, checked while they pass, and made durable with their names;
3. ONE transaction of the copy's catalogue puts the rows, and takes away the points that the original has retired;
4. then, if nobody reads what the original no longer keeps, files that compaction has replaced or removed follow.

So the copy is at every moment a prefix of each source's history, whole at every point that it names. A source of which
much is missing is brought forward in stages, each ending at a segment, so that none keeps the others waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.model.points import Mark
from drengine.store.blobs import Changes
from drengine.store.blobs.storage import content
from drengine.store.care.compaction import CompactionReport, remove_segments
from drengine.store.care.locking import advance, held, lock_rows_of, reading_ns, seconds_left
from drengine.store.care.objects import delete_decided
from drengine.store.care.scrub import ScrubReport, segment_damage
from drengine.store.catalogue.rows import (
    COPY,
    OPEN,
    BranchRow,
    DamageRow,
    MirrorRow,
    PointLockRow,
    PointRow,
    SegmentRow,
)
from drengine.store.copies import LOCAL_BRANCHES, WHOLE, copy_row
from drengine.store.damage import WHOLE_SEGMENT, judge_points, record_damage
from drengine.store.errors import MIRROR_PARTED, ORIGIN_REBUILT, os_errors
from drengine.store.mirror.carrying import Carried, Carrier, NotYetThere
from drengine.store.mirror.difference import Difference, Key, SourceRows
from drengine.store.mirror.pace import Pace
from drengine.store.names import KEYS, STORE_KEYS, layer_last, segment_directory, segment_name
from drengine.store.rebuild.manifest import write_manifest
from drengine.store.rebuild.strays import clear_strays
from drengine.store.segments.format import pack_geometry
from drengine.store.store import Store
from drengine.store.views.records import ERASED_REASON, SegmentScan

log = logging.getLogger("drengine.mirror")

_LOCK_SLACK_NS = 60_000_000_000
"""What a lock may be shorter than it could be, so that it is not written again at each pass."""
_KEYRINGS_SECONDS = 60
"""How often keyrings are compared, whatever else changes."""
_NOTE_SECONDS = 10
"""How often it is noted that a copy is complete, while nothing changes."""
_SNAPSHOTS_MAX = 5
"""How often a source is looked at anew in one pass because its files were replaced meanwhile."""
_MISSING = "the original has no such file"


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """How a mirror works.

    Attributes:
        stage_bytes: what is copied of one source before others have their turn, and the copy is committed.
        hashes: decode each record that is copied, and compare its hashes, beside its checksums.
        accept_rebuilt: take away from the copy what is missing in an original whose catalogue was rebuilt.
    """

    stage_bytes: int = 256 << 20
    hashes: bool = False
    accept_rebuilt: bool = False


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the copy of a source is behind.

    Attributes:
        as_of_ns: by the mirror's clock, when the copy last held all that the original held; 0: never.
        bytes: file bytes of committed records that the copy lacks.
    """

    as_of_ns: int
    bytes: int


@dataclass(slots=True)
class PassReport:
    """What a pass did.

    Attributes:
        bytes: that were copied.
        segments: files that were begun, or grew.
        complete: the copy holds all that the original held when the pass began.
        damaged: what could not be copied whole, as text for people.
    """

    bytes: int = 0
    segments: int = 0
    complete: bool = True
    damaged: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Stage:
    """What has been copied of a source in one go.

    Attributes:
        bytes: how much.
        arrived: segments that are there as the original's rows say.
        damaged: those that are not whole.
        changes: by file, what is to be committed with it.
    """

    bytes: int = 0
    arrived: set[Key] = field(default_factory=set)
    damaged: list[SegmentRow] = field(default_factory=list)
    changes: dict[str, Changes] = field(default_factory=dict)


class _Moved(Exception):
    """A file was replaced since the rows were read."""


class Mirror:
    """Keeps one copy of one store. For one thread; `lags` may be read by any."""

    def __init__(self, origin: Store, copy: Store, pace: Pace, options: MirrorOptions | None = None) -> None:
        """Both stores are open, and stay so."""
        self._origin = origin.context
        self._copy = copy.context
        self._options = options or MirrorOptions()
        self._carrier = Carrier(
            self._origin.storage,
            self._copy.storage,
            self._origin.keys,
            pace.passed,
            hashes=self._options.hashes,
        )
        self._settled: dict[str, Hashable] = {}
        """The state of each original source of which nothing was left to do."""
        self._keyrings_ns = 0
        self._tried: set[tuple[object, ...]] = set()
        """Segments of the copy that were damaged, and tried to be healed."""
        self._has_manifest: set[str] = set()
        """Sources whose newest manifest knows every point that is gone."""
        rows = self._copy.catalogue.mirrored()
        self._noted_ns = {name: row.as_of_ns for name, row in rows.items()}
        self.lags = {name: Lag(row.as_of_ns, 0) for name, row in rows.items() if name}

    def close(self) -> None:
        """Let go of the copy's files."""
        self._carrier.close()

    def run(self) -> PassReport:
        """One pass.

        Raises:
            DrengineError: MIRROR_PARTED, ORIGIN_REBUILT, MAINTENANCE_BUSY; STORE_FULL, STORE_IO, STORE_AWAY and others
                of either store. What was committed stays; the next pass goes on.
            Stopped: see Pace.
        """
        report = PassReport()
        self._origin.place.require()
        with self._copy.locks.maintenance(), os_errors("mirroring"):
            self._require_copy()
            as_of_ns = self._origin.clock.now_ns()
            names = [row.name for row in self._origin.catalogue.sources()]
            if as_of_ns - self._keyrings_ns >= _KEYRINGS_SECONDS * 1_000_000_000:
                self._copy_keyrings(names)  # wrapped anew, they change and nothing else does
                self._keyrings_ns = as_of_ns
            try:
                for name in sorted(names, key=lambda name: self.lags[name].bytes if name in self.lags else 0):
                    self._bring_forward(name, report)
            except BaseException:
                self._carrier.close()
                raise
            if report.complete:
                self._note_complete(as_of_ns)
        return report

    def _bring_forward(self, name: str, report: PassReport) -> None:
        for _ in range(_SNAPSHOTS_MAX):
            as_of_ns = self._origin.clock.now_ns()
            with self._origin.catalogue.snapshot():
                state = self._origin.catalogue.state_of(name)
                if self._settled.get(name, self) == state and not self._copy.catalogue.damage(name):
                    self.lags[name] = Lag(as_of_ns, 0)
                    return
                theirs = SourceRows.read(self._origin.catalogue, name)
                theirs.locked_seconds = seconds_left(self._origin, name)
                lineage = self._origin.catalogue.epoch(name).lineage
            if theirs.source is None:
                return
            self._copy_keyrings([name])
            mine = SourceRows.read(self._copy.catalogue, name)
            difference = Difference.between(theirs, mine)
            self._require_decided(name, lineage, difference)
            try:
                noted = MirrorRow(name, COPY, "", lineage, as_of_ns)
                if self._carry_and_commit(name, difference, noted, report):
                    self._settled[name] = state
            except _Moved:
                continue
            return
        report.complete = False

    def _carry_and_commit(self, name: str, difference: Difference, noted: MirrorRow, report: PassReport) -> bool:
        """Whether nothing was left to do."""
        behind = difference.bytes_behind
        self.lags[name] = Lag(self._noted_ns.get(name, 0), behind)
        # A writer of what was a copy must not find us at its files.
        with ExitStack() as locks:
            for branch in sorted({row.branch for row in difference.urgent}):
                locks.enter_context(self._copy.locks.branch(name, branch))
            self._require_copy()
            stage = self._carry(difference.urgent, difference.mine, report)
            grown = difference.grown
            self._forget_layers(grown)
            is_complete = len(stage.arrived) == len(difference.urgent)
            is_same = not self._commit(name, difference, stage, noted if is_complete else None)
            self._forget_layers(grown)  # whoever had read the old row in between
        for row in difference.urgent:
            if (row.branch, row.segment) in stage.arrived and row.state != OPEN:
                self._carrier.let_go(row)
                self._copy.layers.segment_closed(name, row.branch, row.segment)
        if not is_complete:
            report.complete = False
            self.lags[name] = Lag(self._noted_ns.get(name, 0), behind - stage.bytes)
            return False
        self.lags[name] = Lag(noted.as_of_ns, 0)
        self._follow(name, difference, report)
        self._heal(name, difference)
        is_clean = not difference.replaced and not difference.removed
        return is_same and is_clean and difference.mine.points.keys() <= difference.theirs.points.keys()

    def _carry(self, rows: Iterable[SegmentRow], mine: SourceRows, report: PassReport) -> _Stage:
        """Copy files, durably, until a stage is full."""
        stage, folders = _Stage(), set()
        for row in rows:
            if stage.bytes >= self._options.stage_bytes:
                break
            key = (row.branch, row.segment)
            try:
                carried = self._carried(row, mine.segments.get(key))
            except NotYetThere:
                continue
            if carried.fault:
                stage.damaged.append(row)
                what = f"segment {row.segment} of branch {row.branch} of {row.source!r}: {carried.fault}"
                report.damaged.append(what)
                log.error("the original is damaged, and so is what was copied of it: %s", what)
                self._tell_original(row)
            stage.bytes += carried.bytes
            report.bytes += carried.bytes
            report.segments += 1
            stage.arrived.add(key)
            folders.add(segment_directory(row.source, row.branch))
        stage.changes = self._carrier.sync()
        for folder in sorted(folders):
            self._copy.storage.sync_dir(folder)
        return stage

    def _tell_original(self, row: SegmentRow) -> None:
        """Have the original remember what of a segment cannot be read, so that its source sends it again."""
        with suppress(DrengineError):
            record_damage(self._origin, list(segment_damage(self._origin, row, ScrubReport(), lambda: None)))

    def _forget_layers(self, rows: Iterable[SegmentRow]) -> None:
        """Layers of segments that were closed and have other records now, and of groups that hold these."""
        for row in rows:
            for name in self._copy.storage.list(f"{segment_directory(row.source, row.branch)}/"):
                if layer_last(name) >= row.segment:
                    self._copy.storage.delete(name)
            self._copy.layers.forget(row.source, row.branch)

    def _carried(self, row: SegmentRow, known: SegmentRow | None) -> Carried:
        """Copy one file; what was not read well is read once more."""
        try:
            carried = self._carrier.carry(row, known)
            if carried.fault:
                self._carrier.let_go(row)
                carried = self._carrier.carry(row, known)
        except FileNotFoundError:
            fresh = self._origin.catalogue.segment(*row[:3])
            if fresh is None or fresh.revision != row.revision:
                raise _Moved from None
            return Carried(0, _MISSING)
        return carried

    def _commit(
        self,
        name: str,
        difference: Difference,
        stage: _Stage,
        noted: MirrorRow | None,
    ) -> bool:
        """Whether anything of the source was changed."""
        catalogue, damaged = self._copy.catalogue, stage.damaged
        reached = difference.reach(stage.arrived)
        put, gone = difference.rows(reached, self._roots(name), self._branch_at(difference))
        put += self._locks(difference, reached)
        gone += lock_rows_of(catalogue, name, [row for row in gone if isinstance(row, PointRow)])
        if not put and not gone and not stage.changes and not (noted and self._is_note_due(noted)):
            return False
        is_changed = bool(put or gone or stage.changes)
        has_damage = bool(damaged or catalogue.damage(name))
        if has_damage:  # until it is known whether they need it
            put = [row._replace(damaged=1) if isinstance(row, PointRow) else row for row in put]
        new_points = [row for row in put if isinstance(row, PointRow)]
        with catalogue.transaction(name):
            self._require_copy()
            catalogue.remove(*gone)
            catalogue.put(*put)
            self._apply(stage.changes.values())
            for row in damaged:
                catalogue.put(*self._damage_of(row))
            if noted:
                catalogue.put(noted)
                self._noted_ns[name] = noted.as_of_ns
        if has_damage:
            judge_points(self._copy, name, None if damaged else new_points)
        if any(isinstance(row, PointRow) for row in gone):
            self._has_manifest.discard(name)
        if _is_structural(difference, put):
            self._write_manifest(name)
        return is_changed

    def _locks(self, difference: Difference, reached: dict[int, int]) -> list[PointLockRow]:
        """Points are locked here for as long as they are at the original, by the clock of the copy; never for less."""
        mine = {(row.branch, row.sequence): row for row in self._copy.catalogue.point_locks(difference.name)}
        if not difference.theirs.locked_seconds and not mine:
            return []
        now_ns = reading_ns(self._copy.catalogue, self._copy.clock)
        rows = []
        for key, seconds in difference.theirs.locked_seconds.items():
            until_ns = now_ns + seconds * 1_000_000_000
            known = mine.get(key)
            is_shorter = known is None or known.until_ns < until_ns - _LOCK_SLACK_NS
            if key in difference.theirs.points and key[1] <= reached.get(key[0], -1) and is_shorter:
                rows.append(PointLockRow(difference.name, *key, known.made_ns if known else now_ns, until_ns))
        return rows

    def _apply(self, changes: Iterable[Changes]) -> None:
        """What storage keeps in the catalogue about the files that are committed."""
        for each in changes:
            self._copy.catalogue.remove(*each.remove)
            self._copy.catalogue.put(*each.put)

    def _damage_of(self, row: SegmentRow) -> list[DamageRow]:
        """What of a segment of the copy cannot be read."""
        now_ns = self._copy.clock.now_ns()
        whole = DamageRow(*row[:3], WHOLE_SEGMENT, row.first_sequence, now_ns, _MISSING)
        try:
            self._copy.storage.open(segment_name(*row[:4])).close()
        except FileNotFoundError:
            return [whole]
        return list(segment_damage(self._copy, row, ScrubReport(), lambda: None))

    def _follow(self, name: str, difference: Difference, report: PassReport) -> None:
        """Let what compaction has replaced or removed follow, unless somebody here reads what is no longer kept there.

        The transaction that took the points away is behind us: who takes a lease from now on does not see them.
        """
        if not difference.replaced and not difference.removed:
            return
        if self._roots(name) - set(difference.theirs.points):
            return
        if name not in self._has_manifest:
            self._write_manifest(name)
        stage = self._carry(difference.replaced, difference.mine, report)
        for row in difference.replaced:
            old = difference.mine.segments[row.branch, row.segment]
            if (row.branch, row.segment) not in stage.arrived:
                report.complete = False
                continue
            if row in stage.damaged:  # what we have is better
                self._carrier.let_go(row)
                self._copy.storage.delete(segment_name(*row[:4]))
                continue
            with self._copy.catalogue.transaction(name):
                self._require_copy()
                self._copy.catalogue.put(row)
                self._apply([stage.changes[segment_name(*row[:4])]])
            self._carrier.let_go(row)
            self._carrier.let_go(old)
            self._copy.storage.delete(segment_name(*old[:4]))
            self._copy.records.let_go(*row[:3])
        for row in difference.removed:
            self._carrier.let_go(row)
        remove_segments(self._copy, list(difference.removed), CompactionReport())
        for branch in difference.theirs.branches:
            clear_strays(self._copy, name, branch)

    def _heal(self, name: str, difference: Difference) -> None:
        """Copy anew, in one piece, what has become unreadable in the copy and is whole in the original; tried once."""
        damage = [row for row in self._copy.catalogue.damage(name) if row.reason != ERASED_REASON]
        healed: set[Key] = set()
        for key in sorted({(row.branch, row.segment) for row in damage}):
            theirs, mine = difference.theirs.segments.get(key), self._copy.catalogue.segment(name, *key)
            if theirs is None or mine is None or mine.state == OPEN or mine[:4] in self._tried:
                continue
            if theirs != mine._replace(dead_bytes=theirs.dead_bytes):
                continue
            self._tried.add(mine[:4])
            if (data := self._carrier.whole(theirs)) is not None:
                self._copy.storage.put(segment_name(*mine[:4]), data)
                healed.add(key)
        if healed:
            log.info("what was damaged in the copy is whole again", extra={"source": name, "segments": len(healed)})
            self._copy.records.forget_source(name)
            with self._copy.catalogue.transaction(name):
                self._copy.catalogue.remove(*(row for row in damage if (row.branch, row.segment) in healed))
            judge_points(self._copy, name)

    def _roots(self, name: str) -> set[Key]:
        """Points that are locked here, and positions that somebody here reads, or has grown a branch from."""
        leased = {(each.branch, each.sequence) for each in self._copy.locks.leased_positions() if each.source == name}
        local = [row for row in self._copy.catalogue.branches(name) if row.branch >= LOCAL_BRANCHES]
        points = {row.branch for row in self._copy.catalogue.points(name) if row.branch >= LOCAL_BRANCHES}
        now_ns = reading_ns(self._copy.catalogue, self._copy.clock)
        leased |= held(self._copy.catalogue, name, now_ns)
        alive = [row for row in local if not row.closed or row.branch in points]
        return {key for key in leased | {(row.parent, row.base_sequence) for row in alive} if key[0] < LOCAL_BRANCHES}

    def _branch_at(self, difference: Difference) -> Callable[[BranchRow, int], BranchRow]:
        """A branch's row at an earlier position, by what the copy's files say."""

        def at(branch: BranchRow, position: int) -> BranchRow:
            where = branch
            while position <= where.base_sequence and where.parent:
                where = difference.theirs.branches[where.parent]
            held = [
                row
                for row in difference.theirs.segments.values()
                if row.branch == where.branch and row.first_sequence <= position
            ]
            if not held:
                return branch._replace(durable_sequence=position, durable_epoch=bytes(16), durable_position=0)
            row = max(held, key=lambda row: row.segment)
            known = difference.mine.segments.get((row.branch, row.segment))
            row = known if known and known.last_sequence >= position else row
            reader = self._copy.storage.open(segment_name(*row[:4]))
            try:
                scan = SegmentScan(reader, self._copy.keys)
                scan.extend(reader, row.committed_length)
            finally:
                reader.close()
            index, number = scan.index(), position - row.first_sequence
            mark = index.mark(number) if number < index.record_count else Mark()
            return branch._replace(
                durable_sequence=position,
                durable_epoch=mark.epoch,
                durable_position=mark.position,
                geometry=pack_geometry(index.geometry_at(number + 1)),
            )

        return at

    def _copy_keyrings(self, names: Iterable[str]) -> None:
        """Durable before any segment that names their keys."""
        if not self._origin.keys.is_encrypted:
            return
        for name in (STORE_KEYS, *(f"{KEYS}/{source}" for source in names)):
            theirs = content(self._origin.storage, name)
            if theirs is None or theirs == content(self._copy.storage, name):
                continue
            if not self._forgets_locked(name.removeprefix(f"{KEYS}/")):
                self._copy.storage.put(name, theirs)

    def _forgets_locked(self, source: str) -> bool:
        """Whether an original's keyring lacks keys that points need which are locked here."""
        now_ns = reading_ns(self._copy.catalogue, self._copy.clock)
        if not held(self._copy.catalogue, source, now_ns):
            return False
        theirs = {key.id for key in self._origin.keys.reread(source).keys if not key.erased_ns}
        lost = any(key.id not in theirs for key in self._copy.keys.reread(source).keys if not key.erased_ns)
        if lost:
            log.error("keys of locked points were forgotten in the original; the copy keeps them: %s", source)
        return lost

    def _require_copy(self) -> None:
        if copy_row(self._copy.catalogue) is None:
            raise DrengineError(MIRROR_PARTED, f"{self._copy.directory} has become a store of its own")

    def _require_decided(self, name: str, lineage: int, difference: Difference) -> None:
        """What is gone from an original was decided there, unless its catalogue was rebuilt since.

        Raises:
            DrengineError: ORIGIN_REBUILT; MIRROR_PARTED.
        """
        theirs, mine = difference.theirs, difference.mine
        if mine.source and theirs.source and mine.source.generation > theirs.source.generation:
            raise DrengineError(MIRROR_PARTED, f"{name!r} was promoted in {self._copy.directory}, not in the original")
        noted = self._copy.catalogue.mirrored().get(name)
        if noted is None or noted.lineage in (0, lineage) or self._options.accept_rebuilt:
            return
        lost = set(mine.points) - set(theirs.points)
        back = [
            number
            for number, row in mine.branches.items()
            if number not in theirs.branches or theirs.branches[number].durable_sequence < row.durable_sequence
        ]
        if lost or back:
            raise DrengineError(
                ORIGIN_REBUILT, f"{self._origin.directory} was rebuilt, and lacks {len(lost)} points of {name!r}"
            )

    def _is_note_due(self, row: MirrorRow) -> bool:
        return row.as_of_ns - self._noted_ns.get(row.source, 0) >= _NOTE_SECONDS * 1_000_000_000

    def _note_complete(self, as_of_ns: int) -> None:
        """Note that the copy as a whole is complete as of a moment."""
        self.lags = {name: Lag(max(lag.as_of_ns, as_of_ns), lag.bytes) for name, lag in self.lags.items()}
        row = MirrorRow(WHOLE, COPY, str(self._origin.directory), self._origin.catalogue.epoch().lineage, as_of_ns)
        if self._is_note_due(row):
            delete_decided(self._copy)
            if self._copy.catalogue.clocks() or self._origin.catalogue.clocks():
                advance(self._copy.catalogue, self._copy.clock)
            with self._copy.catalogue.transaction():
                self._require_copy()
                self._copy.catalogue.put(row)
            self._noted_ns[WHOLE] = as_of_ns

    def _write_manifest(self, name: str) -> None:
        write_manifest(self._copy, name)
        self._has_manifest.add(name)


def _is_structural(difference: Difference, put: list[object]) -> bool:
    """Whether a rebuild of the copy could not know it from the segments."""
    if difference.mine.source != difference.theirs.source:
        return True
    known = difference.mine.branches
    return any(
        isinstance(row, BranchRow) and (row.branch not in known or row.closed != known[row.branch].closed)
        for row in put
    )
