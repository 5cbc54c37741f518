"""SQL of the catalogue, and its values: a text of PostgreSQL holds no NUL, and ours may."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import xxhash

from drengine.store.catalogue.postgres.migrations import VERSION_TABLE
from drengine.store.catalogue.postgres.partitions import TABLE, Partition
from drengine.store.catalogue.rows import TABLE_OF, Table, Tables, row_checksum

Order = tuple[str, tuple[Any, ...]]
"""A statement, and its values."""
_TOGETHER_MAX = 16

PARTITIONS = Table(TABLE, Partition, 1)
KEPT = tuple(table for table in TABLE_OF.values() if table not in (Tables.EPOCH, Tables.HEAD))
"""The tables of rows; epoch and head are in the partitions here."""
_COLUMNS = {table.name: ", ".join((*table.fields, "checksum")) for table in (*KEPT, PARTITIONS)}
SELECT_PARTITION = f"SELECT {_COLUMNS[TABLE]} FROM {TABLE} WHERE source = %s"
_GUARDS = f"(SELECT version_num FROM {VERSION_TABLE}), (SELECT token FROM lock WHERE name = %s)"
BEGIN_SOURCE = f"SELECT {_GUARDS}, {_COLUMNS[TABLE]} FROM (SELECT) AS one LEFT JOIN {TABLE} ON source = %s"
"""The schema's version, a lock's token, and a partition, at the begin of its transaction."""
BEGIN_STORE = f"SELECT {_GUARDS}, {_COLUMNS[TABLE]} FROM (SELECT) AS one LEFT JOIN {TABLE} ON true"
SELECT_PARTITIONS = f"SELECT {_COLUMNS[TABLE]} FROM {TABLE}"
SELECT_VERSION = f"SELECT version_num FROM {VERSION_TABLE}"
LOCK_SOURCE = "SELECT pg_advisory_xact_lock_shared(%s), pg_advisory_xact_lock(%s)"
LOCK_STORE = "SELECT pg_advisory_xact_lock(%s)"
END_SILENT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory' "
    "AND objsubid = 1 AND granted AND ((classid::bigint << 32) | objid::bigint) = ANY(%s) "
    "AND wait_event_type = 'Client' AND state_change < clock_timestamp() - %s * interval '1 second'"
)
"""Ends the sessions that have these advisory locks, and whose clients have been silent for so long."""
STORE_LOCK = 0x6472656E67696E67


def source_lock(source: str) -> int:
    """The number of the advisory lock of a partition's transactions."""
    number = xxhash.xxh3_64_intdigest(b"drengine partition\n" + source.encode())
    return number - (1 << 64) if number >> 63 else number


@lru_cache(maxsize=256)
def select(table: str, where: str) -> str:
    """Rows of a table, with their checksums; keys stand as ``?`` in `where`."""
    return f"SELECT {_COLUMNS[table]} FROM {table} {where.replace('?', '%s')}"


def _insert(table: Table) -> str:
    columns = (*table.fields, "checksum")
    others = ", ".join(f"{name} = excluded.{name}" for name in columns[table.keys :])
    keys = ", ".join(table.fields[: table.keys])
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))}) "
        f"ON CONFLICT ({keys}) DO UPDATE SET {others}"
    )


def _by_key(table: Table) -> str:
    return " AND ".join(f"{name} = %s" for name in table.fields[: table.keys])


INSERT = {table.name: _insert(table) for table in (*KEPT, PARTITIONS)}
DELETE = {table.name: f"DELETE FROM {table.name} WHERE {_by_key(table)}" for table in KEPT}
SELECT_OLD = {table.name: f"SELECT {_COLUMNS[table.name]} FROM {table.name} WHERE {_by_key(table)}" for table in KEPT}


def changes(rows: Iterable[tuple[Any, bool]]) -> list[Order]:
    """Orders that put (True) or remove rows, in their order; few: each costs a client more than its row does."""
    orders: list[Order] = []
    shapes: list[tuple[str, bool]] = []
    given: list[Any] = []
    seen: set[tuple[Any, ...]] = set()

    def close() -> None:
        if shapes:
            orders.append((_together(tuple(shapes)), tuple(given)))
            shapes.clear()
            given.clear()
            seen.clear()

    for row, put in rows:
        table = PARTITIONS if isinstance(row, Partition) else TABLE_OF[type(row)]
        key = (table.name, *row[: table.keys])
        if key in seen or len(shapes) == _TOGETHER_MAX:
            close()
        seen.add(key)
        shapes.append((table.name, put))
        given += encoded(row if put else row[: table.keys])
        if put:
            given.append(row_checksum(table.name, tuple(row)))
    close()
    return orders


@lru_cache(maxsize=256)
def _together(shapes: tuple[tuple[str, bool], ...]) -> str:
    """One statement that does all of this to different rows."""
    *before, last = [INSERT[table] if put else DELETE[table] for table, put in shapes]
    if not before:
        return last
    return "WITH " + ", ".join(f"c{number} AS ({each})" for number, each in enumerate(before)) + f" {last}"


def encoded(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values as PostgreSQL takes them: in a text, a backslash is doubled and a NUL becomes a backslash and a zero."""
    for value in values:
        if isinstance(value, str) and ("\\" in value or "\0" in value):
            return tuple(_encoded(each) if isinstance(each, str) else each for each in values)
    return values


def decoded(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """As they were before `encoded`."""
    return tuple(_decoded(value) if isinstance(value, str) and "\\" in value else value for value in values)


def _encoded(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\0", "\\0")


def _decoded(text: str) -> str:
    return "\\".join(part.replace("\\0", "\0") for part in text.split("\\\\"))
