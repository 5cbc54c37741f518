"""What a conversion makes of the guest's texts: every name stable, all else as it was, twice the same."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.conversion.boot import convert_command_line, convert_entries, convert_grub_defaults, names_hardware
from drengine.conversion.devices import Device, Devices, read_devices, stems_of
from drengine.conversion.drivers import (
    DRIVERS,
    GuestKernel,
    dracut_files,
    initramfs_tools_files,
    module_name,
)
from drengine.conversion.fstab import convert_fstab, read_fstab
from drengine.conversion.guest import Recorded, read_record
from drengine.conversion.values import Change, bounded
from drengine.model.hardware import Machine
from drengine.model.inventory import FstabLine, Inventory, SourceDisk

UUID = "35465893-6b37-4323-b312-d38859a55d90"
ROOT = Device("/dev/vda2", 0, 2, "ext4", UUID, "root", "11-02")
ALL = (
    Device("/dev/vda", 0, 0, table="gpt"),
    Device("/dev/vda1", 0, 1, "vfat", "AB12-34CD", "EFI", "11-01"),
    ROOT,
    Device("/dev/vdb1", 1, 1, "xfs", "77-data", "data"),
    Device("/dev/vdb2", 1, 2, "", "", "", "22-02"),
    Device("/dev/mapper/vg-my--root", -1, 0, "ext4", "99-lv"),
)
DEVICES = Devices(ALL, {"sda": 0, "sdb": 1, "ata-INTEL_1": 0, "nvme0n1": 0})

NAMES = {
    "/dev/sda2": "/dev/vda2",
    "/dev/sda": "/dev/vda",
    "/dev/nvme0n1p1": "/dev/vda1",
    "/dev/disk/by-id/ata-INTEL_1-part2": "/dev/vda2",
    f"UUID={UUID}": "/dev/vda2",
    f'UUID="{UUID.upper()}"': "/dev/vda2",
    "LABEL=data": "/dev/vdb1",
    "PARTUUID=11-01": "/dev/vda1",
    "/dev/disk/by-uuid/AB12-34CD": "/dev/vda1",
    "/dev/vg/my-root": "/dev/mapper/vg-my--root",
    "/dev/mapper/vg-my--root": "/dev/mapper/vg-my--root",
    "/dev/sdc1": None,
    "/dev/sda7": None,
    "UUID=": None,
    "UUID=gone": None,
    "/dev/vdb1": None,  # the helper's own name means nothing in the guest
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_guest_means_one_device(name: str) -> None:
    found = DEVICES.named(name)
    assert (found.path if found else None) == NAMES[name]


FSTAB = """# <file system> <mount point>
/dev/sda2\t/               ext4    errors=remount-ro 0       1   # the root
/dev/sda1 /boot/efi vfat umask=0077 0 1
LABEL=data /srv xfs defaults
  /dev/sdb2   /raw\\040disk   auto   noatime   0  0
/dev/sdc1 /lost ext4 defaults 0 2
UUID=gone none swap sw 0 0
/dev/sdd1 /never ext4 noauto 0 0
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
nas:/share /share nfs defaults 0 0
tmpfs /tmp tmpfs size=1G

/dev/mapper/vg-my--root /opt ext4 defaults 0 2
broken
"""
AFTER = f"""# <file system> <mount point>
UUID={UUID}\t/               ext4    errors=remount-ro 0       1   # the root
UUID=AB12-34CD /boot/efi vfat umask=0077 0 1
LABEL=data /srv xfs defaults
  PARTUUID=22-02   /raw\\040disk   auto   noatime   0  0
/dev/sdc1 /lost ext4 defaults,nofail 0 2
UUID=gone none swap sw,nofail 0 0
/dev/sdd1 /never ext4 noauto 0 0
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
nas:/share /share nfs defaults 0 0
tmpfs /tmp tmpfs size=1G

