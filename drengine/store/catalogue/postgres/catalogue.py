"""The catalogue in a PostgreSQL database.

A transaction takes advisory locks: shared for the store and exclusive for its source, or exclusive for the store. So
those of one source follow each other, and those of different sources run side by side. What it writes waits until it
reads again or ends; its begin and its end are one round trip each. What a pipeline found is fetched after its end:
a server that waits for the rest of one ends no session that is silent.

An ambiguous COMMIT (the connection broke before its answer) is resolved by looking: each commit leaves a random stamp
in its partition. What cannot be told is reported as an error: never as done.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from drengine.crypt.errors import KEY_NEEDED, STORE_TAMPERED
from drengine.model.errors import DrengineError
from drengine.store.catalogue.epoch import Epoch, EpochNote
from drengine.store.catalogue.interface import Catalogue, Fence
from drengine.store.catalogue.postgres import statements
from drengine.store.catalogue.postgres.database import Database
from drengine.store.catalogue.postgres.link import SCHEMA, Link
from drengine.store.catalogue.postgres.migrations import NEWEST
from drengine.store.catalogue.postgres.partitions import (
    ROOT,
    STAMP_BYTES,
    Partition,
    named,
    note_name,
    partition_of,
)
from drengine.store.catalogue.rows import TABLE_OF, HeadRow, Table, row_checksum
from drengine.store.catalogue.seal import Seal
from drengine.store.errors import (
    CATALOGUE_DAMAGED,
    CATALOGUE_UNAVAILABLE,
    LOCK_LOST,
    STORE_READ_ONLY,
    STORE_VERSION,
    UNKNOWN_SOURCE,
)

LOOK_SECONDS = 0.25
"""For so long what is known of other connections' commits outside of a transaction is taken for current."""
ERA = 1 << 32
"""A rebuild goes on with numbers greater by so much: no seat has noted greater ones."""
RESOLVE_SECONDS = 20.0
"""For so long the fate of a commit whose answer is missing is asked for."""
_RETRY_SECONDS = 0.2
_T = TypeVar("_T")
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresCatalogue(Catalogue):
    """One connection to the database, made again after it broke."""

    is_shared = True

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        read_only: bool = False,
        key: bytes = b"",
        is_writers: bool = False,
    ) -> None:
        """Nothing is asked of the server yet.

        Args:
            database: where it is, and of which store.
            directory: of this seat of the store: the epochs of what was committed here are noted in it.
            read_only: nothing may be changed.
            key: of its seal; empty: it has none, or `check` will say it.
            is_writers: it is for the writer of one source, to whom other sources are of no interest.
        """
        self._database = database
        self._directory = directory
        self._read_only = read_only
        self._key = key
        self._is_writers = is_writers
        self._seal = Seal(key) if key else None
        self._link: Link = database.link()
        self._lock = threading.RLock()
        self._pinned: psycopg.Connection[Any] | None = None
        """While a transaction or a snapshot is open: the connection that has it. No other will do."""
        self._scope: str | None = None
        """Of the transaction under way: the source that it may change; None: it may change all."""
        self._under_way = False
        self._before: dict[str, Partition] = {}
        """While a transaction is open: the partitions as it found them, locked."""
        self._pending: list[tuple[Any, bool]] = []
        """Rows that are to be put (True) or removed, in order."""
        self._changed: set[str] = set()
        self._sums: dict[str, int] = {}
        """While a transaction is open: by what it changes the sums of partitions."""
        self._known: dict[str, Epoch] = {}
        """The newest transactions that this connection has seen."""
        self._version = 0
        self._looked_at = 0.0
        self._seen: Any = None
        self._notes: dict[str, EpochNote] = {}

    def another(self) -> Catalogue:
        """See `Catalogue.another`."""
        return PostgresCatalogue(self._database, self._directory, key=self._key, is_writers=True)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._link.close()
            for note in self._notes.values():
                note.close()

    def check(self, key: bytes = b"", *, every_row: bool = True) -> None:
        """Check every partition; the rows, too, where they are sealed. In clear each is checked when it is read."""
        del every_row
        with self._lock:
            if key:
                self._key, self._seal = key, Seal(key)
            with self.snapshot():
                found = {each.source: each for each in self._partitions()}
                if ROOT not in found or len({each.lineage for each in found.values()}) != 1:
                    raise DrengineError(CATALOGUE_DAMAGED, "catalogue: its partitions are not those of one catalogue")
                for each in found.values():
                    self._require_current(each)
                if self._seal:
                    totals = self._totals(found)
                    for each in found.values():
                        head = HeadRow(1, each.sum, each.tag)
                        if self._seal.require(head, each.epoch, each.source) != totals[each.source]:
                            raise DrengineError(STORE_TAMPERED, "catalogue: its rows are not those that were sealed")

    @contextmanager
    def transaction(self, source: str | None = None, *, fence: Fence | None = None) -> Iterator[None]:
        """See `Catalogue.transaction`."""
        with self._lock:
            if self._under_way:
                if self._scope not in (None, source):
                    raise ValueError(f"a transaction of {self._scope!r} can't become one of {source!r}")
                yield
                return
            epochs: dict[str, Epoch] = {}
            try:
                self._begin(source, fence)
                self._under_way, self._scope = True, source
                yield
                epochs = self._commit()
            finally:
                self._end()
            for changed, epoch in epochs.items():
                self.note_epoch(epoch, changed)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See `Catalogue.snapshot`."""
        with self._lock:
            if self._pinned:
                yield
                return
            try:
                self._ask(lambda connection: connection.execute(_SNAPSHOT), pin=True)
                yield
            finally:
                self._leave()

    @contextmanager
    def remaking(self) -> Iterator[str]:
        """A transaction that begins with no rows, whatever they were; yields the schema in which those are kept aside.

        Its numbers are beyond all that any seat may have noted.
        """
        with self._lock:
            try:
                self._ask(_begin_alone, pin=True)
                found = [
                    Partition(*_checked(statements.PARTITIONS, row)) for row in self._rows(statements.SELECT_PARTITIONS)
                ]
                self._before = {each.source: each._replace(number=each.number + ERA, tag=b"") for each in found}
                self._changed = set(self._before)
                self._under_way, self._scope = True, None
                aside = self._ask(_set_rows_aside)
                yield aside
                epochs = self._commit()
            finally:
                self._end()
            for changed, epoch in epochs.items():
                self.note_epoch(epoch, changed, sync=True)

    def seal(self, key: bytes) -> None:
        """See `Catalogue.seal`."""
        with self.transaction():
            if self._seal and self._before[ROOT].tag:
                return
            self._flush()
            self._key, self._seal = key, Seal(key)
            self._changed |= self._before.keys()
            self._sums = self._totals(self._before)
            self._before = {name: each._replace(sum=b"", tag=b"") for name, each in self._before.items()}

    def head(self) -> HeadRow | None:
        """The seal of the store's own partition, which vouches for the others being there."""
        root = self._partition(ROOT)
        return HeadRow(1, root.sum, root.tag) if root.tag else None

    def epoch(self, source: str = "") -> Epoch:
        """The newest transaction of a source; without one, of what belongs to the store as a whole."""
        return self._partition(source).epoch

    def noted_epoch(self, source: str = "") -> Epoch | None:
        """The newest transaction of a partition that was committed at this seat."""
        with self._note(source) as note:
            return note.read()

    def note_epoch(self, epoch: Epoch, source: str = "", *, sync: bool = False) -> None:
        """Note it in this seat."""
        with self._note(source) as note:
            note.write(epoch, sync=sync)

    def data_version(self) -> int:
        """See `Catalogue.data_version`. Exact in a transaction; outside of one it looks four times a second."""
        with self._lock:
            if not self._under_way and time.monotonic() >= self._looked_at + LOOK_SECONDS:
                self._looked_at = time.monotonic()
                with suppress(DrengineError):  # the next transaction finds out for good
                    self._look()
            return self._version

    def put(self, *rows: Any) -> None:
        """Insert or replace rows of any kind, inside a transaction."""
        self._take(rows, put=True)

    def remove(self, *rows: Any) -> None:
        """Delete rows by their keys, inside a transaction."""
        self._take(rows, put=False)

    def _values(self, table: Table, where: str = "", *keys: Any) -> list[tuple[Any, ...]]:
        statement = statements.select(table.name, where)
        with self._lock:
            self._flush()
            found = self._rows(statement, statements.encoded(keys))
        return [_checked(table, values) for values in found]

    def _added_up(self, table: Table, sums: str, where: str, *keys: Any) -> tuple[int, ...]:
        """See `Catalogue._added_up`."""
        statement = f"SELECT {sums} FROM {table.name} {where.replace('?', '%s')}"
        with self._lock:
            self._flush()
            found = self._rows(statement, statements.encoded(keys))
        return tuple(int(value or 0) for value in found[0])

    def _take(self, rows: Iterable[Any], *, put: bool) -> None:
        with self._lock:
            if not self._under_way:
                raise ValueError("rows change in a transaction only")
            for row in rows:
                partition = partition_of(row)
                if self._scope not in (None, partition):
                    raise ValueError(f"a transaction of {self._scope!r} changes nothing of {partition!r}")
                if partition not in self._before:
                    self._begin_partition(partition)
                self._changed.add(partition)
                self._pending.append((row, put))

    def _begin_partition(self, name: str) -> None:
        if self._scope is not None:
            raise DrengineError(UNKNOWN_SOURCE, f"the store holds no source {name[:80]!r}")
        self._before[name] = Partition(name, self._before[ROOT].lineage, 0, b"")
        self._changed.add(ROOT)
        if self._seal:
            for worth in named([name]):
                self._sums[ROOT] = self._sums.get(ROOT, 0) ^ self._seal.worth(*worth)

    def _begin(self, source: str | None, fence: Fence | None) -> None:
        """Begin, and be alone: with the source, or with the store."""
        if self._read_only:
            raise DrengineError(STORE_READ_ONLY, "the catalogue was opened for reading only")
        if self._pinned:
            raise ValueError("a snapshot can't become a transaction")

        name = fence.name if fence else ""

        def begin(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
            with connection.pipeline():
                connection.execute("BEGIN")
                if source is None:
                    connection.execute(statements.LOCK_STORE, (statements.STORE_LOCK,))
                    found = _cursor(connection, statements.BEGIN_STORE, (name,))
                else:
                    locks = (statements.STORE_LOCK, statements.source_lock(source))
                    connection.execute(statements.LOCK_SOURCE, locks)
                    found = _cursor(connection, statements.BEGIN_SOURCE, (name, source))
            return found.fetchall()

        self._link.warnings.clear()
        found = self._ask(begin, pin=True)
        version, token = found[0][:2]
        if version != NEWEST:
            raise DrengineError(STORE_VERSION, f"the catalogue has version {version}, this program knows {NEWEST}")
        if fence and token != fence.token:
            raise DrengineError(LOCK_LOST, f"{fence.name} is somebody else's: its token {fence.token} counts no more")
        there = [Partition(*_checked(statements.PARTITIONS, row[2:])) for row in found if row[2] is not None]
        self._before = {each.source: each for each in there}
        self._judge(there, is_whole=source is None)

    def _judge(self, found: list[Partition], *, is_whole: bool) -> None:
        """At the begin of a transaction: whether it may build on what is there; and whether others were here."""
        for each in found:
            if self._known.get(each.source) == each.epoch:
                continue
            self._require_current(each)
            if self._seal:
                self._seal.require(HeadRow(1, each.sum, each.tag), each.epoch, each.source)
            elif each.tag:
                raise DrengineError(KEY_NEEDED, "the catalogue is sealed")
            self._known[each.source] = each.epoch
            self._version += 1
        if is_whole and ROOT not in self._before:
            raise DrengineError(CATALOGUE_DAMAGED, "catalogue: the partition of the store is missing")

    def _require_current(self, partition: Partition) -> None:
        """Return unless a later transaction, or another catalogue, is known at this seat.

        Raises:
            DrengineError: CATALOGUE_DAMAGED.
        """
        noted = self.noted_epoch(partition.source)
        what = f"source {partition.source!r}" if partition.source else "the store"
        if noted is not None and noted.lineage != partition.lineage:
            raise DrengineError(
                CATALOGUE_DAMAGED,
                "the catalogue is not the one that this seat knows: its database was made anew since",
                hint="If that was on purpose, join the store again, in an empty directory.",
            )
        if noted is not None and noted.number > partition.number:
            raise DrengineError(
                CATALOGUE_DAMAGED,
                f"the catalogue is older than the segments: for {what} it ends at transaction {partition.number}, and "
                f"{noted.number} was committed. PostgreSQL was put back to an earlier state, or failed over to a "
                "standby that lacked the newest transactions",
                hint="Stop the targets, then run `drengine rebuild` on the store: it is made anew from the segments.",
            )

    def _commit(self) -> dict[str, Epoch]:
        """End the transaction; the epochs that it began.

        Raises:
            DrengineError: CATALOGUE_UNAVAILABLE when it is not known whether it counts, or known that it does not.
        """
        if not self._changed:
            return {}
        self._sum_up()
        after = {name: self._sealed(self._before[name]) for name in self._changed}
        closing = [*self._pending, *((each, True) for each in after.values())]
        self._pending = []
        try:
            self._execute([*statements.changes(closing), ("COMMIT", ())])
        except DrengineError as error:
            if self._pinned and not self._pinned.closed:
                raise
            self._resolve(after, error)
        if self._link.warnings:
            raise DrengineError(CATALOGUE_UNAVAILABLE, f"catalogue: a commit went wrong: {self._link.warnings[0]}")
        epochs = {name: each.epoch for name, each in after.items()}
        self._known |= epochs
        return epochs

    def _resolve(self, after: dict[str, Partition], error: DrengineError) -> None:
        """Return when a commit whose answer is missing counts.

        The server may still be about to carry it out: its locks are waited for first.

        Raises:
            DrengineError: `error`: it does not count, or that cannot be told.
        """
        name, ours = next(iter(after.items()))

        def look(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
            with connection.pipeline():
                connection.execute("BEGIN")
                connection.execute(statements.LOCK_STORE, (statements.STORE_LOCK,))
                found = _cursor(connection, statements.SELECT_PARTITION, (name,))
            return found.fetchall()

        self._pinned = None
        until = time.monotonic() + RESOLVE_SECONDS
        while True:
            try:
                rows = self._ask(look, pin=True)
                break
            except DrengineError as again:
                if again.kind is not CATALOGUE_UNAVAILABLE or time.monotonic() > until:
                    raise DrengineError(
                        CATALOGUE_UNAVAILABLE, f"whether a transaction counts cannot be told: {again.message}"
                    ) from error
                time.sleep(_RETRY_SECONDS)
        if not rows or Partition(*_checked(statements.PARTITIONS, rows[0])).stamp != ours.stamp:
            raise error

    def _sealed(self, before: Partition) -> Partition:
        """A partition as the transaction leaves it."""
        after = before._replace(number=before.number + 1, stamp=secrets.token_bytes(STAMP_BYTES))
        if not self._seal:
            return after
        total = self._sums.get(before.source, 0)
        if before.tag:
            total ^= self._seal.require(HeadRow(1, before.sum, before.tag), before.epoch, before.source)
        head = self._seal.head(total, after.epoch, after.source)
        return after._replace(sum=head.sum, tag=head.tag)

    def _flush(self) -> None:
        """Carry out what waits."""
        if not self._pending:
            return
        self._sum_up()
        waiting, self._pending = self._pending, []
        self._execute(statements.changes(waiting))

    def _sum_up(self) -> None:
        """Reckon by what the rows that wait change the sums: that takes the rows that they replace."""
        if not self._seal or not self._pending:
            return
        keys = {(TABLE_OF[type(row)], tuple(row)[: TABLE_OF[type(row)].keys]) for row, _ in self._pending}

        def old(connection: psycopg.Connection[Any]) -> dict[Any, list[tuple[Any, ...]]]:
            with connection.pipeline():
                asked = {
                    key: _cursor(connection, statements.SELECT_OLD[key[0].name], statements.encoded(key[1]))
                    for key in keys
                }
            return {key: cursor.fetchall() for key, cursor in asked.items()}

        found = self._ask(old)
        now = {key: _checked(key[0], rows[0]) if rows else None for key, rows in found.items()}
        for row, put in self._pending:
            table, partition = TABLE_OF[type(row)], partition_of(row)
            key = (table, tuple(row)[: table.keys])
            change = self._sums.get(partition, 0)
            if (before := now[key]) is not None:
                change ^= self._seal.worth(table.name, before)
            now[key] = tuple(row) if put else None
            if put:
                change ^= self._seal.worth(table.name, tuple(row))
            self._sums[partition] = change

    def _totals(self, partitions: Iterable[str]) -> dict[str, int]:
        """The sums of all rows there are."""
        assert self._seal
        totals = dict.fromkeys(partitions, 0)
        for worth in named(totals):
            totals[ROOT] ^= self._seal.worth(*worth)
        for table in statements.KEPT:
            for values in self._values(table):
                partition = partition_of(table.row(*values))
                if partition not in totals:
                    raise DrengineError(STORE_TAMPERED, f"catalogue: a row of {table.name} belongs to no partition")
                totals[partition] ^= self._seal.worth(table.name, values)
        return totals

    def _partition(self, source: str) -> Partition:
        if self._under_way and source in self._before:
            return self._before[source]
        found = self._rows(statements.SELECT_PARTITION, (source,))
        if found:
            return Partition(*_checked(statements.PARTITIONS, found[0]))
        if source == ROOT:
            raise DrengineError(CATALOGUE_DAMAGED, "catalogue: the partition of the store is missing")
        return Partition(source, self._partition(ROOT).lineage, 0, b"")

    def _partitions(self) -> list[Partition]:
        found = self._rows(statements.SELECT_PARTITIONS)
        return [Partition(*_checked(statements.PARTITIONS, values)) for values in found]

    def _look(self) -> None:
        """Whether others have committed something since the last look."""
        if self._is_writers and len(self._known) == 1:
            ((source, epoch),) = self._known.items()
            seen: Any = self._partition(source).epoch
            if seen != epoch:
                self._known.clear()
                self._version += 1
            return
        seen = self._rows("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        if seen != self._seen:
            self._seen = seen
            self._version += 1

    @contextmanager
    def _note(self, source: str) -> Iterator[EpochNote]:
        """A partition's note; a writer's stays open."""
        found = self._notes.get(source) or EpochNote(self._directory, note_name(source))
        if self._is_writers:
            self._notes[source] = found
        try:
            yield found
        finally:
            if not self._is_writers:
                found.close()

    def _rows(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._ask(lambda connection: _cursor(connection, statement, values).fetchall())

    def _execute(self, orders: list[statements.Order]) -> None:
        """Carry out statements of the transaction that is open, in one round trip."""

        def execute(connection: psycopg.Connection[Any]) -> None:
            with connection.pipeline():
                for statement, values in orders:
                    connection.execute(statement, values)

        self._ask(execute)

    def _ask(self, ask: Callable[[psycopg.Connection[Any]], _T], *, pin: bool = False) -> _T:
        """Ask the server, in what is open or, where nothing is, by itself; once more if the connection was broken.

        `pin`: what is asked begins a transaction: from then on only its connection will do.
        """
        if self._pinned:
            if self._pinned.closed:
                raise DrengineError(CATALOGUE_UNAVAILABLE, "catalogue: the connection broke in a transaction")
            with self._link.errors():
                return ask(self._pinned)
        may_be_broken = self._link.is_open
        while True:
            connection = self._link.connection()
            try:
                if pin:
                    self._pinned = connection
                with self._link.errors():
                    return ask(connection)
            except DrengineError as error:
                if not may_be_broken or error.kind is not CATALOGUE_UNAVAILABLE:
                    raise
                may_be_broken = False

    def _end(self) -> None:
        """The transaction is over, however it ended."""
        self._leave()
        self._under_way, self._scope = False, None
        self._pending, self._changed, self._before, self._sums = [], set(), {}, {}

    def _leave(self) -> None:
        """Leave nothing open; a connection of which that cannot be known is given up."""
        connection, self._pinned = self._pinned, None
        if connection is None or connection.closed or connection.info.transaction_status == TransactionStatus.IDLE:
            return
        try:
            with self._link.errors():
                connection.execute("ROLLBACK")
        except DrengineError:
            self._link.drop()


def _begin_alone(connection: psycopg.Connection[Any]) -> None:
    connection.execute("BEGIN")
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.execute(statements.LOCK_STORE, (statements.STORE_LOCK,))


def _set_rows_aside(connection: psycopg.Connection[Any]) -> str:
    """Copy all rows to a schema that is new, then remove them; its name."""
    number = 1
    while connection.execute("SELECT to_regnamespace(%s)", (f"{SCHEMA}_damaged_{number}",)).fetchone() != (None,):
        number += 1
    aside = f"{SCHEMA}_damaged_{number}"
    connection.execute(f"CREATE SCHEMA {aside}")
    for table in (*statements.KEPT, statements.PARTITIONS):
        connection.execute(f"CREATE TABLE {aside}.{table.name} AS TABLE {table.name}")
    for table in statements.KEPT:
        connection.execute(f"DELETE FROM {table.name}")
    return aside


def _cursor(connection: psycopg.Connection[Any], statement: str, values: tuple[Any, ...] = ()) -> psycopg.Cursor[Any]:
    return connection.cursor(binary=True).execute(statement, values)


def _checked(table: Table, found: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row's values, if its checksum is theirs."""
    values = statements.decoded(found[:-1])
    if row_checksum(table.name, values) != found[-1]:
        raise DrengineError(CATALOGUE_DAMAGED, f"catalogue: a row of {table.name} fails its checksum")
    return values
