"""The kernel's list of mounts: escapes, stacked mounts, sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from drengine.linux.mounts import mount_at, read_mounts
from tests.agent.cuts.disks import file_system, needs_root, run

LISTED = r"""
25 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
40 25 7:3 / /srv/a\040b\011c\012d\134e rw,nosuid shared:7 master:2 - xfs /dev/loop3 ro,noquota
41 25 0:52 /@home /home rw - btrfs /dev/vdb rw,subvolid=256,subvol=/@home
42 25 0:53 / /mnt rw - tmpfs  rw,size=4k
43 42 7:4 / /mnt rw - ext4 /dev/loop4 rw
"""


def listed(folder: Path) -> Path:
    made = folder / "mountinfo"
    made.write_text(LISTED.lstrip())
    return made


@pytest.mark.fault(67)
def test_names_are_unescaped_and_optional_fields_passed_over(tmp_path: Path) -> None:
    root, spaced, home, *_ = read_mounts(listed(tmp_path))
    assert (root.at, root.super_options) == (Path("/"), ("rw", "errors=remount-ro"))
    assert (spaced.at, spaced.device, spaced.kind) == (Path("/srv/a b\tc\nd\\e"), (7, 3), "xfs")
    assert (home.root, home.source, home.device) == ("/@home", "/dev/vdb", (0, 52))


def test_of_several_mounts_in_one_place_the_topmost_counts(tmp_path: Path) -> None:
    found = mount_at(Path("/mnt"), read_mounts(listed(tmp_path)))
    assert found is not None
    assert found.source == "/dev/loop4"
    assert mount_at(Path("/nowhere"), read_mounts(listed(tmp_path))) is None


@needs_root
def test_the_block_device_of_btrfs_is_found_by_its_source(tmp_path: Path) -> None:
    with file_system(tmp_path, "btrfs") as (device, place):
        mount = mount_at(place, read_mounts())
        assert mount is not None
        assert mount.device[0] == 0
        number = run("lsblk", "--noheadings", "--nodeps", "--output", "MAJ:MIN", device).strip()
        assert mount.block_device() == tuple(int(part) for part in number.split(":"))


@needs_root
@pytest.mark.fault(67)
def test_a_mount_over_another_is_the_one_that_is_seen(tmp_path: Path) -> None:
    with file_system(tmp_path / "a b") as (_, place), file_system(tmp_path / "c") as (above, _other):
        run("mount", above, place)
        try:
            mount = mount_at(place, read_mounts())
            assert mount is not None
            assert mount.source == str(above)
        finally:
            subprocess.run(["umount", place], check=False)
        mount = mount_at(place, read_mounts())
        assert mount is not None
        assert mount.source != str(above)
