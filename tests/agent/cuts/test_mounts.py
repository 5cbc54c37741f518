"""Which file systems a freeze must cover: once each, inner ones first, whatever is mounted where."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine_agent.cuts.freezer import Freezer
from drengine_agent.cuts.hooks import Hooks
from drengine_agent.cuts.mounts import file_systems_on
from drengine_agent.cuts.still import Stillness
from tests.agent.cuts.disks import file_system, needs_root, run, writes_within
from tests.agent.cuts.test_freezer import freezer

pytestmark = needs_root


def test_a_file_system_mounted_in_several_places_is_frozen_once(tmp_path: Path) -> None:
    with file_system(tmp_path / "a") as (device, place):
        (place / "inside").mkdir()
        again, bound = tmp_path / "again", tmp_path / "bound"
        for each in (again, bound):
            each.mkdir()
        run("mount", device, again)
        run("mount", "--bind", place / "inside", bound)
        try:
            found = [each.at for each in file_systems_on([device])]
            assert found == [place]
            with freezer() as held:
                held.freeze(found)
                assert held.thaw().held
        finally:
            run("umount", bound)
            run("umount", again)


def test_a_place_hidden_by_another_mount_is_not_taken_for_what_hides_it(tmp_path: Path) -> None:
    with file_system(tmp_path / "a") as (below, place), file_system(tmp_path / "b") as (above, other):
        run("mount", above, place)
        try:
            assert [each.at for each in file_systems_on([above])] == [other]
            assert file_systems_on([below]) == []
            assert [each.at for each in file_systems_on([above, below])] == [other]
        finally:
            subprocess.run(["umount", place], check=False)


def test_what_is_read_only_or_can_not_be_frozen_is_left_out(tmp_path: Path) -> None:
    with file_system(tmp_path) as (device, place):
        run("mount", "-o", "remount,ro", place)
        assert file_systems_on([device]) == []


def test_subvolumes_of_btrfs_are_one_file_system(tmp_path: Path) -> None:
    with file_system(tmp_path / "a", "btrfs") as (device, place):
        run("btrfs", "subvolume", "create", place / "sub")
        other = tmp_path / "sub"
        other.mkdir()
        run("mount", "-o", "subvol=sub", device, other)
        try:
            assert [each.at for each in file_systems_on([device])] == [place]
        finally:
            run("umount", other)


@contextlib.contextmanager
def elsewhere(device: Path, place: Path) -> Iterator[None]:
    """The device mounted at a place that only a process with mounts of its own sees."""
    told = f"mount {shlex.quote(str(device))} {shlex.quote(str(place))} && echo mounted && exec cat"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"mounted\n"
        yield
    finally:
        process.stdin.close()
        process.wait(10.0)
        process.stdout.close()


@contextlib.contextmanager
def unmounted(folder: Path, kind: str = "ext4") -> Iterator[tuple[Path, Path]]:
    """(device, place) of a file system that is not mounted."""
    with file_system(folder, kind) as (device, place):
        run("umount", place)
        try:
            yield device, place
        finally:
            run("mount", device, place)


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_what_only_another_namespace_has_mounted_is_frozen_there(tmp_path: Path, kind: str) -> None:
    with unmounted(tmp_path, kind) as (device, place), elsewhere(device, place):
        (found,) = file_systems_on([device])
        assert found.kind == kind
        with freezer() as held:
            held.settle([found.at])
            held.freeze([found.at])
            assert not writes_within(found.at, 0.3)
            assert held.thaw().held
        assert writes_within(found.at, 10.0)


def test_what_is_mounted_here_and_elsewhere_is_frozen_once_by_our_own_path(tmp_path: Path) -> None:
    with file_system(tmp_path) as (device, place), elsewhere(device, place.parent):
        assert [each.at for each in file_systems_on([device])] == [place]


def test_a_single_file_that_is_mounted_somewhere_is_no_place_to_freeze(tmp_path: Path) -> None:
    with file_system(tmp_path / "a") as (device, place):
        (place / "inside").touch()
        bound = tmp_path / "bound"
        bound.touch()
        run("mount", "--bind", place / "inside", bound)
        try:
            assert [each.at for each in file_systems_on([device])] == [place]
            run("umount", place)
            assert file_systems_on([device]) == []
        finally:
            run("umount", bound)
            run("mount", device, place)


def test_a_device_on_which_nothing_is_mounted_anywhere_needs_no_freeze(tmp_path: Path) -> None:
    with unmounted(tmp_path) as (device, _):
        freezer_ = Freezer(longest_seconds=1.0)
        stillness = Stillness(freezer_, Hooks(), lambda: [each.at for each in file_systems_on([device])])
        try:
            stillness.start()
            with stillness.held(application=False) as still:
                pass
            assert (still.held, still.seconds) == (True, 0.0)
        finally:
            stillness.close()
