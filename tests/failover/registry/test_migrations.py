"""Registries of every older version become one of the newest: whole, once, and with every row that they had.

`samples/` holds what programs of those versions wrote, as SQL.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, inspect, text

from drengine.failover.registry import Registry
from drengine.failover.registry.database import Database
from drengine.failover.registry.migrations import LEGACY_TABLE, NEWEST, VERSION_TABLE, VERSIONS
from drengine.failover.registry.tables import metadata
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.failover.registry.rig import run_named
from tests.postgres import Postgres

SAMPLES = Path(__file__).parent / "samples"
OLDER = ("0001", "0002")
COUNTS = frozenset({VERSION_TABLE, LEGACY_TABLE})
both = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
each_older = pytest.mark.parametrize("version", OLDER)

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@pytest.fixture
def old(url: str, kind: str, version: str, request: pytest.FixtureRequest) -> str:
    """URL of a registry as a program of that version left it."""
    statements = (SAMPLES / f"{version}.{kind}.sql").read_text()
    if kind == "sqlite":
        with sqlite3.connect(url) as connection:
            connection.executescript(statements)
        connection.close()
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        postgres.server.load(url.partition("?")[0].rpartition("/")[2], statements)
    return url


def opened(url: str) -> Registry:
    return Registry.open(url, clock=SystemClock())


def rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Everything that the database holds, but for the counts of versions."""
    return {
        name: sorted(
            (dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()),
            key=lambda row: str(sorted(row.items())),
        )
        for name in inspect(connection).get_table_names()
        if name not in COUNTS
    }


def looked_at(url: str, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """What is there, with nothing migrated."""
    with monkeypatch.context() as patched:
        patched.setattr(Database, "_migrate", lambda _: None)
        read = Database(url, SystemClock())
    with read.reading() as connection:
        found = rows(connection)
    read.close()
    return found


def kept(before: Rows, after: Rows) -> None:
    """Every row of every old table is there with its values, and none else."""
    assert set(before) <= set(after)
    for table, had in before.items():
        columns = set(had[0]) if had else set()
        now = [{name: row[name] for name in columns} for row in after[table]]
        assert sorted(now, key=str) == sorted(({name: row[name] for name in columns} for row in had), key=str), table


@both
@each_older
def test_an_older_registry_is_taken_in_without_losing_a_row(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = looked_at(old, monkeypatch)
    assert len(before["journal"]) == 6
    registry = opened(old)
    with registry._database.reading() as connection:
        kept(before, rows(connection))
    assert [run.id for run in registry.runs(unfinished=True)] == ["r2"]
    assert registry.requests("r1")[0].note == "looks fine"
    assert registry.runbook("shop", "v1").text.startswith("version: 1 # ü ☃")
    with pytest.raises(DrengineError, match="held by the unfinished run r2"):
        registry.create_run(run_named("r3", "shop"))
    assert registry.acquire_lease("run:r1", "me", 10).token == 4, "tokens go on where they were"
    registry.close()
    opened(old).close()


@both
@pytest.mark.parametrize("version", ["none", *OLDER])
def test_the_tables_are_those_that_the_program_describes(
    url: str, version: str, request: pytest.FixtureRequest
) -> None:
    opened(url if version == "none" else request.getfixturevalue("old")).close()
    read = Database(url, SystemClock())
    with read.reading() as connection:
        options = {"compare_type": True, "include_name": lambda name, kind, _: kind != "table" or name not in COUNTS}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all() == [NEWEST]
        counted = connection.execute(text(f"SELECT version FROM {LEGACY_TABLE}")).scalars().all()
        assert counted == [3], "programs that count refuse this as newer than theirs"
    read.close()


@both
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ((f"UPDATE {VERSION_TABLE} SET version_num = '0099'",), "0099"),
        ((f"DROP TABLE {VERSION_TABLE}", f"UPDATE {LEGACY_TABLE} SET version = 99"), "99"),
    ],
)
def test_a_registry_of_a_newer_program_is_refused_and_left_alone(
    url: str, changes: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = opened(url)
    with registry._database.writing() as connection:
        for change in changes:
            connection.execute(text(change))
    registry.close()
    before = looked_at(url, monkeypatch)
    with pytest.raises(DrengineError, match=f"has version {told}, this program knows up to {NEWEST}") as refused:
        opened(url)
    assert "newer" in refused.value.hint
    assert looked_at(url, monkeypatch) == before


@both
@each_older
def test_of_many_who_open_an_older_registry_at_once_one_migrates_it(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = looked_at(old, monkeypatch)
    failures: list[Exception] = []

    def use(number: int) -> None:
        try:
            registry = opened(old)
            registry.create_run(run_named(f"new{number}", f"s{number}"))
            registry.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails
            failures.append(error)

    threads = [Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    after = looked_at(old, monkeypatch)
    assert len(after["runs"]) == 6 + len(before["runs"])
    kept({"journal": before["journal"], "leases": before["leases"], "requests": before["requests"]}, after)


@both
@each_older
def test_a_kill_at_any_statement_leaves_the_old_version_or_the_new_one(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = looked_at(old, monkeypatch)
    killed, version = 0, ""
    while version != NEWEST:
        assert killed < 200
        ended = in_a_fork(partial(killed_at, old, killed))
        killed += ended
        after = looked_at(old, monkeypatch)
        kept(before, after)
        version = NEWEST if "told" in after else ""
        assert bool(ended) == (version != NEWEST)
        if version != NEWEST:
            assert set(after) == set(before), "half of a migration"
    assert killed > 10, "the migration has more statements than that"
    opened(old).close()


def killed_at(url: str, statement: int) -> None:
    """Open the registry, and kill this process as if by a power cut before it executes that statement."""
    left = statement

    @event.listens_for(Engine, "before_cursor_execute")
    def count(*_: object) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    opened(url).close()


def in_a_fork(work: Callable[[], object]) -> bool:
    """Whether a process that does the work was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_the_newest_version_is_the_one_that_the_modules_lead_to() -> None:
    script = ScriptDirectory(VERSIONS.parent, version_locations=[VERSIONS])
    assert script.get_heads() == [NEWEST]
    assert [each.revision for each in script.walk_revisions()][::-1] == [*OLDER, NEWEST]


def test_an_up_to_date_registry_is_opened_without_a_lock(tmp_path: Path) -> None:
    opened(str(tmp_path / "r")).close()
    with sqlite3.connect(tmp_path / "r", isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        opened(str(tmp_path / "r")).close()
    writer.close()
