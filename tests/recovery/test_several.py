"""A restore of several volumes: taken up where it was interrupted, no destination lost to another, room for all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.store.store import Store
from drengine.target import destination, restore
from drengine.target.restore import Restore, prepare
from drengine.terminal import main
from tests.clock import ManualClock
from tests.linux.loops import loop_device
from tests.recovery.replica import make_several

pytestmark = pytest.mark.timeout(120)
SIZE = (3 << 20) + 512
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


class Typed:
    """`drengine restore latest` with destinations, typed again and again."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str], sizes: dict[str, int]) -> None:
        self.directory = directory
        self.contents = make_several(directory / "store", sizes)
        self._sizes = sizes
        self._capture = capture
        self.said = ""

    def __call__(self, *to: Path | str, options: tuple[str, ...] = (), exit_code: int = 0) -> dict[str, Any]:
        places = [f"{name}={path}" for name, path in zip(self._sizes, to, strict=False)]
        argv = ["restore", "latest", "--store", str(self.directory / "store"), "--json", *options]
        self._capture.readouterr()
        found = main(app, [*argv, *(word for place in places for word in ("--to", place))])
        out, self.said = self._capture.readouterr()
        assert found == exit_code, self.said
        return dict(json.loads(out)) if out else {}

    def holds(self, name: str, path: Path) -> bool:
        content = self.contents[name]
        return path.read_bytes() == content + bytes(self._sizes[name] - len(content))

    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.name != "store")


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "UNIT_BYTES", 1 << 20)


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(tmp_path, capsys, {"data": SIZE, "logs": SIZE})


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.fault(78)
def test_a_signal_in_the_second_volume_and_the_same_command_again(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Restore._write_unit

    def interrupted(self: Restore, descriptor: int, unit: int) -> tuple[int, bytes]:
        if self.destination.name == "l.img" and unit == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, descriptor, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Restore, "_write_unit", interrupted)
        typed(tmp_path / "d.img", tmp_path / "l.img", exit_code=67)
    assert typed.holds("data", tmp_path / "d.img") and not (tmp_path / "l.img").exists()
    told = typed(tmp_path / "d.img", tmp_path / "l.img")
    assert typed.holds("data", tmp_path / "d.img") and typed.holds("logs", tmp_path / "l.img")
    data, logs = told["volumes"]
    assert (data["written_bytes"], data["resumed_bytes"], data["verified"]) == (0, SIZE, True)
    assert logs["resumed_bytes"] > 0
    assert typed.left() == ["d.img", "l.img"], "nothing is remembered of what is complete"
    typed(tmp_path / "d.img", tmp_path / "l.img", exit_code=64)


