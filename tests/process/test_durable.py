"""Small files are old or new, whoever writes them at once and whatever fails."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from drengine.durable import ASIDE, replace_durably


def test_a_file_is_synced_before_it_has_its_name_and_its_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "note", []
    real = os.fsync

    def record(descriptor: int) -> None:
        what = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((what, path.exists() and path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    replace_durably(path, b"one")
    replace_durably(path, b"two")
    assert seen == [("file", False), ("folder", b"one"), ("file", b"one"), ("folder", b"two")]
    assert [each.name for each in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_after_a_failure_the_old_file_is_there_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "note"
    replace_durably(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="full"):
            replace_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["note"]


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    replace_durably(tmp_path / "note", b"0123456789")
    assert (tmp_path / "note").read_bytes() == b"0123456789"


def test_two_writers_take_turns_and_one_whole_content_stays(tmp_path: Path) -> None:
    path = tmp_path / "note"
    contents = [bytes([number]) * 50_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(25):
            replace_durably(path, content)
            assert path.read_bytes() in contents

    failed: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        threads = [threading.Thread(target=write, args=(content,)) for content in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert not failed
    assert [each.name for each in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize("left", [0o600, 0o666])
def test_what_a_crash_left_beside_it_is_used_again_with_the_wanted_mode(tmp_path: Path, left: int) -> None:
    aside = tmp_path / f"note{ASIDE}"
    aside.write_bytes(b"torn" * 100)
    aside.chmod(left)
    replace_durably(tmp_path / "note", b"whole", mode=0o640)
    assert (tmp_path / "note").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "note").stat().st_mode) == 0o640


def test_a_link_planted_beside_it_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f"note{ASIDE}").symlink_to("victim")
    with pytest.raises(OSError):
        replace_durably(tmp_path / "note", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_a_stranger_put_beside_it_gets_nothing_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Its owner could read what is written to it, and holds its lock."""
    planted = tmp_path / f"note{ASIDE}"
    planted.touch(0o666)
    os.chown(planted, 12345, 12345)
    with planted.open("r+b") as stranger:
        fcntl.flock(stranger, fcntl.LOCK_EX)
        replace_durably(tmp_path / "note", b"secret")
        assert stranger.read() == b""
    found = (tmp_path / "note").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["note"]


def test_another_name_of_a_file_planted_beside_it_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f"note{ASIDE}").hardlink_to(tmp_path / "victim")
    replace_durably(tmp_path / "note", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "note").read_bytes() == b"new"


def test_a_pipe_planted_beside_it_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"note{ASIDE}")
    with pytest.raises(OSError):
        replace_durably(tmp_path / "note", b"new")
