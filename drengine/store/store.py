"""The replica store: the one object that targets, commands and tests hold."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.durable import sync_directory
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.homes import Home
from drengine.model.inventory import Inventory
from drengine.model.names import check_name
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.ownership import make_directory
from drengine.store.blobs import Backlog, ObjectStorage, Storage
from drengine.store.blobs.available import LOCAL, StorageName, open_storage
from drengine.store.blobs.s3.options import S3Options
from drengine.store.care.compaction import CompactionReport, compact
from drengine.store.care.encryption import EncryptionStatus, encrypt_store, encryption_status, erase, rotate_key
from drengine.store.care.locking import lock_point, seconds_left
from drengine.store.care.looks import Looks
from drengine.store.care.objects import ObjectReport, compare_objects, uploaded_sequence
from drengine.store.care.reread import reread_newest
from drengine.store.care.retention import RetentionPolicy
from drengine.store.care.retire import Keeping, retain
from drengine.store.care.scrub import Progress, ScrubReport, VerifyReport, scrub, verify
from drengine.store.catalogue.opening import create_catalogue, finish_catalogue, shared_store
from drengine.store.catalogue.rows import BranchRow, MirrorRow, SourceRow
from drengine.store.context import StoreContext
from drengine.store.copies import LOCAL_BRANCHES, copy_row, part, require_own
from drengine.store.damage import DamagedRange, damage_row, damaged_ranges, record_damage
from drengine.store.errors import (
    CATALOGUE_FOREIGN,
    INVENTORY_UNKNOWN,
    STORE_EXISTS,
    STORE_FULL,
    STORE_READ_ONLY,
    TOO_MANY_SOURCES,
    UNKNOWN_POINT,
    UNKNOWN_SOURCE,
    os_errors,
)
from drengine.store.identity import StoreFile, read_store_file, write_store_file
from drengine.store.inventories import forget_inventory, keep_inventory, read_inventory
from drengine.store.locks import NOBODY, Holder, Lock, Position
from drengine.store.log.branches import Branches, BranchInfo
from drengine.store.log.changes import Spans, changed_since
from drengine.store.log.grants import Grants
from drengine.store.log.writable import WritableView
from drengine.store.log.writer import BranchWriter
from drengine.store.names import (
    SegmentPlace,
    segment_directory,
)
from drengine.store.opening import begin_storage, make_folders, open_context, readable_file
from drengine.store.options import StoreOptions
from drengine.store.rebuild.manifest import forget_manifests, write_manifest
from drengine.store.rebuild.rebuild import RebuildReport, finish_rebuild, join_place, rebuild_catalogue
from drengine.store.rebuild.strays import set_aside
from drengine.store.segments.format import parse_geometry
from drengine.store.stats import StoreStats, store_stats
from drengine.store.targets import Targets
from drengine.store.views.records import Address
from drengine.store.views.view import View


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A source server in the store: its newest generation and the branch that generation writes."""

    name: str
    generation: int
    active_branch: int


