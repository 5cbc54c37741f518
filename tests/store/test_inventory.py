"""What a source is made of is kept with its data: durable, fenced, repeated by manifests and mirrors, and forgotten."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.care.lock_policy import LockPolicy
from drengine.store.care.retention import RetentionPolicy
from drengine.store.care.retire import Keeping
from drengine.store.catalogue.rows import InventoryRow
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.mirror.destination import opened_copy
from drengine.store.mirror.mirror import Mirror
from drengine.store.mirror.pace import Pace
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.inventories import SERVER
from tests.postgres import Postgres
from tests.store.harness import KEKS, TINY, Source, scratch, tiny_store

OTHER = msgspec.structs.replace(SERVER, hostname="web1-after-its-upgrade")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: these tests sync a lot."""
    with scratch() as path:
        yield path


def with_data(store: Store, name: str = "web1") -> Source:
    source = Source(store, name, root=50_000)
    source.write(1, 0, random.Random(1).randbytes(40_000))
    source.cut()
    source.commit()
    source.writer.close()
    return source


@pytest.mark.usefixtures("at_rest")
def test_the_newest_one_is_there_after_the_store_was_closed(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        with_data(store)
        assert store.inventory("web1") is None
        for each in (SERVER, OTHER):
            store.keep_inventory("web1", each, generation=1)
    with Store.open(tmp_path / "store", read_only=True) as store:
        assert store.inventory("web1") == OTHER
        with pytest.raises(DrengineError, match=r"\[unknown-source\]"):
            store.inventory("web2")


def test_nobody_reads_it_in_an_encrypted_store_without_the_key(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        with_data(store)
        store.keep_inventory("web1", SERVER, generation=1)
    clear = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"PowerEdge" in clear
    Store.encrypt(tmp_path / "store", KEKS, options=TINY)
    with Store.open(tmp_path / "store", keks=KEKS) as store:
        assert store.inventory("web1") == SERVER
        row = store.context.catalogue.inventory("web1")
        assert row and row.data_key and b"PowerEdge" not in row.document
        other = row._replace(document=row.document[:-1] + bytes([row.document[-1] ^ 1]))
        with store.context.catalogue.transaction():
            store.context.catalogue.put(other)
        with pytest.raises(DrengineError, match=r"\[catalogue-damaged\]"):
            store.inventory("web1")


def test_a_superseded_generation_tells_nothing_more(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        with_data(store)
        store.keep_inventory("web1", SERVER, generation=1)
        store.promote(store.points("web1")[0], expected_generation=1)
        with pytest.raises(DrengineError, match=r"\[fenced\]"):
            store.keep_inventory("web1", OTHER, generation=1)
        assert store.inventory("web1") == SERVER
        store.keep_inventory("web1", OTHER, generation=2)
        assert store.inventory("web1") == OTHER


@pytest.mark.usefixtures("at_rest")
def test_a_rebuild_and_a_copy_have_it_too(tmp_path: Path, at_rest: str) -> None:
    keks = KEKS if at_rest == "encrypted" else None
    with tiny_store(tmp_path) as store:
        with_data(store)
        store.keep_inventory("web1", SERVER, generation=1)
        for told in (SERVER, OTHER):
            store.keep_inventory("web1", told, generation=1)
            with opened_copy(store, tmp_path / "copy", keks=keks, options=TINY, clock=store.context.clock) as copy:
                mirror = Mirror(store, copy, Pace(store.context.clock))
                mirror.run()
                mirror.close()
                assert copy.inventory("web1") == told
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / "store" / f"{CATALOGUE_NAME}{suffix}").unlink(missing_ok=True)
    Store.rebuild(tmp_path / "store", keks=keks)
    with Store.open(tmp_path / "store", keks=keks) as store:
        assert store.inventory("web1") == OTHER


def test_what_is_told_again_writes_no_manifest(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        with_data(store)
        store.keep_inventory("web1", SERVER, generation=1)
        before = store.context.storage.list("manifests/")
        fuller = tuple(msgspec.structs.replace(each, free_bytes=7) for each in SERVER.file_systems)
        store.keep_inventory("web1", msgspec.structs.replace(SERVER, taken_ns=5, file_systems=fuller), generation=1)
        assert store.context.storage.list("manifests/") == before
        store.keep_inventory("web1", OTHER, generation=1)
        assert store.context.storage.list("manifests/") != before


def test_it_goes_with_the_last_point_of_a_retired_source(tmp_path: Path) -> None:
    clock = ManualClock()
    with Store.create(tmp_path / "store", options=TINY, clock=clock) as store:
        with_data(store)
        store.keep_inventory("web1", SERVER, generation=1)
        keeping = Keeping(RetentionPolicy(10, ()), 5.0, LockPolicy())
        store.retain(lambda name: keeping, clock.now_ns())
        assert store.points("web1") and store.inventory("web1") == SERVER
        clock.advance(100)
        keeping = Keeping(RetentionPolicy(10, ()), 100.0, LockPolicy())
        store.retain(lambda name: keeping, clock.now_ns())
        assert not store.points("web1") and store.inventory("web1") is None


def test_it_goes_with_its_keys_and_with_a_source_that_never_shipped(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", options=TINY, keks=KEKS) as store:
        with_data(store)
        store.ensure_source("web2")
        for name in ("web1", "web2"):
            store.keep_inventory(name, SERVER, generation=1)
        store.erase("web1")
        assert store.inventory("web1") is None
        assert store.forget_empty("web2")
        store.ensure_source("web2")
        assert store.inventory("web2") is None


def test_one_that_can_not_be_read_is_replaced_like_any_other(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        with_data(store)
        with store.context.catalogue.transaction():
            store.context.catalogue.put(InventoryRow("web1", b"", b'{"taken_ns": "soon"}'))
        with pytest.raises(DrengineError, match=r"\[catalogue-damaged\]"):
            store.inventory("web1")
        store.keep_inventory("web1", SERVER, generation=1)
        assert store.inventory("web1") == SERVER


def test_many_changes_write_few_manifests(tmp_path: Path) -> None:
    clock = ManualClock()
    options = StoreOptions(manifest_seconds=600.0)
    with Store.create(tmp_path / "store", options=options, clock=clock) as store:
        with_data(store)
        written = set()
        for number in range(30):
            told = msgspec.structs.replace(SERVER, hostname=f"web{number}")
            store.keep_inventory("web1", told, generation=1)
            written |= set(store.context.storage.list("manifests/"))
            clock.advance(60)
        assert len(written) == 3 and store.inventory("web1") == told


def test_a_catalogue_of_before_gets_its_table(tmp_path: Path) -> None:
    with tiny_store(tmp_path) as store:
        with_data(store)
        points = store.points("web1")
    with sqlite3.connect(tmp_path / "store" / CATALOGUE_NAME) as db:
        db.execute("DROP TABLE inventory")
        db.execute("PRAGMA user_version = 8")
    with Store.open(tmp_path / "store", read_only=True) as store:
        assert store.inventory("web1") is None
    with Store.open(tmp_path / "store") as store:
        store.keep_inventory("web1", SERVER, generation=1)
    with Store.open(tmp_path / "store") as store:
        assert (store.inventory("web1"), store.points("web1")) == (SERVER, points)


def test_a_shared_catalogue_keeps_it_and_one_of_before_gets_its_table(postgres: Postgres, tmp_path: Path) -> None:
    url, path = postgres.fresh_database(), tmp_path / "store"
    with Store.create(path, options=TINY, catalogued_in=url) as store:
        with_data(store)
        assert store.find_point("web1", PointSelector())
    with psycopg.connect(url, autocommit=True, options="-c search_path=drengine_catalogue") as database:
        database.execute("DROP TABLE inventory")
        database.execute("UPDATE catalogue_version SET version_num = '0004'")
    with Store.open(path, options=TINY) as store:
        assert store.inventory("web1") is None
        store.keep_inventory("web1", SERVER, generation=1)
    with Store.open(path, options=TINY, read_only=True) as store:
        assert store.inventory("web1") == SERVER
