"""The log of a branch: appending records to segments and committing them.

Order of a commit (rule 2, rule 3):

1. records are appended to the open segment;
2. every segment written since the last commit is synced; then its directory, if it is new;
3. ONE catalogue transaction checks the generation and moves the durable position, the segments'
   committed lengths and the new points together;
4. only then does `commit` return, and the caller may acknowledge.

Whatever lies in a segment behind its committed length is a torn tail: never read, never appended to.
Opening a writer therefore always starts a new segment.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from drengine.crypt.segment import Chain, SegmentCipher
from drengine.model.errors import BAD_EXTENTS, DrengineError
from drengine.model.extents import EXTENT, OFFSET_MAX, Batch, frames_fault
from drengine.model.points import Cut, Mark, RecoveryPoint, VolumeGeometry
from drengine.store.blobs import Appender, Changes
from drengine.store.catalogue.rows import CUT_OFF, OPEN, SEALED, BranchRow, PointRow, SegmentRow
from drengine.store.context import StoreContext
from drengine.store.damage import judge_points
from drengine.store.errors import FENCED, SEQUENCE_GAP, STORE_FULL, STORE_IO, os_errors
from drengine.store.log.cutback import cut_back
from drengine.store.names import segment_directory, segment_name
from drengine.store.rebuild.strays import abandon
from drengine.store.segments import format as codec
from drengine.store.segments.format import RecordType, Role, SegmentHeader

EPOCH_BYTES = 16
_NO_BATCH = Batch(b"")


@dataclass(frozen=True, slots=True)
class Durable:
    """The newest position of a branch that is on stable storage, and its mark."""

    sequence: int
    mark: Mark


@dataclass(frozen=True, slots=True)
class Committed(Durable):
    """What a commit made durable: the newest position, and the recovery points that became visible with it."""

    points: tuple[RecoveryPoint, ...]


class Appended(NamedTuple):
    """Where a record went."""

    segment: int
    record: int


@dataclass(slots=True)
class _Segment:
    """A segment being written."""

    header: SegmentHeader
    name: str
    appender: Appender
    length: int
    cipher: SegmentCipher | None
    chain: Chain | None
    is_new: bool = True
    sealed: bool = False
    synced: bool = False
    file_length: int = 0
    plain_bytes: int = 0
    extents: int = 0
    headers: list[bytes] = field(default_factory=list)
    tables: list[bytes] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    """What the syncs since the last commit would have it change in the catalogue."""

    def row(self) -> SegmentRow:
        return SegmentRow(
            source=self.header.source,
            branch=self.header.branch,
            segment=self.header.segment,
            revision=1,
            state=SEALED if self.sealed else OPEN,
            first_sequence=self.header.first_sequence,
            last_sequence=self.header.first_sequence + len(self.headers) - 1,
            committed_length=self.length,
            length=self.file_length if self.sealed else self.length,
            plain_bytes=self.plain_bytes,
            dead_bytes=0,
            seal=self.chain.tag if self.chain else b"",
        )


class BranchWriter:
    """The only writer of a branch. One thread at a time.

    Attributes:
        makes_layers: a commit that closed a segment makes the layers that this completes, before it returns.
    """

    def __init__(self, context: StoreContext, source: str, branch: int, generation: int) -> None:
        """Take the branch's lock, check the generation, and set aside what an earlier writer left unfinished.

        Raises:
            DrengineError: BRANCH_BUSY, FENCED, UNKNOWN_BRANCH, STORE_FULL, STORE_IO, STORE_READ_ONLY.
        """
        self.makes_layers = True
        self._context = context
        self._generation = generation
        self._lock = context.locks.branch(source, branch)
        self._failed: DrengineError | None = None
        self._segment: _Segment | None = None
        self._finished: list[_Segment] = []
        self._left: list[int] = []
        try:
            self._catalogue = context.catalogue.another()
            try:
                self._row = self._take_over(source, branch)
            except BaseException:
                self._catalogue.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._version = -1
        self._points: list[PointRow] = []
        self._revert()

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._row.source

    @property
    def branch(self) -> int:
        """Number of the branch."""
        return self._row.branch

    @property
    def generation(self) -> int:
        """The generation that this writer carries."""
        return self._generation

    @property
    def failed(self) -> DrengineError | None:
        """Why it is of no more use; None while it is."""
        return self._failed

    @property
    def durable(self) -> Durable:
        """What the last commit made durable."""
        return Durable(self._row.durable_sequence, self._row.mark)

    @property
    def appended_sequence(self) -> int:
        """Position of the newest record appended, durable or not."""
        return self._sequence

    @property
    def geometry(self) -> dict[int, VolumeGeometry]:
        """Volumes in force after the newest record appended."""
        return dict(self._geometry)

    def append_geometry(
        self, sequence: int, mark: Mark, volumes: tuple[VolumeGeometry, ...], *, generation: int
    ) -> Appended | None:
        """Append a declaration of all volumes; see `append_batch`."""
        if not self._accept(sequence, mark, generation):
            return None
        table = codec.pack_geometry(volumes)
        if len(table) > codec.GEOMETRY_BYTES_MAX or len({v.volume for v in volumes}) < len(volumes):
            raise DrengineError(BAD_EXTENTS, f"geometry {sequence}: too long, or a volume is declared twice")
        where = self._append(RecordType.GEOMETRY, sequence, mark, table)
        self._geometry = {volume.volume: volume for volume in volumes}
        return where

    def append_batch(self, sequence: int, mark: Mark, batch: Batch, *, generation: int) -> Appended | None:
        """Append a batch whose digests the caller has verified. None when it is a duplicate.

        Raises:
            DrengineError: FENCED; SEQUENCE_GAP; BAD_EXTENTS when the table breaks a rule (nothing is appended);
                STORE_FULL (the writer is back at the durable position and may be used again);
                STORE_IO (it is of no more use).
        """
        if not self._accept(sequence, mark, generation):
            return None
        sizes = {number: volume.size_bytes for number, volume in self._geometry.items()}
        if fault := frames_fault(batch.frames, len(batch.payload)):
            raise DrengineError(BAD_EXTENTS, f"batch {sequence}: {fault}")
        codec.check_table(batch.table, batch.frames, sizes)
        return self._append(RecordType.BATCH, sequence, mark, bytes(batch.table), batch)

    def append_cut(self, sequence: int, mark: Mark, cut: Cut, *, generation: int) -> Appended | None:
        """Append a recovery point; it becomes visible with the commit. See `append_batch`."""
        if not self._accept(sequence, mark, generation):
            return None
        if not 0 <= cut.time_ns <= OFFSET_MAX or len(cut.label.encode()) > codec.LABEL_BYTES_MAX:
            raise DrengineError(BAD_EXTENTS, f"cut {sequence}: its time is out of range or its label too long")
        now_ns = self._context.clock.now_ns()
        where = self._append(RecordType.CUT, sequence, mark, codec.pack_cut(cut), time_ns=now_ns)
        self._points.append(
            PointRow(
                source=self.source,
                branch=self.branch,
                sequence=sequence,
                time_ns=cut.time_ns,
                received_ns=now_ns,
                kind=cut.kind.value,
                label=cut.label,
                geometry=codec.pack_geometry(self._geometry.values()),
                verified_ns=0,
                damaged=0,
                pinned=0,
                note="",
            )
        )
        return where

    def commit(self, *, generation: int) -> Committed:
        """Make everything appended durable, or nothing of it (see the module's docstring).

        Raises:
            DrengineError: FENCED, STORE_FULL (back at the durable position), STORE_IO (of no more use).
        """
        if self._sequence == self._row.durable_sequence:
            self._check_generation(generation)
            return self._committed([])
        self._check_mine(generation)  # the transaction sees to the rest
        if self._segment and not self._context.storage.abilities.append:
            self._seal(self._segment)
        written = [*self._finished, *([self._segment] if self._segment else [])]
        with self._guarded():
            self._context.place.require()
            self._sync(written)
        row = self._row._replace(
            durable_sequence=self._sequence,
            durable_epoch=self._mark.epoch,
            durable_position=self._mark.position,
            geometry=codec.pack_geometry(self._geometry.values()),
        )
        points = self._points
        with self._guarded(ambiguous=True), self._transaction():
            self._require_writable()
            if points and self._catalogue.damage(self.source):
                # Until it is known whether they need it: see judge_points below.
                points = [point._replace(damaged=1) for point in points]
            self._catalogue.put(row, *points)
            self._put_segments(written)
            for number in self._left:
                left = self._catalogue.segment(self.source, self.branch, number)
                if left is not None:
                    self._catalogue.put(left._replace(state=CUT_OFF))
        self._row = row
        self._left = []
        self._points = []
        if any(point.damaged for point in points):
            points = judge_points(self._context, self.source, points)
        finished, self._finished = self._finished, []
        self._committed_segments(written)
        for part in finished if self.makes_layers else ():
            self._context.layers.segment_closed(self.source, self.branch, part.header.segment)
        return self._committed(points)

    def require_held(self) -> None:
        """Return while the branch's lock is held, as far as is known here; asks nobody, from any thread.

        Raises:
            DrengineError: LOCK_LOST.
        """
        self._lock.require()

    def require_current(self) -> None:
        """Whether this writer's generation still is the newest; cheap when nothing changed in the catalogue.

        Raises:
            DrengineError: FENCED, as the next append would.
        """
        self._check_generation(self._generation)

    def close(self) -> None:
        """Seal what is committed, forget what is not, release the branch. Never raises."""
        if self._lock is None:
            return
        try:
            if self._failed is None and self._sequence == self._row.durable_sequence:
                self._close_segment()
            else:
                self._abandon()
        except DrengineError:
            self._abandon()
        finally:
            self._catalogue.close()
            self._lock.release()
            self._failed = self._failed or DrengineError(STORE_IO, "the writer is closed")

    def _committed(self, points: list[PointRow]) -> Committed:
        return Committed(self._row.durable_sequence, self._row.mark, tuple(point.value() for point in points))

    def _take_over(self, source: str, branch: int) -> BranchRow:
        _, row = self._catalogue.require_writable(source, branch, self._generation)
        self._context.keys.require(self._catalogue, source)
        newest = max((part.segment for part in self._catalogue.segments(source, branch)), default=0)
        with os_errors("looking for what another host did not upload"):
            row = cut_back(self._context, self._catalogue, row, self._lock.fence)
        rows = self._catalogue.segments(source, branch)
        unfinished = [part._replace(state=CUT_OFF) for part in rows if part.state == OPEN]
        if unfinished:
            with self._catalogue.transaction(source, fence=self._lock.fence):
                self._catalogue.put(*unfinished)
        with os_errors("clearing unfinished segments"):
            # Nor is the number of a segment given out again that was just cut off.
            self._next_segment = max(newest + 1, abandon(self._context, self._catalogue, source, branch))
        return row

    def _revert(self) -> None:
        """Forget everything appended since the last commit."""
        self._sequence = self._row.durable_sequence
        self._mark = self._row.mark
        self._geometry = {volume.volume: volume for volume in codec.parse_geometry(self._row.geometry)}
        self._points = []

    def _accept(self, sequence: int, mark: Mark, generation: int) -> bool:
        """Whether this position is the next one (False: a duplicate)."""
        self._check_generation(generation)
        if len(mark.epoch) != EPOCH_BYTES or not 0 <= mark.position <= OFFSET_MAX:
            raise DrengineError(BAD_EXTENTS, f"position {sequence}: its mark is out of range")
        if sequence <= self._sequence:
            return False
        if sequence > self._sequence + 1:
            raise DrengineError(SEQUENCE_GAP, f"position {sequence} of {self.source!r} came after {self._sequence}")
        return True

    def _check_generation(self, generation: int) -> None:
        self._check_mine(generation)
        try:
            self._require_writable()
        except DrengineError as error:
            self._abandon()
            self._failed = error
            raise

    def _check_mine(self, generation: int) -> None:
        if self._failed:
            raise self._failed
        if generation != self._generation:
            raise DrengineError(FENCED, f"generation {generation} is not the writer's, {self._generation}")
        self._lock.require()

    def _require_writable(self) -> None:
        """Read the source's and the branch's rows, unless nobody else has committed anything since they were read."""
        version = self._catalogue.data_version()
        if version != self._version:
            self._catalogue.require_writable(self.source, self.branch, self._generation)
            self._version = version

    def _append(
        self,
        type: RecordType,
        sequence: int,
        mark: Mark,
        table: bytes,
        batch: Batch = _NO_BATCH,
        *,
        time_ns: int = 0,
    ) -> Appended:
        plain_length = batch.plain_length
        with self._guarded():
            part = self._segment or self._start_segment()
            number = len(part.headers)
            if part.cipher and type == RecordType.BATCH:
                frames, payload = part.cipher.seal_frames(number, batch.frames, batch.payload)
                table = part.cipher.turn_digests(number, table)
                batch = Batch(table, frames, payload)
            header, tables = codec.pack_record(
                part.header.salt,
                type=type,
                number=number,
                sequence=sequence,
                generation=self._generation,
                mark=mark,
                time_ns=time_ns or self._context.clock.now_ns(),
                table=table,
                frames=batch.frames,
                plain_length=plain_length,
                payload_length=len(batch.payload),
                chain=part.chain,
            )
            part.appender.append(header, tables, batch.payload)
        part.synced = False
        part.headers.append(header)
        part.tables.append(tables)
        part.length += len(header) + len(tables) + len(batch.payload)
        part.plain_bytes += plain_length
        part.extents += len(table) // EXTENT.size if type == RecordType.BATCH else 0
        self._sequence, self._mark = sequence, mark
        options = self._context.options
        if part.length >= options.segment_bytes_max or part.extents >= options.segment_extents_max:
            self._seal(part)
        return Appended(part.header.segment, number)

    def _start_segment(self) -> _Segment:
        # Whole before the next one begins: so only a branch's newest segment is ever torn by a crash, and a
        # rebuild can tell that from a loss.
        self._sync(self._finished)
        row = self._row
        header = SegmentHeader(
            store=self._context.identity,
            salt=secrets.randbits(64),
            source=row.source,
            branch=row.branch,
            segment=self._next_segment,
            revision=1,
            parent=row.parent,
            base_sequence=row.base_sequence,
            generation=self._generation,
            first_sequence=self._sequence + 1,
            mark=self._mark,
            created_ns=self._context.clock.now_ns(),
            role=Role[row.role.upper()],
            geometry=tuple(self._geometry.values()),
        )
        keys = self._context.keys
        keys.ensure(self._context.locks, self._catalogue, row.source, self._context.clock.now_ns())
        header = keys.sealed(header)
        cipher = keys.cipher(header)
        name = segment_name(row.source, row.branch, header.segment, 1)
        packed = header.pack()
        self._next_segment += 1
        appender = self._context.storage.create(name)
        chain = cipher.chain(packed) if cipher else None
        self._segment = _Segment(header, name, appender, len(packed), cipher, chain)
        appender.append(packed)
        return self._segment

    def _seal(self, part: _Segment) -> None:
        """Append index and footer; it becomes the sealed state with the next commit.

        The records are made durable first: where a seal is found after a crash, they are whole.
        """
        tail = codec.pack_seal(
            part.header.salt,
            part.headers,
            part.tables,
            part.length,
            part.header.first_sequence + len(part.headers) - 1,
        )
        with self._guarded():
            if self._context.storage.abilities.append:
                self._sync([part])
            part.appender.append(tail)
        part.synced = False
        part.sealed, part.file_length = True, part.length + len(tail)
        self._finished.append(part)
        self._segment = None

    def _close_segment(self) -> None:
        part = self._segment
        if part is None:
            return
        self._seal(part)
        with self._guarded():
            self._sync([part])
        with self._guarded(ambiguous=True), self._transaction():
            self._put_segments([part])
        self._finished = []
        self._committed_segments([part])
        self._context.layers.segment_closed(self.source, self.branch, part.header.segment)

    def _transaction(self) -> AbstractContextManager[None]:
        """One that counts only while the branch's lock is ours."""
        return self._catalogue.transaction(self.source, fence=self._lock.fence)

    def _put_segments(self, parts: list[_Segment]) -> None:
        for part in parts:
            for changes in part.changes:
                self._catalogue.remove(*changes.remove)
                self._catalogue.put(*changes.put)
            self._catalogue.put(part.row())

    def _committed_segments(self, parts: list[_Segment]) -> None:
        """The transaction that names what was synced is durable."""
        for part in parts:
            part.is_new = False
            part.changes.clear()
            if part.sealed:
                part.appender.close()

    def _sync(self, parts: list[_Segment]) -> None:
        """Make segments and their names durable; those that are already are left alone."""
        fresh = [part for part in parts if not part.synced]
        for part in fresh:
            part.changes.append(part.appender.sync())
        if any(part.is_new for part in fresh):
            self._context.storage.sync_dir(segment_directory(self.source, self.branch))
        for part in fresh:
            part.synced = True

    @contextmanager
    def _guarded(self, *, ambiguous: bool = False) -> Iterator[None]:
        """Any failure inside leaves the writer at its durable position; one that may not be retried ends it.

        `ambiguous`: the failed step may still come to light after a crash, so files it may name are kept.
        """
        try:
            with os_errors(f"writing branch {self.branch} of {self.source!r}"):
                yield
        except DrengineError as error:
            self._abandon(keep_files=ambiguous)
            if error.kind is not STORE_FULL:
                self._failed = error
            raise

    def _abandon(self, *, keep_files: bool = False) -> None:
        parts = [*self._finished, *([self._segment] if self._segment else [])]
        self._finished, self._segment = [], None
        for part in reversed(parts):
            with suppress(OSError, DrengineError):
                part.appender.close()
            if not part.is_new:
                self._left.append(part.header.segment)
            elif not keep_files:
                with suppress(OSError, DrengineError):
                    self._context.storage.delete(part.name)
        self._revert()
