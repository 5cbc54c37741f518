"""What opening a store checks: everything, or in a hurry nothing but what is then read."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from drengine.crypt.errors import STORE_TAMPERED
from drengine.model.errors import DrengineError
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.errors import CATALOGUE_DAMAGED
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source, encrypted


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_row_that_is_rotten_is_refused_by_whoever_reads_it_and_in_an_encrypted_store_by_all(
    tmp_path: Path, is_encrypted: bool
) -> None:
    path = tmp_path / "store"
    with encrypted() if is_encrypted else nullcontext():
        with Store.create(path, options=TINY, clock=ManualClock()) as store:
            for name in ("web1", "web2"):
                source = Source(store, name, root=10_000)
                source.cut()
                source.commit()
                source.writer.close()
        with closing(sqlite3.connect(path / CATALOGUE_NAME)) as database, database:
            database.execute("UPDATE point SET time_ns = time_ns + 1 WHERE source = 'web2'")
        with pytest.raises(DrengineError) as caught:
            Store.open(path, options=TINY)
        assert caught.value.kind is CATALOGUE_DAMAGED
        if is_encrypted:
            with pytest.raises(DrengineError) as caught:
                Store.open(path, options=TINY, read_only=True, checks_all=False)
            assert caught.value.kind in (CATALOGUE_DAMAGED, STORE_TAMPERED)
            return
        with Store.open(path, options=TINY, read_only=True, checks_all=False) as store:
            assert len(store.points("web1")) == 1
            with pytest.raises(DrengineError) as caught:
                store.points("web2")
            assert caught.value.kind is CATALOGUE_DAMAGED