/dev/mapper/vg-my--root /opt ext4 defaults 0 2
broken
"""


def test_an_fstab_names_each_device_by_its_own_id_and_waits_for_none_that_is_gone() -> None:
    after, notes = convert_fstab(FSTAB, DEVICES, ROOT)
    assert after == AFTER
    assert [note.split(" ")[0] for note in notes] == ["/dev/sdc1", "UUID=gone"]
    assert convert_fstab(after, DEVICES, ROOT) == (after, [])


@given(st.text(alphabet="/devsabUI=D #\t\n\\0145ext4,-", max_size=200))
def test_any_text_in_place_of_an_fstab_is_converted_once(text: str) -> None:
    once, _ = convert_fstab(text, DEVICES, ROOT)
    assert convert_fstab(once, DEVICES, ROOT)[0] == once
    assert len(once.split("\n")) == len(text.split("\n"))
    assert [line.at for line in read_fstab(once)] == [line.at for line in read_fstab(text)]


def lines(*devices: str) -> list[FstabLine]:
    return [FstabLine(device=device, at=at, kind="ext4") for device, at in zip(devices, ("/", "/srv"), strict=False)]


def test_what_the_guest_called_a_disk_is_known_by_its_inventory_or_its_root() -> None:
    disks = (
        SourceDisk(device="sdb", size_bytes=1, volume="system"),
        SourceDisk(device="sda", size_bytes=1, volume="data"),
        SourceDisk(device="sdc", size_bytes=1),
    )
    inventory = Inventory(taken_ns=1, disks=disks)
    two = ["system", "data"]
    assert stems_of(lines("/dev/sdb2", "/dev/sda1"), ROOT, two, inventory) == {"sdb": 0, "sda": 1}
    assert stems_of(lines("/dev/sda2", "/dev/sdb1"), ROOT, two, None) == {"sda": 0}
    assert stems_of(lines("/dev/sda1", "/dev/sdb1"), ROOT, two, None) == {}, "another partition: another disk"
    assert stems_of(lines("UUID=x", "/dev/hda3"), ROOT, ["system"], None) == {"hda": 0}


def test_the_kernel_finds_its_root_by_an_id_and_talks_on_the_serial_console() -> None:
    line = "BOOT_IMAGE=/vmlinuz root=/dev/sda2 ro resume=/dev/sdb1 quiet"
    after = convert_command_line(line, DEVICES, "ttyS0")
    assert (
        after == f"BOOT_IMAGE=/vmlinuz root=UUID={UUID} ro resume=UUID=77-data quiet console=tty0 console=ttyS0,115200"
    )
    assert convert_command_line(after, DEVICES, "ttyS0") == after
    kept = "root=/dev/mapper/vg-root console=ttyS0,9600n8"
    assert convert_command_line(kept, DEVICES, "ttyS0") == kept


GRUB = """# comment
GRUB_DEFAULT=0
GRUB_CMDLINE_LINUX_DEFAULT="quiet resume=/dev/sda2"
GRUB_CMDLINE_LINUX=''
GRUB_DISABLE_LINUX_UUID="true"
GRUB_TERMINAL_OUTPUT=gfxterm
"""
GRUB_AFTER = f"""# comment
GRUB_DEFAULT=0
GRUB_CMDLINE_LINUX_DEFAULT="quiet resume=UUID={UUID}"
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
"""


def test_grub_is_told_once() -> None:
    after = convert_grub_defaults(GRUB, DEVICES, "ttyS0")
    assert after == GRUB_AFTER
    assert convert_grub_defaults(after, DEVICES, "ttyS0") == after
    assert convert_grub_defaults("", DEVICES, "ttyS0").count("GRUB_CMDLINE_LINUX=") == 1


@given(
    st.lists(st.sampled_from([*GRUB.splitlines(), "GRUB_TERMINAL=serial", 'export GRUB_CMDLINE_LINUX=a"b', "x=$(y)"]))
)
def test_any_settings_of_grub_are_converted_once(given_lines: list[str]) -> None:
    once = convert_grub_defaults("\n".join(given_lines) + "\n", DEVICES, "ttyS0")
    assert convert_grub_defaults(once, DEVICES, "ttyS0") == once


def test_entries_that_hold_a_command_line_are_mended_and_nothing_else() -> None:
    entry = "title Linux\noptions root=/dev/sda2 ro\nlinux /vmlinuz\ninitrd /initrd\n"
    after = convert_entries(entry, DEVICES, "ttyS0")
    assert after == entry.replace("root=/dev/sda2 ro", f"root=UUID={UUID} ro console=tty0 console=ttyS0,115200")
    assert names_hardware(entry) and not names_hardware(after)
    assert convert_entries("set root='hd0,gpt2'\n", DEVICES, "ttyS0") == "set root='hd0,gpt2'\n"


LISTING = """device /dev/vda 0 0
PTTYPE=gpt
device /dev/vda1 0 1
TYPE=vfat
UUID=AB12-34CD
LABEL=EFI\\ system
PART_ENTRY_TYPE=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
device /dev/vdb x 1
TYPE=ext4
device /dev/mapper/vg-root -1 0
TYPE=ext4
UUID=$(reboot)
"""


def test_a_listing_of_devices_is_read_as_data() -> None:
    whole, esp, logical = read_devices(LISTING)
    assert (whole.table, esp.kind, esp.label, esp.number) == ("gpt", "vfat", "EFI system", 1)
    assert esp.part_type == "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    assert (logical.disk, logical.uuid) == (-1, ""), "what is no id is none"


KERNEL = GuestKernel("6.1.0", "/boot/initrd.img-6.1.0", frozenset(DRIVERS), frozenset({"nvme"}))


def test_a_kernel_lacks_what_its_initramfs_does_not_hold() -> None:
    assert "nvme" not in KERNEL.missing(), "built in"
    held = ("usr/lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko.zst", "lib/modules/6/kernel/xen-blkfront.ko")
    assert not {"virtio_blk", "xen_blkfront"} & set(GuestKernel("6", "x", KERNEL.modules, frozenset(), held).missing())
    assert GuestKernel("6", "", frozenset({"ahci"}), frozenset()).cannot(Machine(disk_bus="nvme")) == ("nvme",)
    assert KERNEL.cannot(Machine(disk_bus="nvme")) == ()
    assert module_name("kernel/drivers/block/xen-blkfront.ko.xz") == "xen_blkfront"


def test_initramfs_tools_are_told_what_is_missing_and_a_dependent_build_is_ended() -> None:
    before = {
        "/etc/initramfs-tools/initramfs.conf": "MODULES=most\n",
        "/etc/initramfs-tools/conf.d/driver-policy": "MODULES=dep\n",
        "/etc/initramfs-tools/modules": "# mine\nvirtio-blk opt=1\nahci",
    }
    made = initramfs_tools_files(before, [KERNEL])
    assert made["/etc/initramfs-tools/conf.d/zz-drengine"].endswith("MODULES=most\n")
    text = made["/etc/initramfs-tools/modules"]
    assert text.startswith("# mine\nvirtio-blk opt=1\nahci\n") and "\nvirtio_pci\n" in text
    assert "\nvirtio_blk\n" not in text and "\nnvme\n" not in text
    assert not initramfs_tools_files({**before, **made}, [KERNEL])


def test_dracut_keeps_the_drivers_of_the_old_disks() -> None:
    held = ("lib/modules/6/kernel/drivers/ata/ata_piix.ko.xz", "lib/modules/6/kernel/fs/xfs/xfs.ko.xz")
    kernel = GuestKernel("6", "/boot/initramfs-6.img", KERNEL.modules, frozenset(), held)
    (text,) = dracut_files([kernel]).values()
    assert " ata_piix " in text and " virtio_blk " in text and "xfs" not in text


@given(st.lists(st.text(max_size=20), max_size=5), st.data())
def test_of_a_record_that_was_cut_off_each_whole_line_counts(words: list[str], data: st.DataObject) -> None:
    told = [Recorded("shop-1", (Change(what="fstab", path="/etc/fstab", after=bounded(word)),)) for word in words]
    lines = [msgspec.json.encode(each).decode() for each in told]
    text = "".join(f"{line}\n" for line in lines)
    cut = data.draw(st.integers(0, len(text)))
    read = list(read_record(text[:cut]))
    whole = text[:cut].count("\n")
    assert read[:whole] == told[:whole] and len(read) <= whole + 1 and read == told[: len(read)]


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"changes": 1}', "\udcff", '{"changes": [{"what": "a"}]}', "[" * 5000]
)
def test_a_record_of_any_words_is_read_without_a_fault(text: str) -> None:
    assert list(read_record(text)) in ([], [Recorded()])
