"""Who uses a disk that a failback needs: its mounts, innermost first, and whoever works there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from drengine_agent.fencing.users import Users, users_of
from tests.system.disks import run, skip_unless_disks_can_be_attached


def test_a_disk_names_its_mounts_and_who_works_there_in_the_order_in_which_they_stop(tmp_path: Path) -> None:
    skip_unless_disks_can_be_attached()
    image, outer, inner = tmp_path / "disk.img", tmp_path / "a", tmp_path / "a/b"
    image.write_bytes(bytes(16 << 20))
    run("mkfs.ext4", "-q", image)
    device = Path(run("losetup", "--find", "--show", image).strip())
    outer.mkdir()
    try:
        assert users_of(device) == Users(), "nobody uses it yet"
        run("mount", device, outer)
        inner.mkdir()
        run("mount", "--bind", outer, inner)
        program = "import sys; kept = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", program, outer / "file"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = users_of(device)
            process.kill()
        assert found.mounts == (str(inner), str(outer))
        assert len(found.units) == 1
        assert found.order.endswith(f"then unmount {inner}, then unmount {outer}")
    finally:
        subprocess.run(["umount", inner], check=False)
        subprocess.run(["umount", outer], check=False)
        run("losetup", "--detach", device)


def test_a_mount_in_another_namespace_is_named_because_no_unmounting_here_ends_it(tmp_path: Path) -> None:
    skip_unless_disks_can_be_attached()
    image, place = tmp_path / "disk.img", tmp_path / "a"
    image.write_bytes(bytes(16 << 20))
    run("mkfs.ext4", "-q", image)
    device = Path(run("losetup", "--find", "--show", image).strip())
    place.mkdir()
    try:
        script = f"mount {device} {place} && echo there && read done"
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            found = users_of(device)
            process.kill()
        assert (found.units, found.mounts) == ((), ())
        (keeper,) = found.elsewhere
        assert keeper in found.order
    finally:
        run("losetup", "--detach", device)


def test_of_a_file_nothing_is_known(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(b"")
    assert users_of(file) == users_of(tmp_path / "nowhere") == Users()
    assert Users().order == ""
