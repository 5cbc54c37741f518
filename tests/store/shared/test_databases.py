"""Databases that are not what they should be: each one clear error, nothing changed; and those of older versions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import psycopg
import pytest

from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.blobs.available import StorageName
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.opening import create_catalogue, finish_catalogue, open_catalogue
from drengine.store.catalogue.postgres import link, statements
from drengine.store.catalogue.postgres.migrations import NEWEST
from drengine.store.catalogue.postgres.migrations.migrate import migrate
from drengine.store.errors import (
    CATALOGUE_DAMAGED,
    CATALOGUE_FOREIGN,
    CATALOGUE_REFUSED,
    CATALOGUE_UNAVAILABLE,
    CATALOGUE_UNSUITABLE,
    CATALOGUE_URL,
    STORE_EXISTS,
    STORE_FULL,
    STORE_READ_ONLY,
    STORE_VERSION,
)
from drengine.store.identity import IDENTITY_NAME, StoreFile, write_store_file
from drengine.store.names import NOTES
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.postgres import Postgres
from tests.store.harness import KEKS, TINY, Source


def raises(kind: ErrorKind, match: str = "") -> pytest.RaisesExc[DrengineError]:
    return pytest.RaisesExc(DrengineError, match=match or None, check=lambda error: error.kind is kind)


def run(url: str, *orders: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c search_path=drengine_catalogue") as connection:
        for order in orders:
            connection.execute(order)


def database_of(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh_database()


@pytest.fixture
def path(url: str, tmp_path: Path) -> Path:
    """A store with one point."""
    path = tmp_path / "store"
    with Store.create(path, options=TINY, clock=ManualClock(), catalogued_in=url) as store:
        source = Source(store, data=50_000)
        source.write_random(2)
        source.cut()
        source.commit()
        source.writer.close()
    return path


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("mysql://x/y", CATALOGUE_URL),
        ("postgresql://u:secret@127.0.0.1/db", CATALOGUE_URL),
        ("postgresql://127.0.0.1/db?password=secret", CATALOGUE_URL),
        ("postgresql://127.0.0.1/db?sslpassword=secret", CATALOGUE_URL),
        ("postgresql://127.0.0.1/db?options=-cfsync%3Doff", CATALOGUE_URL),
        ("postgresql://127.0.0.1/db?secret=1", CATALOGUE_URL),
        ("postgresql://[secret", CATALOGUE_URL),
        ("postgresql://127.0.0.1", CATALOGUE_URL),
        ("postgresql://\0", CATALOGUE_URL),
        ("postgresql://u@127.0.0.1:1/db", CATALOGUE_UNAVAILABLE),
        ("postgresql://u@/db?host=/nowhere", CATALOGUE_UNAVAILABLE),
    ],
)
def test_a_url_that_leads_nowhere_is_told_without_what_it_may_hide(tmp_path: Path, url: str, kind: ErrorKind) -> None:
    for act in (
        lambda: Store.create(tmp_path / "store", catalogued_in=url),
        lambda: Store.join(tmp_path / "seat", url),
    ):
        with raises(kind) as refused:
            act()
        assert "secret" not in f"{refused.value} {refused.value.hint}"
    assert not (tmp_path / "store" / IDENTITY_NAME).exists()
    assert not (tmp_path / "seat" / IDENTITY_NAME).exists()


def test_a_database_that_is_not_there_and_a_user_who_may_not_come_in(postgres: Postgres, tmp_path: Path) -> None:
    with raises(CATALOGUE_REFUSED):
        Store.create(tmp_path / "store", catalogued_in=postgres.url("nowhere"))
    with raises(CATALOGUE_REFUSED):
        Store.join(tmp_path / "seat", postgres.url(postgres.database()).replace("postgres@", "nobody@"))


def test_two_stores_in_one_database_are_refused(url: str, path: Path, tmp_path: Path) -> None:
    with raises(STORE_EXISTS) as refused:
        Store.create(tmp_path / "other", catalogued_in=url)
    assert "drengine store join" in refused.value.hint
    Store.open(path).close()


def test_the_database_of_another_store_is_refused(postgres: Postgres, path: Path, tmp_path: Path) -> None:
    other, empty = postgres.fresh_database(), postgres.fresh_database()
    Store.create(tmp_path / "other", catalogued_in=other).close()
    for wrong in (other, empty):
        write_store_file(path, StoreFile(bytes(range(16)), catalogue=wrong))
        with raises(CATALOGUE_FOREIGN):
            Store.open(path)
    with raises(CATALOGUE_FOREIGN):
        Store.join(tmp_path / "seat", empty)


def test_a_store_whose_segments_lie_in_a_directory_is_not_joined(url: str, path: Path, tmp_path: Path) -> None:
    assert path.exists()
    with raises(CATALOGUE_FOREIGN, "lie in a directory"):
        Store.join(tmp_path / "seat", url)


def test_a_seat_is_made_of_what_the_database_says(url: str, tmp_path: Path) -> None:
    file = StoreFile(bytes(range(16)), StorageName("rows", "somewhere"), url)
    (tmp_path / NOTES).mkdir()
    create_catalogue(tmp_path, file)
    with raises(CATALOGUE_FOREIGN):
        Store.join(tmp_path / "seat", url)  # it is not made yet
    finish_catalogue(file)
    assert Store.join(tmp_path / "seat", url) == file.identity
    with raises(STORE_EXISTS):
        Store.join(tmp_path / "seat", url)
    with raises(STORE_EXISTS):
        create_catalogue(tmp_path, file)


@pytest.mark.parametrize("keks", [None, KEKS])
def test_a_store_whose_making_was_interrupted_is_made_again(url: str, tmp_path: Path, keks: object) -> None:
    (tmp_path / NOTES).mkdir()
    create_catalogue(tmp_path, StoreFile(bytes(16), catalogue=url))
    with Store.create(tmp_path / "store", catalogued_in=url, keks=KEKS if keks else None) as store:
        assert store.sources() == []


def test_a_server_that_is_too_old_or_would_lose_commits_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(link, "SERVER_VERSION_MIN", 99_00_00)
        with raises(CATALOGUE_UNSUITABLE, "too old"):
            Store.open(path)
    with Postgres("fsync=off") as server, raises(CATALOGUE_UNSUITABLE, "fsync"):
        Store.create(path.parent / "other", catalogued_in=server.fresh_database())


def test_a_database_of_another_encoding_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    postgres.server.ask("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with raises(CATALOGUE_UNSUITABLE, "LATIN1"):
        Store.create(tmp_path / "store", catalogued_in=postgres.url("latin"))


def test_commits_are_durable_whatever_the_database_says_by_default(url: str, path: Path) -> None:
    name = database_of(url)
    run(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    with Store.open(path) as store:
        assert asked(store.context.catalogue, "SELECT current_setting('synchronous_commit')") == "on"


def asked(catalogue: Catalogue, statement: str) -> object:
    return catalogue._rows(statement)[0][0]  # type: ignore[attr-defined]


def test_a_database_that_takes_no_changes_is_read(url: str, path: Path) -> None:
    name = database_of(url)
    run(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with Store.open(path, options=TINY, clock=ManualClock()) as store:
        assert len(store.points("web1")) == 1
        with raises(STORE_READ_ONLY, "read-only") as refused:
            store.writer("web1", generation=1)
        assert "target_session_attrs=read-write" in refused.value.hint
        with raises(STORE_READ_ONLY):
            store.pin(store.points("web1")[0])
    with Store.open(path, options=TINY, clock=ManualClock(), read_only=True) as store:
        store.view(store.points("web1")[0]).close()


def test_a_full_disk_under_postgresql_loses_nothing_and_goes_on_by_itself(url: str, path: Path) -> None:
    with Store.open(path, options=TINY, clock=ManualClock()) as store:
        source = Source(store)
        durable = source.writer.durable
        source.disk.reshape(tuple(source.writer.geometry.values()))
        source.write(1, 0, b"x" * 5000)
        run(
            url,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no space' "
            "USING ERRCODE = 'disk_full'; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON segment FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        with raises(STORE_FULL) as refused:
            source.writer.commit(generation=1)
        assert "PostgreSQL" in refused.value.hint
        assert source.writer.durable == durable
        run(url, "DROP TRIGGER full_disk ON segment")
        source.write(1, 0, b"y" * 5000)
        assert source.writer.commit(generation=1).sequence > durable.sequence
        source.writer.close()


def test_a_row_that_was_changed_behind_our_back_is_refused(url: str, path: Path) -> None:
    run(url, "UPDATE branch SET durable_sequence = durable_sequence + 1")
    with Store.open(path) as store, raises(CATALOGUE_DAMAGED, "checksum"):
        store.branches("web1")


@pytest.mark.parametrize(
    "order",
    [
        "UPDATE point SET label = 'x'",
        "DELETE FROM point",
        "DELETE FROM partition WHERE source = 'web1'",
        "DELETE FROM segment; DELETE FROM branch; DELETE FROM point; DELETE FROM source; "
        "DELETE FROM partition WHERE source = 'web1'",
        "UPDATE partition SET number = number - 1",
    ],
)
def test_an_encrypted_store_notices_what_is_missing_or_changed(url: str, tmp_path: Path, order: str) -> None:
    path = tmp_path / "store"
    with Store.create(path, options=TINY, clock=ManualClock(), catalogued_in=url, keks=KEKS) as store:
        source = Source(store, data=50_000)
        source.write_random(2)
        source.cut()
        source.commit()
        source.writer.close()
    run(url, *order.split("; "))
    with pytest.raises(DrengineError) as refused:
        Store.open(path, keks=KEKS)
    assert refused.value.kind.id in ("store-tampered", "catalogue-damaged")


def test_a_database_that_went_away_is_used_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "REST_SECONDS", 0.0)
    with (
        Postgres() as server,
        Store.create(
            tmp_path / "store", options=TINY, clock=ManualClock(), catalogued_in=server.fresh_database()
        ) as store,
    ):
        source = Source(store, data=50_000)
        source.write_random(1)
        source.commit()
        server.kill()
        with raises(CATALOGUE_UNAVAILABLE):
            store.sources()
        source.write_random(1)  # what is appended asks nobody
        server.start()
        source.commit()
        assert [each.name for each in store.sources()] == ["web1"]
        source.check()
        source.writer.close()


def test_the_newest_schema_has_the_columns_of_the_rows(url: str, path: Path) -> None:
    assert path.exists()
    types = {int: "bigint", str: "text", bytes: "bytea"}
    with psycopg.connect(url) as connection:
        for table in (*statements.KEPT, statements.PARTITIONS):
            found = connection.execute(
                "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
                "WHERE table_schema = 'drengine_catalogue' AND table_name = %s",
                (table.name,),
            ).fetchall()
            hints = get_type_hints(table.row)
            wanted = {(name, types[hints[name]], "NO") for name in table.fields} | {("checksum", "bigint", "NO")}
            assert set(found) == wanted, f"{table.name}: its change needs a migration"


def test_a_catalogue_of_a_newer_version_is_refused(url: str, path: Path) -> None:
    with Store.open(path, options=TINY) as store:
        run(url, "UPDATE catalogue_version SET version_num = '9999'")
        with raises(STORE_VERSION):
            store.pin(store.points("web1")[0])
    with raises(STORE_VERSION):
        Store.open(path)


@pytest.fixture
def first_version(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreFile]:
    """A database as the first version made it, with a source in it."""
    with monkeypatch.context() as patch:
        for module in ("migrations.migrate", "database", "catalogue"):
            patch.setattr(f"drengine.store.catalogue.postgres.{module}.NEWEST", "0001")
        file = StoreFile(bytes(16), catalogue=url)
        migrate(link.Link(url).connection(), None)
        run(url, "INSERT INTO store VALUES (true, '\\x" + "00" * 16 + "', 'local', '', true)")
    yield file


def test_every_version_leads_to_the_newest_and_keeps_what_is_there(
    first_version: StoreFile, url: str, tmp_path: Path
) -> None:
    (tmp_path / NOTES).mkdir()
    open_catalogue(tmp_path, first_version).close()
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT version_num FROM drengine_catalogue.catalogue_version").fetchone()
        assert found == (NEWEST,)
        assert connection.execute("SELECT count(*) FROM drengine_catalogue.store").fetchone() == (1,)


def test_many_who_bring_it_to_the_newest_version_at_once_all_use_it(first_version: StoreFile, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from drengine.store.identity import StoreFile; "
        "from drengine.store.catalogue.opening import open_catalogue; "
        "open_catalogue(Path(sys.argv[2]), StoreFile(bytes(16), catalogue=sys.argv[1])).close(); print('done')"
    )
    command = [sys.executable, "-c", script, first_version.catalogue, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(4)]
    assert [each.communicate()[0] for each in processes] == ["done\n"] * 4
