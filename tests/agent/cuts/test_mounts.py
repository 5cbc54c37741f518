"""Which file systems a freeze must cover: once each, inner ones first, whatever is mounted where."""

from __future__ import annotations

import subprocess
from pathlib import Path

from drengine_agent.cuts.mounts import file_systems_on
from tests.agent.cuts.disks import file_system, needs_root, run
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
