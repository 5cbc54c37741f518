"""A host is lost whose newest bytes were not uploaded: who takes its branch over shows a state that the source had."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from benchmarks.devices import until
from drengine.crypt.kek import KeyEncryptionKeys
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.blobs.s3.options import ACK_LOCAL, S3Options
from drengine.store.blobs.s3.storage import S3Storage
from drengine.store.blobs.s3.upload import Uploader
from drengine.store.catalogue.postgres.link import SCHEMA
from drengine.store.errors import LOCK_LOST, UNKNOWN_POINT
from drengine.store.locks import Holder
from drengine.store.store import Store
from tests.postgres import Postgres
from tests.s3.server import S3Server
from tests.s3.stores import stored_in
from tests.store.harness import KEKS, TINY, Disk, Source, check_head, check_point

pytestmark = pytest.mark.timeout(180)
NEVER = S3Options(ack=ACK_LOCAL, upload_interval=3600.0, delete_delay=0.0)
"""Uploads happen when a test says so; of closed files at any time."""


def uploader(store: Store) -> S3Storage:
    storage = store.context.storage
    assert isinstance(storage, S3Storage)
    return storage


@pytest.fixture(autouse=True)
def no_waiting_for_what_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is closed waits a minute for its uploads, which here come when a test says so."""
    monkeypatch.setattr(Uploader.drain, "__defaults__", (0.5,))


def upload_all(store: Store) -> None:
    """Everything that is committed gets into the object store, now."""
    uploads = uploader(store).uploader

    def done() -> bool:
        with uploads._changed:
            for job in uploads._jobs.values():
                job.due = 0.0
            uploads._changed.notify_all()
        return not uploads.backlog().bytes

    until(done, "the uploads")


@contextmanager
def seat(path: Path, name: str, keks: KeyEncryptionKeys | None) -> Iterator[Store]:
    with Store.open(path / name, storage_options=NEVER, options=TINY, keks=keks, holder=Holder(name)) as store:
        yield store


class Lost:
    """A source on a host that is lost: its states by position, and what of it was surely uploaded."""

    def __init__(self, store: Store, seed: int) -> None:
        self.random = random.Random(seed)
        self.source = Source(store, seed=seed, data=400_000, log=70_000)
        self.states: dict[int, Disk] = {}
        self.uploaded = 0
        self._note()

    def live(self, turns: int) -> None:
        """Write, cut, commit and upload by chance, ending with a commit."""
        for _ in range(turns):
            match self.random.randrange(6):
                case 0:
                    self.source.cut()
                case 1:
                    self.source.commit()
                    if self.random.random() < 0.3:
                        upload_all(self.source.store)
                        self.uploaded = self.source.writer.durable.sequence
                case 2 if self.random.random() < 0.1:
                    self.source.reshape(data=self.random.randrange(300_000, 500_000), log=70_000)
                case _:
                    self.source.write_random()
            self._note()
        self.source.cut()
        self._note()
        self.source.commit()

    def _note(self) -> None:
        self.states[self.source.writer.appended_sequence] = self.source.disk.copy()

    def end(self, url: str) -> None:
        """The host is gone: it uploads and renews nothing more, and its locks are over."""
        uploader(self.source.store).uploader.stop()
        self.source.store.context.locks.close()
        with psycopg.connect(url) as connection:
            connection.execute(f"UPDATE {SCHEMA}.lock SET expires = '-infinity' WHERE holder = 'a'")


@pytest.mark.parametrize("keks", [None, KEKS], ids=["clear", "encrypted"])
@pytest.mark.parametrize("seed", range(3))
def test_a_branch_is_cut_back_to_a_state_that_the_source_had(
    tmp_path: Path, s3: S3Server, bucket: str, postgres: Postgres, seed: int, keks: KeyEncryptionKeys | None
) -> None:
    url, where = postgres.fresh_database(), stored_in(s3.endpoint, bucket)
    Store.create(
        tmp_path / "a", stored_in=where, catalogued_in=url, storage_options=NEVER, options=TINY, keks=keks
    ).close()
    Store.join(tmp_path / "b", url)
    with seat(tmp_path, "a", keks) as gone, seat(tmp_path, "b", keks) as taker:
        lost = Lost(gone, seed)
        lost.live(40)
        named = {point.id for point in gone.points("web1")}
        drill = gone.create_branch(gone.points("web1")[-1], label="beyond")
        lost.end(url)
        before = lost.source.writer.durable.sequence
        spooled = {path: path.read_bytes() for path in (tmp_path / "a" / "spool").rglob("*") if path.is_file()}

        writer = taker.writer("web1", generation=1)
        at = writer.durable.sequence
        assert lost.uploaded <= at <= before
        assert at < before or not spooled, "something must be missing, or the test shows nothing"
        state = lost.states[at]
        check_head(taker, "web1", 1, state)
        kept = {point.id for point in taker.points("web1", branch=1)}
        assert kept == {each for each in named if int(each.partition("-")[2]) <= at}
        for point in taker.points("web1", branch=1):
            check_point(taker, point, lost.source.points[point.id])
        (grown,) = [each for each in taker.branches("web1") if each.number == drill.number]
        assert grown.closed is (drill.base_sequence > at)

        # The one that is gone comes back: it can write nothing, and loses nothing of what it had.
        with pytest.raises(DrengineError) as refused:
            lost.source.writer.append_geometry(
                before + 1, lost.source.writer.durable.mark, state.geometry, generation=1
            )
            lost.source.writer.commit(generation=1)
        assert refused.value.kind is LOCK_LOST
        lost.source.writer.close()
        writer.close()

        after = Source(taker, seed=seed + 100)
        after.disk, after.committed = state.copy(), state.copy()
        after.points = {name: disk for name, disk in lost.source.points.items() if name in kept}
        if not state.geometry:
            after.reshape(data=400_000, log=70_000)
        for _ in range(4):
            after.write_random(2)
            after.cut()
            after.commit()
        after.check()
        after.writer.close()
        upload_all(taker)
    for path, content in spooled.items():
        assert not path.exists() or path.read_bytes()[: len(content)] == content
    with seat(tmp_path, "a", keks) as back:
        after.store = back
        after.check()
        assert not back.scrub().records_damaged
        with pytest.raises(DrengineError) as unknown:
            back.find_point("web1", lost_selector(named - kept, back))
        assert unknown.value.kind is UNKNOWN_POINT


def lost_selector(gone: set[str], store: Store) -> PointSelector:
    """Of a point that went, or of one that never was."""
    there = {point.id for point in store.points("web1")}
    name = next(iter(sorted(gone - there)), "1-999999")
    return PointSelector.parse(name)


def test_nothing_is_cut_where_everything_is_there(
    tmp_path: Path, s3: S3Server, bucket: str, postgres: Postgres
) -> None:
    url, where = postgres.fresh_database(), stored_in(s3.endpoint, bucket)
    Store.create(tmp_path / "a", stored_in=where, catalogued_in=url, storage_options=NEVER, options=TINY).close()
    Store.join(tmp_path / "b", url)
    with seat(tmp_path, "a", None) as gone, seat(tmp_path, "b", None) as taker:
        lost = Lost(gone, 5)
        lost.live(30)
        upload_all(gone)
        lost.end(url)
        writer = taker.writer("web1", generation=1)
        assert writer.durable == lost.source.writer.durable
        writer.close()
        lost.source.store = taker
        lost.source.check()
        lost.source.writer.close()
