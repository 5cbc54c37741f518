"""Grants: given once, taken back by whoever ends what they are for, and never outliving a branch or their time."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.grants import Access, Grant
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.store.catalogue.sqlite import CATALOGUE_NAME, SCHEMA_VERSION
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source

SAMPLES = Path(__file__).parent / "samples"
SECRET = "0123456789abcdef" * 2


def grown(path: Path) -> tuple[Store, RecoveryPoint, ManualClock]:
    clock = ManualClock()
    Store.create(path, clock=clock).close()
    store = Store.open(path, options=TINY, clock=clock)
    source = Source(store, data=1 << 20)
    source.write(1, 0, b"here")
    source.cut()
    source.commit()
    source.writer.close()
    return store, store.find_point("web1", PointSelector()), clock


def held(store: Store) -> list[tuple[int, Access, str]]:
    return [(each.branch, each.access, each.holder) for each in store.grants.living()]


def test_the_same_given_twice_is_one_grant_and_only_the_right_secret_opens_it(tmp_path: Path) -> None:
    store, point, _ = grown(tmp_path / "store")
    drill = store.create_branch(point)
    first, again = (
        store.grants.give("web1", drill.number, Access.WRITE, secret=SECRET, instance="web1-1") for _ in range(2)
    )
    assert store.grants.living() == [first] == [again]
    assert first.is_opened_by(SECRET) and not first.is_opened_by(SECRET[:-1]) and not first.is_opened_by("")
    named = store.grants.give("web1", drill.number, Access.WRITE, holder="host/r1")
    assert not named.is_opened_by("") and not named.is_opened_by(SECRET)
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.rglob("catalogue.sqlite*"))
    store.close()


def test_a_grant_ends_with_its_time_and_is_forgotten_then(tmp_path: Path) -> None:
    store, _, clock = grown(tmp_path / "store")
    store.grants.give("web1", 1, Access.REVERSE, holder="agent/web1", seconds=60)
    clock.advance(59)
    assert held(store) == [(1, Access.REVERSE, "agent/web1")]
    clock.advance(1)
    assert not held(store)
    store.grants.give("web1", 1, Access.REVERSE, holder="agent/web2")
    assert len(store.context.catalogue.grants()) == 1
    store.close()


def test_no_grant_outlives_its_branch(tmp_path: Path) -> None:
    store, point, _ = grown(tmp_path / "store")
    drill, other = store.create_branch(point), store.create_branch(point)
    for branch in (drill.number, other.number, 1):
        store.grants.give("web1", branch, Access.WRITE, holder="host/r1")
    store.grants.give("web1", 1, Access.READ, holder="host/r2", sequence=point.sequence)
    store.close_branch("web1", drill.number)
    assert {branch for branch, _, _ in held(store)} == {other.number, 1}
    store.promote(point, expected_generation=1)
    assert set(held(store)) == {(other.number, Access.WRITE, "host/r1"), (1, Access.READ, "host/r2")}
    with pytest.raises(DrengineError, match=r"\[unknown-branch\]"):
        store.grants.give("web1", drill.number, Access.WRITE, holder="host/r1")
    with pytest.raises(DrengineError, match=r"\[unknown-branch\]"):
        store.grants.give("web1", 99, Access.WRITE, holder="host/r1")
    with pytest.raises(DrengineError, match=r"\[unknown-source\]"):
        store.grants.give("web2", 1, Access.WRITE, holder="host/r1")
    store.close()


def test_what_is_taken_back_is_said_and_another_process_sees_it_gone(tmp_path: Path) -> None:
    store, _, clock = grown(tmp_path / "store")
    for name in ("r1", "r2"):
        store.grants.give("web1", 1, Access.READ, holder=f"host/{name}")

    def of_r1(grant: Grant) -> bool:
        return grant.holder == "host/r1"

    with Store.open(tmp_path / "store", clock=clock, read_only=True) as reader:
        with pytest.raises(DrengineError, match=r"\[store-read-only\]"):
            reader.grants.take(of_r1)
        assert [grant.holder for grant in store.grants.take(of_r1)] == ["host/r1"]
        assert store.grants.take(of_r1) == []
        assert held(reader) == [(1, Access.READ, "host/r2")]
    store.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_before_grants_opens_and_has_none(version: int, tmp_path: Path) -> None:
    path = Path(shutil.copytree(SAMPLES / f"v{version}-good", tmp_path / "store"))

    def schema() -> int:
        with sqlite3.connect(path / CATALOGUE_NAME) as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])

    before = schema()
    assert before < SCHEMA_VERSION
    with Store.open(path, read_only=True) as store:
        assert store.grants.living() == []
    assert schema() == before
    with Store.open(path) as store:
        source = store.sources()[0]
        store.grants.give(source.name, source.active_branch, Access.READ, holder="host/r1")
    assert schema() == SCHEMA_VERSION
    with Store.open(path) as store:
        assert len(store.grants.living()) == 1