@pytest.mark.fault(78)
def test_whatever_call_a_restore_dies_at_the_same_command_completes_it(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, die_at = 0, 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == die_at:
                raise Crash
            return real(*arguments, **options)

        return wrapped

    monkeypatch.setattr(restore, "WORKERS", 1)
    for name in ("pwrite", "fsync", "ftruncate", "rename"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    monkeypatch.setattr(restore, "rename_new", wrap(restore.rename_new))
    places = tmp_path / "d.img", tmp_path / "l.img"
    typed(*places)
    total = calls
    for die_at in range(1, total + 1):
        for place in places:
            place.unlink()
        calls = 0
        with contextlib.suppress(Crash):
            typed(*places)
        assert calls >= die_at
        calls = -10_000
        typed(*places)
        assert typed.holds("data", places[0]) and typed.holds("logs", places[1]), die_at
        assert typed.left() == ["d.img", "l.img"], die_at


def test_what_was_completed_and_changed_since_is_not_taken_for_complete(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Restore.run

    def dies_at_the_second(self: Restore, *arguments: Any) -> Any:
        if self.destination.name == "l.img":
            raise Crash
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Restore, "run", dies_at_the_second)
        typed(tmp_path / "d.img", tmp_path / "l.img")
    booted = (tmp_path / "d.img").read_bytes()[:-512] + b"x" * 512
    (tmp_path / "d.img").write_bytes(booted)
    typed(tmp_path / "d.img", tmp_path / "l.img", exit_code=64)
    assert (tmp_path / "d.img").read_bytes() == booted
    typed(tmp_path / "d.img", tmp_path / "l.img", options=("--overwrite",))
    assert typed.holds("data", tmp_path / "d.img") and typed.holds("logs", tmp_path / "l.img")


@pytest.mark.fault(78)
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("second", ["x.img", "./x.img", "sub/../x.img", "link/x.img", "hard.img", "x.img.partial"])
def test_two_names_of_one_file_are_refused_before_anything_is_written(
    typed: Typed, tmp_path: Path, second: str, existing: bool
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    if existing or second == "hard.img":
        (tmp_path / "x.img").write_bytes(b"theirs")
        (tmp_path / "hard.img").hardlink_to(tmp_path / "x.img")
    before = typed.left()
    typed(tmp_path / "x.img", f"{tmp_path}/{second}", options=("--overwrite",), exit_code=69)
    assert typed.left() == before
    assert not existing or (tmp_path / "x.img").read_bytes() == b"theirs"


@pytest.mark.fault(78)
def test_names_that_differ_only_to_us_are_refused(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that makes no difference between upper and lower case."""
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more, **named: real(str(path).lower() if "img" in str(path) else path, *more, **named)
    )
    (tmp_path / "low").mkdir()
    typed(tmp_path / "low/x.img", tmp_path / "low/X.img", exit_code=69)
    assert not list((tmp_path / "low").iterdir())


@root_only
@pytest.mark.fault(78)
def test_names_by_way_of_a_bind_mount_are_refused(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "a", tmp_path / "b"], check=True)
    try:
        typed(tmp_path / "a/x.img", tmp_path / "b/x.img", exit_code=69)
    finally:
        subprocess.run(["umount", tmp_path / "b"], check=True)


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_a_name_that_is_taken_meanwhile_is_left_alone(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_renameat2: bool
) -> None:
    if not has_renameat2:
        monkeypatch.setattr(destination, "_libc", object())
    real = Restore._read_back

    def taken_meanwhile(self: Restore, descriptor: int) -> None:
        real(self, descriptor)
        (tmp_path / "d.img").write_bytes(b"theirs")

    with monkeypatch.context() as patch:
        patch.setattr(Restore, "_read_back", taken_meanwhile)
        typed(tmp_path / "d.img", exit_code=64)
    assert (tmp_path / "d.img").read_bytes() == b"theirs"
    told = typed(tmp_path / "d.img", options=("--overwrite",))
    assert told["volumes"][0]["written_bytes"] == 0
    assert typed.holds("data", tmp_path / "d.img")
    (tmp_path / "d.img").unlink()
    typed(tmp_path / "d.img")
    assert typed.holds("data", tmp_path / "d.img")


def test_a_thin_volume_needs_room_for_its_data_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = Typed(tmp_path, capsys, {"data": os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize + (1 << 30)})
    with Store.open(tmp_path / "store") as store:
        (point,) = store.points("shop")
        with store.view(point) as view:
            work = Restore(view, point.geometry[0], tmp_path / "d.img", identity=b"x", clock=ManualClock())
            prepare([work], tmp_path / "store")
            assert work.room_bytes() <= len(typed.contents["data"])
            work.close()
    assert typed.left() == []


def test_a_file_larger_than_the_file_system_can_hold_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "UNIT_BYTES", 1 << 50)
    typed = Typed(tmp_path, capsys, {"data": SIZE, "huge": 1 << 62})
    typed(tmp_path / "d.img", tmp_path / "h.img", exit_code=65)
    assert "File too large" in typed.said
    assert typed.left() == []


def test_data_that_finds_no_room_is_refused_before_anything_is_written(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "free_bytes", lambda folder: (3 << 20) // 2)  # for one of them, not for both
    typed(tmp_path / "d.img", tmp_path / "l.img", exit_code=65)
    assert typed.left() == []
    typed(tmp_path / "d.img")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A disk under a name of the kind that people use."""
    (tmp_path / "disks").mkdir()
    link = tmp_path / "disks/by-id"
    with loop_device(tmp_path / "disks/image", 8 << 20) as found:
        link.symlink_to(found)
        yield link


def test_a_device_is_written_by_way_of_its_link_when_that_is_asked_for(typed: Typed, device: Path) -> None:
    typed(device, exit_code=64)
    assert "--write-device" in typed.said
    typed(device, options=("--overwrite",), exit_code=64)
    told = typed(device, options=("--write-device",))
    assert told["volumes"][0]["path"] == str(device.resolve())
    assert device.read_bytes()[:SIZE] == typed.contents["data"] + bytes(SIZE - len(typed.contents["data"]))
    assert device.is_symlink()


@pytest.mark.fault(78)
def test_a_device_is_not_written_for_two_volumes(typed: Typed, device: Path) -> None:
    typed(device, device.resolve(), options=("--write-device",), exit_code=69)
    assert not any(device.read_bytes())


def test_a_link_to_a_file_is_not_followed(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "theirs.img").write_bytes(b"theirs")
    (tmp_path / "link.img").symlink_to("theirs.img")
    typed(tmp_path / "link.img", options=("--overwrite",), exit_code=63)
    assert (tmp_path / "theirs.img").read_bytes() == b"theirs"


def test_force_still_replaces_a_file_and_says_how_that_is_called_now(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "d.img").write_bytes(b"old")
    typed(tmp_path / "d.img", options=("--force",))
    assert "--overwrite" in typed.said
    assert typed.holds("data", tmp_path / "d.img")


def test_force_is_refused_where_it_would_mean_two_things(typed: Typed, tmp_path: Path, device: Path) -> None:
    (tmp_path / "d.img").write_bytes(b"old")
    typed(tmp_path / "d.img", device, options=("--force",), exit_code=69)
    assert "--overwrite" in typed.said and "--write-device" in typed.said
    typed(tmp_path / "l.img", device, options=("--force",))
