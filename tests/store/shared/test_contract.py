"""What every catalogue keeps to, in SQLite and in PostgreSQL."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drengine.crypt.errors import KEY_NEEDED, STORE_TAMPERED
from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.catalogue import epoch
from drengine.store.catalogue.interface import Catalogue, Fence
from drengine.store.catalogue.opening import create_catalogue, finish_catalogue, open_catalogue, replacing
from drengine.store.catalogue.rows import OPEN, SEALED, BranchRow, PointRow, SegmentRow, SourceRow
from drengine.store.errors import FENCED, LOCK_LOST, STORE_READ_ONLY, UNKNOWN_BRANCH, UNKNOWN_SOURCE
from drengine.store.identity import StoreFile
from drengine.store.names import EPOCH_NAME, NOTES, SEGMENTS
from tests.postgres import Postgres

KEY = bytes(range(32))
Opener = Callable[..., Catalogue]


@pytest.fixture(params=["sqlite", "postgresql"])
def file(request: pytest.FixtureRequest) -> StoreFile:
    url = request.getfixturevalue("postgres").fresh_database() if request.param == "postgresql" else ""
    return StoreFile(bytes(range(16)), catalogue=url)


@pytest.fixture
def opened(file: StoreFile, tmp_path: Path) -> Iterator[Opener]:
    """Opens connections to one new catalogue, which are closed in the end."""
    for name in (SEGMENTS, NOTES):
        (tmp_path / name).mkdir()
    create_catalogue(tmp_path, file)
    finish_catalogue(file)
    connections: list[Catalogue] = []

    def open_one(*, read_only: bool = False, key: bytes = b"", check: bool = True) -> Catalogue:
        made = open_catalogue(tmp_path, file, read_only=read_only)
        connections.append(made)
        if check:
            made.check(key)
        return made

    yield open_one
    for each in connections:
        each.close()


def raises(kind: ErrorKind) -> pytest.RaisesExc[DrengineError]:
    return pytest.RaisesExc(DrengineError, check=lambda error: error.kind is kind)


def source(name: str, generation: int = 1) -> SourceRow:
    return SourceRow(name, generation, 1)


def branch(name: str, durable: int = 0, *, number: int = 1, closed: int = 0, role: str = "trunk") -> BranchRow:
    return BranchRow(name, number, 0, 0, 1, role, "", closed, 5, 0, durable, bytes(16), 0, b"\0\xff")


def segment(name: str, number: int, first: int, state: str = SEALED) -> SegmentRow:
    return SegmentRow(name, 1, number, 1, state, first, first + 9, 1000, 1100, 900, 0, b"")


def point(name: str, sequence: int, label: str = "") -> PointRow:
    return PointRow(name, 1, sequence, 10**18 + sequence, 10**18, "quiet", label, b"", 0, 0, 0, "")


def begin(catalogue: Catalogue, *names: str) -> None:
    with catalogue.transaction():
        for name in names:
            catalogue.put(source(name), branch(name))


def test_what_was_put_is_found_by_every_connection_in_order(opened: Opener) -> None:
    one, two = opened(), opened()
    begin(one, "web2", "web1", "a-b", "a.b")
    with one.transaction("web1"):
        one.put(segment("web1", 2, 11, OPEN), segment("web1", 1, 1), point("web1", 12), point("web1", 3))
    assert [row.name for row in two.sources()] == ["a-b", "a.b", "web1", "web2"]
    assert two.segments("web1", 1) == [segment("web1", 1, 1), segment("web1", 2, 11, OPEN)]
    assert two.segment_at("web1", 1, 10) == segment("web1", 1, 1)
    assert two.segment("web1", 1, 3) is None
    assert [row.sequence for row in two.points("web1")] == [3, 12]
    assert [row.sequence for row in two.points_newest_first("web1", 1, 11)] == [3]
    assert two.point("web1", 1, 3) == point("web1", 3)
    assert two.branch("web1", 1) == branch("web1")
    with raises(UNKNOWN_SOURCE):
        two.source("web9")
    with raises(UNKNOWN_BRANCH):
        two.branch("web1", 9)


def test_a_transaction_counts_whole_or_not_at_all_and_reads_what_it_has_put(opened: Opener) -> None:
    one, two = opened(), opened()
    begin(one, "web1")
    with pytest.raises(ZeroDivisionError), one.transaction("web1"):
        one.put(branch("web1", 7), point("web1", 7))
        assert one.branch("web1", 1).durable_sequence == 7
        one.remove(branch("web1"))
        with raises(UNKNOWN_BRANCH):
            one.branch("web1", 1)
        one.put(branch("web1", 8))
        assert two.branch("web1", 1).durable_sequence == 0
        raise ZeroDivisionError
    assert (one.branch("web1", 1), one.points("web1")) == (branch("web1"), [])
    with one.transaction("web1"), one.transaction("web1"):
        one.put(branch("web1", 9))
    assert two.branch("web1", 1).durable_sequence == 9


def test_each_transaction_that_changes_something_has_the_next_number_and_is_noted(opened: Opener) -> None:
    one = opened()
    begin(one, "web1")
    before = one.epoch("web1")
    with one.transaction("web1"):
        pass
    assert one.epoch("web1") == before
    with one.transaction("web1"):
        one.put(branch("web1", 1))
    after = one.epoch("web1")
    assert after == before._replace(number=before.number + 1)
    assert one.noted_epoch("web1") == after


def test_the_version_tells_a_writer_of_what_others_committed(opened: Opener) -> None:
    one = opened()
    begin(one, "web1", "web2")
    writer = one.another()
    with writer.transaction("web1"):
        version = writer.data_version()
        writer.put(branch("web1", 1))
    with writer.transaction("web1"):
        assert writer.data_version() == version, "its own commit is no news"
    with one.transaction("web1"):
        one.put(source("web1", 2))
    with writer.transaction("web1"):
        assert writer.data_version() != version
    writer.close()


def test_a_generation_that_is_over_may_not_write(opened: Opener) -> None:
    one = opened()
    begin(one, "web1")
    one.require_writable("web1", 1, 1)
    with one.transaction("web1"):
        one.put(source("web1", 2), branch("web1", number=2, closed=1), branch("web1", number=3, role="drill"))
    with raises(FENCED):
        one.require_writable("web1", 1, 1)
    with raises(UNKNOWN_BRANCH):
        one.require_writable("web1", 2, 2)
    one.require_writable("web1", 3, 1)


def test_what_is_opened_for_reading_changes_nothing(opened: Opener) -> None:
    begin(opened(), "web1")
    reader = opened(read_only=True)
    assert reader.sources() == [source("web1")]
    with raises(STORE_READ_ONLY), reader.transaction("web1"):
        reader.put(branch("web1", 1))


def test_a_snapshot_is_of_one_moment(opened: Opener, file: StoreFile) -> None:
    one, two = opened(), opened()
    begin(one, "web1")
    with one.snapshot():
        seen = one.branch("web1", 1)
        if file.catalogue:  # in SQLite others wait for its end
            with two.transaction("web1"):
                two.put(branch("web1", 5))
        assert one.branch("web1", 1) == seen


def test_a_sealed_catalogue_is_changed_only_with_the_key(opened: Opener) -> None:
    one = opened()
    begin(one, "web1")
    one.seal(KEY)
    one.seal(KEY)
    begin(one, "web2")
    with one.transaction("web1"):
        one.put(branch("web1", 1), point("web1", 1))
        one.put(branch("web1", 2))
        assert one.points("web1")
        one.remove(point("web1", 1))
    writer = one.another()
    with writer.transaction("web2"):
        writer.put(branch("web2", 3))
    writer.close()
    assert opened(key=KEY).branch("web1", 1).durable_sequence == 2
    with raises(STORE_TAMPERED):
        opened(key=bytes(32))
    stranger = opened()
    with raises(KEY_NEEDED), stranger.transaction("web1"):
        stranger.put(branch("web1", 9))


def test_a_rebuild_puts_another_catalogue_in_its_place_or_leaves_it(
    opened: Opener, file: StoreFile, tmp_path: Path
) -> None:
    begin(opened(), "web1", "web2")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path, file, KEY) as made:
        made.catalogue.put(source("web3"))
        raise ZeroDivisionError
    assert [row.name for row in opened().sources()] == ["web1", "web2"]
    with replacing(tmp_path, file, KEY) as made:
        made.catalogue.put(branch("web2", 4), source("web2"), source("web3"))
    assert made.kept_aside
    fresh = opened(key=KEY)
    assert [row.name for row in fresh.sources()] == ["web2", "web3"]
    with fresh.transaction("web2"):
        fresh.put(branch("web2", 5))
    assert opened(key=KEY).branch("web2", 1).durable_sequence == 5


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("\\0\0'%?", max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(label=texts, number=st.integers(0, (1 << 63) - 1), data=st.binary(max_size=40))
def test_every_value_comes_back_as_it_was(opened: Opener, label: str, number: int, data: bytes) -> None:
    one = opened()
    if not one.sources():
        begin(one, "web1")
    row = branch("web1")._replace(label=label, durable_sequence=number, geometry=data)
    with one.transaction("web1"):
        one.put(row)
    assert one.branch("web1", 1) == row
    one.close()


def test_a_process_that_is_stopped_while_it_notes_an_epoch_is_in_nobodys_way(
    opened: Opener, file: StoreFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "TURN_SECONDS", 0.01)
    one = opened()
    begin(one, "web1")
    before = one.noted_epoch("web1")
    note = tmp_path / ("epochs/web1" if file.catalogue else EPOCH_NAME)
    with note.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with one.transaction("web1"):
            one.put(branch("web1", 1))
    assert one.noted_epoch("web1") == before, "it is behind, and never ahead"
    with one.transaction("web1"):
        one.put(branch("web1", 2))
    assert one.noted_epoch("web1") == one.epoch("web1")


def test_in_postgresql_a_transaction_relies_on_a_lock_by_its_token(postgres: Postgres, tmp_path: Path) -> None:
    file = StoreFile(bytes(16), catalogue=postgres.fresh_database())
    (tmp_path / NOTES).mkdir()
    create_catalogue(tmp_path, file)
    catalogue = open_catalogue(tmp_path, file)
    begin(catalogue, "web1")
    with raises(LOCK_LOST), catalogue.transaction("web1", fence=Fence("branch/web1/1", 7)):
        catalogue.put(branch("web1", 9))
    assert catalogue.branch("web1", 1).durable_sequence == 0
    catalogue.close()


def test_in_postgresql_a_transaction_changes_only_what_it_named(postgres: Postgres, tmp_path: Path) -> None:
    file = StoreFile(bytes(16), catalogue=postgres.fresh_database())
    (tmp_path / NOTES).mkdir()
    create_catalogue(tmp_path, file)
    catalogue = open_catalogue(tmp_path, file)
    begin(catalogue, "web1", "web2")
    with pytest.raises(ValueError, match="web2"), catalogue.transaction("web1"):
        catalogue.put(branch("web2", 9))
    with pytest.raises(ValueError, match="web1"), catalogue.transaction("web1"), catalogue.transaction():
        pass
    with raises(UNKNOWN_SOURCE), catalogue.transaction("web3"):
        catalogue.put(source("web3"))
    with pytest.raises(ValueError, match="transaction"):
        catalogue.put(branch("web1", 9))
    catalogue.close()
