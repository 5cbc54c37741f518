"""A catalogue in PostgreSQL keeps by which roots branches were judged, also one that is older than that."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from drengine.store.blobs import FaultyStorage, LocalStorage
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.postgres import Postgres
from tests.store.harness import TINY, Source


@pytest.mark.parametrize("is_old", [False, True])
def test_a_compaction_after_which_nothing_changed_reads_no_segment(
    postgres: Postgres, tmp_path: Path, is_old: bool
) -> None:
    url, clock, path = postgres.fresh_database(), ManualClock(), tmp_path / "store"
    with Store.create(path, options=TINY, clock=clock, catalogued_in=url) as store:
        source = Source(store, root=150_000)
        for _ in range(10):
            source.write_random(3)
            source.cut()
            source.commit()
        source.writer.close()
        kept = store.points("web1")
    if is_old:
        with psycopg.connect(url, autocommit=True, options="-c search_path=drengine_catalogue") as database:
            database.execute(
                "DROP TABLE judgement, target, placement, point_lock, lock_policy, clock, inventory"
            )  # of 0002 to 5
            database.execute("UPDATE catalogue_version SET version_num = '0001'")
    storage = FaultyStorage(LocalStorage(path))
    for wanted in (True, False):
        with Store.open(path, options=TINY, clock=clock, storage=storage) as store:
            storage.calls.clear()
            store.compact()
            opened = [call for call in storage.calls if call.operation == "open" and call.name.endswith(".seg")]
            assert bool(opened) == wanted
            assert store.points("web1") == kept


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_writers_of_all_branches_are_told_at_once(postgres: Postgres, tmp_path: Path, is_shared: bool) -> None:
    url = postgres.fresh_database() if is_shared else ""
    with Store.create(tmp_path / "store", options=TINY, clock=ManualClock(), catalogued_in=url) as store:
        assert store.written_branches() == set()
        sources = [Source(store, name, root=10_000) for name in ("web-1", "web-1-1", "db")]
        assert store.written_branches() == {("web-1", 1), ("web-1-1", 1), ("db", 1)}
        for name, branch in store.written_branches():
            assert store.context.locks.branch_holders()[name, branch] == store.context.locks.branch_holder(name, branch)
        sources[0].writer.close()
        assert store.written_branches() == {("web-1-1", 1), ("db", 1)}
        for source in sources[1:]:
            source.writer.close()
