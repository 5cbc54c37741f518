"""What only a local directory can get wrong: links, short writes, durability of names, leftovers of the dead."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drengine.store.blobs import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    (tmp_path / "root").mkdir()
    return LocalStorage(tmp_path / "root")


@pytest.mark.fault(53)
def test_no_symbolic_link_leads_out(storage: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (storage.root / "folder").symlink_to(outside)
    (storage.root / "file").symlink_to(outside / "secret")
    for name in ("folder/secret", "file"):
        with pytest.raises(OSError):
            storage.open(name)
    for name in ("folder/new", "file"):
        with pytest.raises(OSError):
            storage.create(name)
    with pytest.raises(OSError):
        storage.put("folder/new", b"x")
    with pytest.raises(OSError):
        storage.delete("folder/secret")
    assert "folder/secret" not in storage.list("")
    assert storage.list("folder/") == []
    # A put replaces the link itself, never what it points at; nor may its aside file be a link.
    storage.put("file", b"ours")
    (storage.root / "victim.tmp").symlink_to(outside / "secret")
    with pytest.raises(OSError):
        storage.put("victim", b"x")
    assert (outside / "secret").read_bytes() == b"secret"
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_short_writes_are_continued(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [memoryview(parts[0])[: max(1, len(parts[0]) // 2)]]))
    appender = storage.create("f")
    appender.append(b"abcdefg", b"", b"hij", b"k")
    appender.close()
    assert (storage.root / "f").read_bytes() == b"abcdefghijk"


def test_more_parts_than_one_call_takes_are_written(storage: LocalStorage) -> None:
    parts = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    appender = storage.create("f")
    appender.append(*parts)
    appender.close()
    assert (storage.root / "f").read_bytes() == b"".join(parts)


@pytest.mark.fault(8)
def test_every_folder_up_to_the_root_is_synced_even_if_somebody_else_made_it(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A writer that was killed between mkdir and fsync leaves a folder that a power cut still takes away.
    (storage.root / "a" / "b").mkdir(parents=True)
    synced: list[str] = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    everything = [str(storage.root / "a" / "b"), str(storage.root / "a"), str(storage.root)]
    appender = storage.create("a/b/f")
    appender.close()
    storage.sync_dir("a/b")
    assert synced == everything
    synced.clear()
    storage.put("a/b/g", b"x")
    assert synced == everything


@pytest.mark.fault(7)
@pytest.mark.parametrize("call", ["writev", "fdatasync", "rename"])
def test_a_failed_put_leaves_the_old_version_and_no_litter(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    storage.put("f", b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="no space"):
            storage.put("f", b"new")
    assert [path.name for path in storage.root.iterdir()] == ["f"]
    assert (storage.root / "f").read_bytes() == b"old"


def test_leftovers_of_the_dead_are_hidden_overwritten_and_swept(storage: LocalStorage) -> None:
    folder = storage.root / "a"
    folder.mkdir()
    (folder / "f.tmp").write_bytes(b"a very long half-written thing")
    (folder / "g.tmp").write_bytes(b"another")
    (folder / "h.tmp").write_bytes(b"somebody is writing this")
    assert storage.list("") == []
    storage.put("a/f", b"new")
    assert (folder / "f").read_bytes() == b"new"
    with (folder / "h.tmp").open("rb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        assert storage.sweep() == 1
    assert sorted(path.name for path in folder.iterdir()) == ["f", "h.tmp"]


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    ("call", "operate"),
    [
        ("fdatasync", lambda storage: storage.create("x").sync()),
        ("fsync", lambda storage: storage.sync_dir("a")),
        ("fsync", lambda storage: storage.put("a/f", b"new")),
        ("fsync", lambda storage: storage.delete("a/f")),
        ("pread", lambda storage: storage.open("a/f").read_at(0, 1)),
    ],
)
def test_an_io_error_reaches_the_caller(
    storage: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    operate: Callable[[LocalStorage], object],
) -> None:
    storage.put("a/f", b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="broken disk"):
        operate(storage)


def test_no_descriptor_is_leaked(storage: LocalStorage) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        storage.put("a/b/f", b"x")
        storage.list("")
        storage.sweep()
        reader = storage.open("a/b/f")
        reader.close()
        for name in ("a/b/none", "a/none/none", "../x"):
            with pytest.raises(OSError):
                storage.open(name)
        with pytest.raises(OSError):
            storage.create("a/b/f")
        storage.delete("a/b/f")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