class Store:
    """An open replica store. Threads may share it; several processes may have it open.

    Attributes:
        grants: who may use its branches and points beyond the sources' own replication.
    """

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._branches = Branches(context)
        self.grants = Grants(context, self._require_writable)

    @staticmethod
    def create(
        path: Path | str,
        *,
        options: StoreOptions | None = None,
        clock: Clock | None = None,
        storage: Storage | None = None,
        stored_in: StorageName | None = None,
        storage_options: S3Options | None = None,
        catalogued_in: str = "",
        keks: KeyEncryptionKeys | None = None,
        identity: bytes | None = None,
        keyring: bytes | None = None,
    ) -> Store:
        """Make a store in an empty or missing directory and open it; encrypted, if there is a key-encryption key.

        `stored_in` names the storage that holds its segments, the directory itself by default; `catalogued_in` is the
        URL of the database of its catalogue, empty for SQLite in the directory; see `open` for others.
        A copy of a store takes that one's `identity`, and its own `keyring` where it is encrypted.

        Raises:
            DrengineError: STORAGE_UNAVAILABLE, STORE_EXISTS, STORE_READ_ONLY, STORE_FULL, STORE_IO; those of opening
                a database.
        """
        directory = Path(path)
        file = StoreFile(identity or secrets.token_bytes(16), stored_in or StorageName(), catalogued_in)
        if storage is None:  # what can't be opened is known before anything is made
            open_storage(file.storage, directory, options=storage_options).close()
        with os_errors(f"creating a store in {directory}"):
            make_directory(directory)
            make_folders(directory)
            create_catalogue(directory, file)
            sync_directory(directory)
            sync_directory(directory.parent)
        begin_storage(directory, file, storage, storage_options, keks, (clock or SystemClock()).now_ns(), keyring)
        finish_catalogue(file)
        # What is killed before this is no store, and what is one is encrypted if it was to be.
        write_store_file(directory, file)
        return Store.open(
            directory, options=options, clock=clock, storage=storage, storage_options=storage_options, keks=keks
        )

    @staticmethod
    def join(path: Path | str, catalogue: str) -> bytes:
        """Make an empty or missing directory a seat of a store that targets share; the store's identity.

        Raises:
            DrengineError: CATALOGUE_FOREIGN where the database has no store, or its segments lie in a directory of the
                host that made it; STORE_EXISTS, STORE_READ_ONLY, STORE_FULL, STORE_IO; those of opening a database.
        """
        directory = Path(path)
        file = shared_store(catalogue)
        if file is None:
            raise DrengineError(CATALOGUE_FOREIGN, "the database holds no store's catalogue")
        if file.storage.name == LOCAL:
            raise DrengineError(
                CATALOGUE_FOREIGN,
                f"the segments of store {file.identity.hex()} lie in a directory of the host that made it",
                hint="A store that hosts share keeps its segments in storage that all of them reach.",
            )
        with os_errors(f"joining a store in {directory}"):
            make_directory(directory)
            make_folders(directory)
            sync_directory(directory)
            sync_directory(directory.parent)
        write_store_file(directory, file)
        return file.identity

    @staticmethod
    def encrypt(
        path: Path | str,
        keks: KeyEncryptionKeys,
        *,
        options: StoreOptions | None = None,
        clock: Clock | None = None,
        storage: Storage | None = None,
        storage_options: S3Options | None = None,
    ) -> None:
        """Encrypt what is written to a store from now on, and seal its catalogue; compaction encrypts what is there.

        Nothing happens to a store that is encrypted; one whose encryption was interrupted is seen to.

        Raises:
            DrengineError: MAINTENANCE_BUSY, BRANCH_BUSY while somebody writes it; KEY_WRONG; STORE_FULL, STORE_IO.
        """
        context = open_context(path, keks, options, clock, storage, storage_options, may_be_in_clear=True)
        with Store(context) as store:
            encrypt_store(store.context)

    @staticmethod
    def open(
        path: Path | str,
        *,
        clock: Clock | None = None,
        options: StoreOptions | None = None,
        storage: Storage | None = None,
        storage_options: S3Options | None = None,
        read_only: bool | None = False,
        keks: KeyEncryptionKeys | None = None,
        checks_all: bool = True,
        holder: Holder = NOBODY,
    ) -> Store:
        """Open an existing store and check its catalogue.

        Args:
            path: its directory.
            clock: time source; the machine's by default.
            options: limits.
            storage: in place of the one that the STORE file names (for tests that make it fail).
            storage_options: [s3], where that storage is `s3`.
            read_only: change nothing, and manage without permission to write; None: only if this user may not write.
            keks: key-encryption keys, without which an encrypted store is not opened, nor one in clear with them.
            checks_all: False leaves it to each read of a catalogue in clear to check its rows: for looking at a large
                store in a hurry.
            holder: as whom this process holds locks of a store that targets share.

        Raises:
            DrengineError: NOT_A_STORE, STORE_VERSION, STORE_IDENTITY_DAMAGED, CATALOGUE_DAMAGED, STORE_READ_ONLY,
                STORAGE_UNAVAILABLE; KEY_NEEDED, KEY_WRONG, KEY_MISSING, STORE_TAMPERED, STORE_IN_CLEAR.
        """
        context = open_context(
            path,
            keks,
            options,
            clock,
            storage,
            storage_options,
            read_only=read_only,
            checks_all=checks_all,
            holder=holder,
        )
        return Store(context)

    @contextmanager
    def aside(self) -> Iterator[Store]:
        """The same store over a catalogue connection of its own, for work that nobody else is to wait for."""
        catalogue = self._context.catalogue.another()
        try:
            yield Store(replace(self._context, catalogue=catalogue))
        finally:
            catalogue.close()

    def close(self) -> None:
        """Close it; writers and views must have been closed before."""
        self._context.records.close()
        self._context.storage.close()
        self._context.locks.close()
        self._context.targets.close()
        self._context.catalogue.close()
        self._context.place.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_encrypted(self) -> bool:
        """Whether what is written is encrypted."""
        return self._context.keys.is_encrypted

    def rotate_key(self, source: str) -> str:
        """Give a source a new data key for what is written from now on; returns its id."""
        self._require_own("a new key is its business")
        return rotate_key(self._context, source)

    def rewrap_keys(self) -> int:
        """Encrypt every keyring under the newest key-encryption key; how many were not."""
        self._require_own("its keys are wrapped there")
        return self._context.keys.rewrap(self._context.locks)

    def erase(self, source: str) -> int:
        """Forget a source's data keys: nothing of it can be read ever again; how many there were.

        Raises:
            DrengineError: UNKNOWN_SOURCE, BRANCH_BUSY, MAINTENANCE_BUSY; STORE_IN_CLEAR when some of it is in clear.
        """
        self._require_own("erasing a source is its business")
        return erase(self._context, source)

    def encryption(self) -> EncryptionStatus:
        """How far the store is encrypted, and under which keys."""
        return encryption_status(self._context)

    @property
    def head(self) -> str:
        """What names the state of an encrypted store, for notes outside of it; empty for one in clear.

        Lineage, epoch and tag of the catalogue's seal, in that order: a store that later shows the same lineage with
        a lower epoch was put back to an earlier state.
        """
        head, epoch = self._context.catalogue.head(), self._context.catalogue.epoch()
        return f"{epoch.lineage:016x}-{epoch.number}-{head.tag.hex()}" if head else ""

    @property
    def context(self) -> StoreContext:
        """What the store's parts share (for the store's own tools and tests)."""
        return self._context

    @property
    def targets(self) -> Targets:
        """The targets that use it, where there may be several."""
        return self._context.targets

    def owner(self, source: str) -> Holder | None:
        """Who writes a source's active branch now; None: nobody, or there is no such source."""
        try:
            row = self._context.catalogue.source(source)
        except DrengineError as error:
            if error.kind is UNKNOWN_SOURCE:
                return None
            raise
        return self._context.locks.branch_holder(source, row.active_branch)

    @property
    def frame_cache_bytes(self) -> int:
        """Decoded frames in memory now; see StoreOptions."""
        return self._context.records.cached_bytes

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self._context.directory

    @property
    def identity(self) -> bytes:
        """16 bytes that name the store."""
        return self._context.identity

    def reread_newest(self, source: str) -> int:
        """Read a source's newest segments again, after its disk has failed; see reread.reread_newest."""
        return reread_newest(self._context, source)

    def sources(self) -> list[SourceInfo]:
        """All sources, by name."""
        return [SourceInfo(*row) for row in self._context.catalogue.sources()]

    def source(self, name: str) -> SourceInfo:
        """One source.

        Raises:
            DrengineError: UNKNOWN_SOURCE.
        """
        return SourceInfo(*self._context.catalogue.source(name))

    def ensure_source(self, name: str, *, generation: int = 1, sources_max: int = sys.maxsize) -> SourceInfo:
        """The source, made with its trunk (branch 1, under this generation) if it is new.

        A source that has been failed back comes to a new store under the generation that it has reached.

        Raises:
            DrengineError: BAD_NAME, STORE_READ_ONLY, STORE_FULL; TOO_MANY_SOURCES when it would be one more than that.
        """
        check_name(name, what="source")
        catalogue = self._context.catalogue
        if known := catalogue.known_source(name):
            return SourceInfo(*known)
        self._require_own(f"{name!r} is new to it")
        with catalogue.transaction():
            known = catalogue.known_source(name)
            if known is None:
                if (count := catalogue.source_count()) >= sources_max:
                    raise DrengineError(TOO_MANY_SOURCES, f"{name!r} is new, and {count} sources are known")
                known = SourceRow(name, generation, 1)
                trunk = BranchRow(
                    source=name,
                    branch=1,
                    parent=0,
                    base_sequence=0,
                    generation=generation,
                    role="trunk",
                    label="",
                    closed=0,
                    created_ns=self._context.clock.now_ns(),
                    superseded_ns=0,
                    durable_sequence=0,
                    durable_epoch=bytes(16),
                    durable_position=0,
                    geometry=b"",
                )
                catalogue.put(known, trunk)
        return SourceInfo(*known)

    def inventory(self, source: str) -> Inventory | None:
        """What a source is made of, as its agent told last; None: it never did.

        Raises:
            DrengineError: UNKNOWN_SOURCE; KEY_MISSING.
        """
        return read_inventory(self._context, source)

    def require_inventory(self, source: str) -> Inventory:
        """What a source is made of, for who asks for it by name.

        Raises:
            DrengineError: INVENTORY_UNKNOWN; as `inventory`.
        """
        found = self.inventory(source)
        if found is None:
            raise DrengineError(INVENTORY_UNKNOWN, f"the agent of {source!r} has not told what its server is made of")
        return found

    def keep_inventory(self, source: str, inventory: Inventory, *, generation: int) -> None:
        """Keep what a source is made of, durably, in place of what it told before.

        Raises:
            DrengineError: UNKNOWN_SOURCE; FENCED when a newer generation has taken over; as `Catalogue.transaction`.
        """
        self._require_writable()
        keep_inventory(self._context, source, inventory, generation)

    def branches(self, source: str) -> list[BranchInfo]:
        """All branches of a source, by number."""
        return self._branches.list(source)

    def home(self, source: str) -> Home:
        """Which agent ships the source; of a source that is not known here, its namesake.

        Nobody but a run's hand-back changes it, in the transaction that raises the generation.
        """
        try:
            return self._branches.home(source)
        except DrengineError as error:
            if error.kind is not UNKNOWN_SOURCE:
                raise
            return Home(source)

    def create_branch(self, point: RecoveryPoint, *, role: str = "drill", label: str = "") -> BranchInfo:
        """Grow a branch beside the history from a point, at once and without copying anything.

        `role`: ``drill``, whose data goes when it is closed; or ``divergent``, for what a source had written beyond
        the replica, which stays by the retention policy (rule 5).
        """
        self._require_writable()
        return self._branches.create(point, role=role, label=label)

    def promote(
        self,
        point: RecoveryPoint,
        *,
        expected_generation: int,
        label: str = "",
        permit: Callable[[], None] = lambda: None,
    ) -> BranchInfo:
        """Make a branch at a point the source's active one, under a new generation; of two promoters one wins.

        Args:
            point: where it grows from.
            expected_generation: the source's generation when this was decided.
            label: what the branch is called.
            permit: called inside the transaction; what it raises ends it and nothing is promoted (fault 60).

        Raises:
            DrengineError: FENCED when the source's generation is not `expected_generation`; UNKNOWN_POINT; DAMAGED.
        """
        self._require_writable()
        return self._branches.promote(point, expected_generation=expected_generation, label=label, permit=permit)

    def require_usable(self, *, free_bytes_min: int = 0) -> None:
        """Return when something could be written now, as far as can be told without writing.

        Raises:
            DrengineError: STORE_AWAY, STORE_READ_ONLY, STORE_FULL, STORE_IO, RESOURCES_EXHAUSTED.
        """
        self._require_writable()
        self._context.place.require_writable()
        self.require_room(free_bytes_min)

    def require_room(self, free_bytes_min: int) -> None:
        """Return when so much space is free, or it is unknown how much is.

        Raises:
            DrengineError: STORE_FULL, and as `require_usable`.
        """
        with os_errors("asking for free space"):
            free = self._context.storage.free_bytes()
        if free is not None and free < free_bytes_min:
            raise DrengineError(STORE_FULL, f"{free >> 20} MiB are free, {free_bytes_min >> 20} MiB are kept back")

    @property
    def copy_of(self) -> MirrorRow | None:
        """What is known of the original, while the store is a copy that a mirror keeps."""
        return copy_row(self._context.catalogue)

    def detach(self) -> bool:
        """Make a copy a store of its own, for good; whether it was a copy."""
        self._require_writable()
        with self._context.catalogue.transaction():
            was = self.copy_of is not None
            part(self._context.catalogue, self.directory)
        return was

    def settle(self) -> None:
        """Wait until no other process has a transaction of this store under way.

        A promotion that somebody began before is decided after this: it was committed, or will ask its `permit` again.

        Raises:
            DrengineError: MAINTENANCE_BUSY when it does not end.
        """
        self._require_writable()
        with self._context.catalogue.transaction():
            pass

    def close_branch(self, source: str, branch: int) -> None:
        """Let the branch take no more writes. A drill's data goes with the next retention, any other's by policy."""
        self._require_writable()
        if branch < LOCAL_BRANCHES:
            self._require_own(f"branch {branch} of {source!r} is its own")
        self._branches.close(source, branch)

    def pin(self, point: RecoveryPoint, note: str = "") -> None:
        """Keep a point whatever the retention policy says."""
        self._set_pin(point, 1, note)

    def unpin(self, point: RecoveryPoint) -> None:
        """Leave a point to the retention policy again."""
        self._set_pin(point, 0, "")

    def lock(self, point: RecoveryPoint, seconds: int) -> int:
        """Let nobody remove a point for so long; returns for how long it is locked now. See care/locking.py.

        Raises:
            DrengineError: UNKNOWN_POINT, BAD_LOCK.
        """
        self._require_own("points are locked there")
        left = lock_point(self._context, self._branches.kept(point), seconds)
        write_manifest(self._context, point.source)
        return left

    def locked_seconds(self, source: str) -> dict[str, int]:
        """By id, for how long points are locked."""
        left = seconds_left(self._context, source)
        return {f"{branch}-{sequence}": seconds for (branch, sequence), seconds in left.items()}

    def points(self, source: str, *, branch: int | None = None) -> list[RecoveryPoint]:
        """Recovery points, by branch and then oldest first.

        Raises:
            DrengineError: UNKNOWN_SOURCE.
        """
        self._context.catalogue.source(source)
        return [row.value() for row in self._context.catalogue.points(source, branch)]

    def newest_point(self, source: str) -> RecoveryPoint | None:
        """The newest point of a source's active branch, damaged or not.

        Raises:
            DrengineError: UNKNOWN_SOURCE.
        """
        catalogue = self._context.catalogue
        row = catalogue.newest_point(source, catalogue.source(source).active_branch)
        return row.value() if row else None

    def forget_empty(self, source: str) -> bool:
        """Forget a source that has never made anything durable; whether it was one.

        Raises:
            DrengineError: BRANCH_BUSY while it is written.
        """
        self._require_own("sources are forgotten there")
        catalogue = self._context.catalogue
        with self._context.locks.branch(source, 1) as lock:
            with catalogue.transaction():
                row = catalogue.known_source(source)
                branches = catalogue.branches(source)
                if row is None or [(each.branch, each.durable_sequence) for each in branches] != [(1, 0)]:
                    return False
                if catalogue.segments(source, 1) or self._context.storage.list(f"{segment_directory(source, 1)}/"):
                    return False
                catalogue.remove(row, *branches)
                forget_inventory(catalogue, source)
            forget_manifests(self._context, source)
            lock.remove()
        return True

    def find_point(self, source: str, selector: PointSelector) -> RecoveryPoint:
        """The point that a person asked for; without an id, the newest that fits, of the active branch and what it
        grew from, damaged ones passed over.

        Raises:
            DrengineError: UNKNOWN_SOURCE, UNKNOWN_POINT.
        """
        if selector.branch is not None and selector.sequence is not None:
            row = self._context.catalogue.point(source, selector.branch, selector.sequence)
            if row is None:
                raise DrengineError(UNKNOWN_POINT, f"{source!r} has no point {selector.branch}-{selector.sequence}")
            return row.value()
        for row in self._branches.ancestry_points(source):
            if not row.damaged and selector.fits(max(row.time_ns, row.received_ns), row.label):
                return row.value()
        if selector.label is not None:
            raise DrengineError(UNKNOWN_POINT, f"{source!r} has no undamaged point called {selector.label[:60]!r}")
        raise DrengineError(UNKNOWN_POINT, f"{source!r} has no undamaged point that fits")

    def writer(self, source: str, *, generation: int, branch: int | None = None) -> BranchWriter:
        """Become the writer of a branch (by default the active one).

        Raises:
            DrengineError: FENCED, BRANCH_BUSY, UNKNOWN_SOURCE, UNKNOWN_BRANCH.
        """
        self._require_writable()
        number = self._context.catalogue.source(source).active_branch if branch is None else branch
        if number < LOCAL_BRANCHES:
            self._require_own(f"branch {number} of {source!r} is written there")
        return BranchWriter(self._context, source, number, generation)

    def view(self, point: RecoveryPoint) -> View:
        """Open a point for reading; close the view when done.

        Raises:
            DrengineError: UNKNOWN_POINT when it is gone, DAMAGED when it cannot be read.
        """
        position = Position(point.source, point.branch, point.sequence)
        lease = self._lease(position)
        try:
            row = self._branches.kept(point)
            value = row.value()
            stack = self._context.layers.stack(position.source, position.branch, position.sequence, value.geometry)
            return View(
                self._context.records,
                position,
                value.geometry,
                stack,
                lease=lease,
                point=value,
                on_damage=self._on_damage,
            )
        except BaseException:
            if lease:
                lease.release()
            raise

    def head_view(self, source: str, branch: int | None = None) -> View:
        """Open everything durable on a branch (by default the active one), also what no cut covers yet."""
        catalogue = self._context.catalogue
        number = catalogue.source(source).active_branch if branch is None else branch
        while True:
            row = catalogue.branch(source, number)
            position = Position(source, number, row.durable_sequence)
            lease = self._lease(position)
            try:
                # A compaction that began before the lease may have dropped what only this position shows.
                if catalogue.branch(source, number).durable_sequence == row.durable_sequence:
                    geometry = parse_geometry(row.geometry)
                    stack = self._context.layers.stack(source, number, row.durable_sequence, geometry)
                    return View(
                        self._context.records,
                        position,
                        geometry,
                        stack,
                        lease=lease,
                        on_damage=self._on_damage,
                    )
            except BaseException:
                if lease:
                    lease.release()
                raise
            if lease:
                lease.release()

    def is_in_history(self, point: RecoveryPoint) -> bool:
        """Whether a point lies on the source's active branch or on what that one grew from."""
        return self._branches.is_in_history(point)

    def changed_since(self, point: RecoveryPoint, sequence: int) -> dict[int, Spans]:
        """Where a kept point may differ from an earlier position of its branch, by volume.

        Raises:
            DrengineError: UNKNOWN_POINT; OUT_OF_RANGE when the position is not on the branch, or the volumes changed
                in between; DAMAGED when it cannot be told.
        """
        return changed_since(self._context, self._branches.kept(point), sequence)

    def writable(self, source: str, branch: int, *, generation: int) -> WritableView:
        """Open a branch for reading and writing, as its only writer.

        Raises:
            DrengineError: FENCED, BRANCH_BUSY, UNKNOWN_BRANCH.
        """
        return WritableView(self._context, self.writer(source, generation=generation, branch=branch))

    def compact(
        self,
        *,
        bytes_max: int | None = None,
        yield_to: Callable[[], None] = lambda: None,
        looks: Looks | None = None,
    ) -> CompactionReport:
        """Give back the space of what can be seen no more; see compaction.compact."""
        self._require_writable()
        return compact(self._context, bytes_max=bytes_max, yield_to=yield_to, looks=looks)

    def retain(
        self, keeping: RetentionPolicy | Callable[[str], Keeping], now_ns: int, looks: Looks | None = None
    ) -> list[RecoveryPoint]:
        """Retire points by policy, one for all or one for each source, and return them; `compact` then gives back
        their space. See retire.retain.
        """
        self._require_writable()
        for_each = (lambda source: Keeping(keeping)) if isinstance(keeping, RetentionPolicy) else keeping
        return retain(self._context, for_each, now_ns, looks)

    def verify(self, point: RecoveryPoint, progress: Progress = lambda done, total: None) -> VerifyReport:
        """Read and hash again everything that a point shows, and note when, or that it is damaged.

        Raises:
            DrengineError: UNKNOWN_POINT; DAMAGED when not even its extents can be known.
        """
        with self.view(point) as view:
            return verify(self._context, view, progress)

    def scrub(
        self,
        progress: Progress = lambda done, total: None,
        *,
        yield_to: Callable[[], None] = lambda: None,
    ) -> ScrubReport:
        """Read and hash again everything stored; mark the points that need what is damaged; see `damaged_ranges`."""
        return scrub(self._context, progress, yield_to)

    def damaged_ranges(self, source: str) -> list[DamagedRange]:
        """What the source should send again: unreadable bytes at the head of its active branch."""
        self._context.catalogue.source(source)
        return damaged_ranges(self._context, source)

    def stats(self) -> StoreStats:
        """Sizes and counts, from the catalogue alone."""
        return store_stats(self._context)

    def written_branches(self) -> set[tuple[str, int]]:
        """Branches that a process writes now, by source and number."""
        return set(self._context.locks.branch_holders())

    def set_aside(self) -> list[SegmentPlace]:
        """Segment files that the catalogue does not name and that have no writer; see strays.py."""
        return set_aside(self._context)

    def compare_objects(self) -> ObjectReport:
        """Hold the catalogue against the object store; see objects.compare_objects."""
        return compare_objects(self._context)

    def uploaded_sequence(self, source: str, branch: int) -> int | None:
        """The newest position of a branch that the object store has whole; None where there is no object store."""
        return uploaded_sequence(self._context, source, branch)

    def upload_backlog(self) -> Backlog:
        """What this process has acknowledged and not uploaded yet; nothing where there is no object store."""
        storage = self._context.storage
        return storage.backlog() if isinstance(storage, ObjectStorage) else Backlog()

    @staticmethod
    def rebuild(
        path: Path | str,
        progress: Progress = lambda done, total: None,
        *,
        options: StoreOptions | None = None,
        clock: Clock | None = None,
        storage: Storage | None = None,
        storage_options: S3Options | None = None,
        stored_in: StorageName | None = None,
        keks: KeyEncryptionKeys | None = None,
    ) -> RebuildReport:
        """Make the catalogue anew from the segments and the newest manifests; the old one is kept aside.

        With `stored_in` the directory may be lost as well: it is made anew for the store that is there.

        Raises:
            DrengineError: NOT_A_STORE, STORE_VERSION, BRANCH_BUSY or MAINTENANCE_BUSY while somebody uses the store;
                OBJECT_STORE_TAKEN, STORE_EXISTS.
        """
        directory = Path(path)
        options, clock = options or StoreOptions(), clock or SystemClock()
        file = readable_file(directory)
        name = stored_in or (file.storage if file else StorageName())
        found = storage or open_storage(name, directory, options=storage_options)
        try:
            if stored_in:
                file = join_place(directory, StoreFile(b"", stored_in), found)
            report = rebuild_catalogue(directory, file, found, keks, clock, progress)
        finally:
            found.close()
        with Store(open_context(directory, keks, options, clock, storage, storage_options)) as store:
            finish_rebuild(store.context)
        return report

    @staticmethod
    def move(path: Path | str, stored_in: StorageName, storage_options: S3Options | None = None) -> None:
        """Note that a store's objects are at another place by now, which it must have claimed.

        Raises:
            DrengineError: NOT_A_STORE; STORE_EXISTS when it is a store of another kind; OBJECT_STORE_TAKEN and others.
        """
        directory = Path(path)
        file = read_store_file(directory)
        if file.storage.name != stored_in.name:
            raise DrengineError(STORE_EXISTS, f"{directory} keeps its data in storage {file.storage.name!r}")
        storage = open_storage(stored_in, directory, options=storage_options)
        try:
            join_place(directory, file._replace(storage=stored_in), storage)
        finally:
            storage.close()

    def _on_damage(self, address: Address, reason: str) -> None:
        with suppress(DrengineError):
            record_damage(self._context, [damage_row(self._context, address, reason)])

    def _lease(self, position: Position) -> Lock | None:
        self._context.place.require()
        try:
            return self._context.locks.lease(position)
        except DrengineError as error:
            # Where nothing can be written nothing is compacted; on a full disk reading matters more. Without a lease,
            # data that compaction takes away meanwhile is refused, never replaced by something else.
            if error.kind is STORE_FULL or (self._context.read_only and error.kind is STORE_READ_ONLY):
                return None
            raise

    def _set_pin(self, point: RecoveryPoint, pinned: int, note: str) -> None:
        self._require_own("points are pinned there")
        catalogue = self._context.catalogue
        with catalogue.transaction(point.source):
            row = self._branches.kept(point)
            catalogue.put(row._replace(pinned=pinned, note=note))
        write_manifest(self._context, point.source)

    def _require_own(self, doing: str) -> None:
        self._require_writable()
        require_own(self._context.catalogue, doing)

    def _require_writable(self) -> None:
        if self._context.read_only:
            raise DrengineError(STORE_READ_ONLY, f"{self._context.directory} was opened for reading only")
        self._context.place.require()
