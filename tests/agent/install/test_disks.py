"""Which disks hold what is mounted: through partitions, LVM, LUKS, md and btrfs, by names that last."""

from __future__ import annotations

from pathlib import Path

import pytest

from drengine_agent.install import wishes as module
from drengine_agent.install.disks import Disk, disks, mounted_disks
from drengine_agent.install.wishes import Wishes

DISKS = {
    "vda": "252:0",
    "vdb": "252:16",
    "vdc": "252:32",
    "vdd": "252:48",
    "vde": "252:64",
    "loop0": "7:0",
    "sr0": "11:0",
}
PARTITIONS = {"vda1": ("vda", "252:1"), "vda2": ("vda", "252:2")}
STACKED = {"dm-0": ("253:0", ["vda2"]), "dm-1": ("253:1", ["dm-0"]), "md0": ("9:0", ["vdb", "vdc"])}
MOUNTS = """\
22 1 253:1 / / rw - ext4 /dev/mapper/root rw
23 22 252:1 / /boot rw - vfat /dev/vda1 rw
24 22 9:0 / /srv rw - xfs /dev/md0 rw
25 22 0:41 / /data rw - btrfs /dev/vdd rw
26 22 7:0 / /snap rw - squashfs /dev/loop0 ro
27 22 0:50 / /run rw - tmpfs tmpfs rw
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a host: LUKS on LVM's place on vda, md over vdb and vdc, btrfs over vdd and vde."""
    sysfs, by_number = tmp_path / "sys/block", tmp_path / "sys/dev/block"
    by_number.mkdir(parents=True)
    nodes: dict[str, Path] = {}

    def node(path: Path, number: str) -> None:
        path.mkdir(parents=True)
        (path / "dev").write_text(number + "\n")
        (path / "size").write_text("2097152\n")
        (path / "slaves").mkdir()
        (by_number / number).symlink_to(path)
        nodes[path.name] = path

    for name, number in DISKS.items():
        node(sysfs / name, number)
    for name, (disk, number) in PARTITIONS.items():
        node(sysfs / disk / name, number)
        (sysfs / disk / name / "partition").write_text("1\n")
    for name, (number, members) in STACKED.items():
        node(sysfs / name, number)
        for each in members:
            (sysfs / name / "slaves" / each).symlink_to(nodes[each])
    (sysfs / "sr0/size").write_text("0\n")
    btrfs = tmp_path / "sys/fs/btrfs/0f0f/devices"
    btrfs.mkdir(parents=True)
    for name in ("vdd", "vde"):
        (btrfs / name).symlink_to(nodes[name])
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    by_id = tmp_path / "dev/disk/by-id"
    by_id.mkdir(parents=True)
    for name, to in (("virtio-one", "../../vda"), ("virtio-one-part1", "../../vda1"), ("dm-name-root", "../../dm-1")):
        (by_id / name).symlink_to(to)
    return tmp_path


@pytest.fixture(autouse=True)
def btrfs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs shows a number of its own; which device was mounted is asked of /dev, where this host has no nodes."""
    from drengine.linux.mounts import Mount

    real = Mount.block_device

    def block_device(self: Mount, root: Path = Path("/")) -> tuple[int, int] | None:
        return (252, 48) if self.source == "/dev/vdd" else real(self, root)

    monkeypatch.setattr(Mount, "block_device", block_device)


def test_every_disk_beneath_a_mounted_file_system_is_found_and_no_other(root: Path) -> None:
    assert {each.name: set(each.mounted) for each in mounted_disks(root)} == {
        "vda": {"/", "/boot"},
        "vdb": {"/srv"},
        "vdc": {"/srv"},
        "vdd": {"/data"},
        "vde": {"/data"},
    }
    (root / "proc/self/mountinfo").write_text(MOUNTS.splitlines()[1] + "\n")
    assert [each.name for each in mounted_disks(root)] == ["vda"]
    assert [each.name for each in disks(root)] == ["vda", "vdb", "vdc", "vdd", "vde"], "no medium, memory, stacked"


def test_a_disk_is_named_by_what_lasts_where_udev_knows_it(root: Path) -> None:
    paths = {each.name: str(each.path) for each in disks(root)}
    assert (paths["vda"], paths["vdb"]) == ("/dev/disk/by-id/virtio-one", "/dev/vdb")


def test_a_disk_that_is_protected_already_keeps_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a reboot the kernel may call it otherwise; and a disk that came later is added."""
    for name in ("vda", "vdb"):
        (tmp_path / name).touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "vda")
    found = [Disk(name, tmp_path / name, 1 << 30, ("/",)) for name in ("vda", "vdb")]
    monkeypatch.setattr(module, "mounted_disks", lambda: found)
    before = {"source": "shop", "volume": [{"name": "system", "path": str(tmp_path / "by-id")}]}
    values = Wishes(all_disks=True).values(before, is_enrolled=False)
    assert values["volume"] == [*before["volume"], {"name": "vdb", "path": str(tmp_path / "vdb")}]
    assert Wishes(all_disks=True).values(values, is_enrolled=False) == values
