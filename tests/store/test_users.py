"""Root beside a service user (fault 66), stores that may not be written, and stores that nobody made (fault 77)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.store.locks import Position
from drengine.store.locks.flock import LOCKS_DIRECTORY, FileLocks
from drengine.store.store import Store
from drengine.target.config import TargetConfig
from drengine.target.daemon import open_expected
from tests.clock import ManualClock
from tests.store.harness import TINY, Source, scratch, tiny_store

SERVICE = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@contextmanager
def as_service() -> Iterator[None]:
    """Work as the service user for a while."""
    os.setegid(SERVICE)
    os.seteuid(SERVICE)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def foreign(path: Path) -> list[str]:
    return [str(each.relative_to(path)) for each in path.rglob("*") if each.lstat().st_uid != SERVICE]


@contextmanager
def service_store() -> Iterator[Path]:
    """A store that the service user has made and written, and that is closed."""
    with scratch() as place:
        os.chown(place, SERVICE, SERVICE)
        with as_service(), tiny_store(place) as store:
            source = Source(store, root=100_000)
            for _ in range(3):
                source.write_random(3)
                source.cut()
                source.commit()
            source.writer.close()
        yield place / "store"


def carry_on(path: Path) -> None:
    """What the service does all day, as itself."""
    with as_service(), Store.open(path, options=TINY, clock=ManualClock()) as store:
        generation = store.source("web1").generation
        store.writer("web1", generation=generation).close()
        store.pin(store.points("web1")[0])
        assert store.compact().complete
        store.scrub()


@pytest.mark.fault(66)
@as_root
def test_what_root_makes_in_a_service_users_store_belongs_to_the_service_user():
    with service_store() as path:
        with Store.open(path, options=TINY, clock=ManualClock()) as store:
            point = store.points("web1")[-1]
            info = store.create_branch(point, label="root's")
            view = store.writable("web1", info.number, generation=info.generation)
            view.write(1, 0, b"root" * 100)
            view.flush()
            store.pin(point)
            store.compact()
            with store.view(point):
                assert foreign(path) == []
            view.close()
        assert foreign(path) == []
        carry_on(path)
        Store.rebuild(path, options=TINY, clock=ManualClock())
        assert foreign(path) == []
        carry_on(path)


@pytest.mark.fault(66)
@as_root
def test_a_store_that_root_makes_in_the_service_users_directory_is_the_service_users():
    with scratch() as place:
        os.chown(place, SERVICE, SERVICE)
        tiny_store(place).close()
        assert foreign(place) == []


@pytest.mark.fault(66)
@as_root
def test_a_lease_that_may_not_be_read_counts_as_living_and_stops_only_what_it_names():
    with service_store() as path:
        lease = path / LOCKS_DIRECTORY / "lease-web1-1-3-0123456789abcdef"
        lease.touch(mode=0o600)
        os.chown(lease, 0, 0)
        with as_service():
            assert FileLocks(path).leased_positions() == {Position("web1", 1, 3)}
        carry_on(path)
        assert lease.exists()


@pytest.mark.fault(66)
@as_root
def test_a_lock_of_roots_that_can_be_read_can_be_taken():
    with service_store() as path:
        for name in (path / LOCKS_DIRECTORY).iterdir():
            os.chown(name, 0, 0)
            name.chmod(0o644)
        carry_on(path)


@contextmanager
def umask(value: int) -> Iterator[None]:
    """Work under this umask for a while."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def open_to_others(path: Path) -> list[str]:
    """What somebody else could open, or look into, if the way there were open."""
    return [str(each) for each in (path, *path.rglob("*")) if each.lstat().st_mode & 0o077]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_no_umask_opens_a_store_to_strangers(mask):
    """A lock that can be read can be held, and stops the store's own writer; the catalogue names everything."""
    with scratch() as place, umask(mask):
        with tiny_store(place) as store:
            source = Source(store, root=100_000)
            source.write_random(3)
            source.cut()
            source.commit()
            with store.view(store.points("web1")[0]):
                assert open_to_others(place / "store") == []
            source.writer.close()
            store.compact()
        Store.rebuild(place / "store", options=TINY, clock=ManualClock())
        assert open_to_others(place / "store") == []


@as_root
def test_a_store_that_was_made_open_is_closed_to_strangers_when_it_is_opened():
    with service_store() as path:
        (path / LOCKS_DIRECTORY).chmod(0o755)
        (path / "catalogue.sqlite").chmod(0o644)
        path.chmod(0o755)
        carry_on(path)
        assert (path / LOCKS_DIRECTORY).stat().st_mode & 0o777 == 0o750, "a group may be meant"
        assert (path / "catalogue.sqlite").stat().st_mode & 0o777 == 0o640


@as_root
def test_a_living_store_on_a_read_only_mount_is_read(tmp_path):
    """A snapshot, or a bind mount for a backup: the store itself goes on being written."""
    with scratch() as place, tiny_store(place) as store:
        source = Source(store, root=100_000)
        source.write_random(3)
        source.cut()
        source.commit()
        seen = place / "seen"
        seen.mkdir()
        subprocess.run(["mount", "--bind", place / "store", seen], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", seen], check=True)
            for arguments in (["verify", "latest"], ["restore", "latest", "--to", str(tmp_path)]):
                command = [sys.executable, "-m", "drengine.cli.main", *arguments, "--store", str(seen)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
        finally:
            subprocess.run(["umount", seen], check=True)
        source.write_random(1)
        source.commit()
        source.writer.close()


@pytest.mark.fault(77)
@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_a_target_makes_no_store_where_there_is_none(tmp_path, made):
    if made:
        (tmp_path / "store").mkdir()
    with pytest.raises(DrengineError, match=r"\[not-a-store\]") as error:
        open_expected(TargetConfig(store=tmp_path / "store"), ManualClock())
    assert "mounted" in error.value.kind.hint and "drengine target init" in error.value.kind.hint
    assert (tmp_path / "store").exists() == made and not list(tmp_path.glob("store/*"))


@pytest.mark.fault(77)
def test_a_target_refuses_another_store_than_the_expected_one(tmp_path):
    with Store.create(tmp_path / "a") as store:
        expected = store.identity.hex()
    Store.create(tmp_path / "b").close()
    with open_expected(TargetConfig(store=tmp_path / "a", store_id=expected.upper()), ManualClock()) as store:
        assert store.identity.hex() == expected
    with pytest.raises(DrengineError, match=r"\[wrong-store\]"):
        open_expected(TargetConfig(store=tmp_path / "b", store_id=expected), ManualClock())


def test_a_store_may_be_made_at_the_root_of_an_ext4(tmp_path):
    (tmp_path / "lost+found").mkdir()
    with Store.create(tmp_path) as store:
        store.ensure_source("web1")
    with Store.open(tmp_path) as store:
        assert [each.name for each in store.sources()] == ["web1"]
