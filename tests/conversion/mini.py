"""A guest of a few files that answers to a conversion as Debian does, so that one takes seconds, not minutes.

Its update-initramfs, lsinitramfs and grub-mkconfig are a few lines of shell; Debian's own are run by test_drill.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from drengine.model.hardware import Card

VERSION = "6.1.0-mini"
UUID = "35465893-6b37-4323-b312-d38859a55d90"
DISK_BYTES, START = 64 << 20, 1 << 20
CARD = Card(name="eno1", mac="f2:00:00:00:00:01", addresses=("10.9.0.5/24",), gateway="10.9.0.1")
CHANGED = (
    *("/etc/fstab", "/etc/network/interfaces", "/etc/systemd/network/10-drengine-eno1.link", "/etc/default/grub"),
    *("/etc/initramfs-tools/modules", f"/boot/initrd.img-{VERSION}", "/boot/grub/grub.cfg"),
)
"""What a conversion writes."""
_MODULES = {
    "virtio_pci": "virtio",
    "virtio_blk": "block",
    "nvme": "nvme/host",
    "xen-blkfront": "block",
    "ahci": "ata",
}
_FILES = {
    "etc/fstab": "/dev/sda1 / ext4 errors=remount-ro 0 1\n",
    "etc/os-release": 'PRETTY_NAME="Mini Linux"\nID=debian\n',
    "etc/network/interfaces": "auto eno1\niface eno1 inet static\n    address 192.168.50.10/24\n",
    "etc/initramfs-tools/initramfs.conf": "MODULES=list\n",
    "etc/initramfs-tools/modules": "ahci\n",
    "etc/default/grub": 'GRUB_CMDLINE_LINUX="quiet"\n',
    "boot/grub/grub.cfg": f"linux /boot/vmlinuz-{VERSION} root=/dev/sda1 quiet\n",
    f"boot/vmlinuz-{VERSION}": "kernel",
    f"lib/modules/{VERSION}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
    "sbin/ifup": "",
}
_PROGRAMS = {
    "usr/sbin/update-initramfs": """#!/bin/sh
for name in $(grep -v '^#' /etc/initramfs-tools/modules); do
  find "/lib/modules/$3" -name "$(echo "$name" | sed 's/_/[-_]/g').ko"
done | sort >"/boot/initrd.img-$3.new" && mv "/boot/initrd.img-$3.new" "/boot/initrd.img-$3"
""",
    "usr/bin/lsinitramfs": '#!/bin/sh\ncat "$1"\n',
    "usr/sbin/grub-mkconfig": f"""#!/bin/sh
. /etc/default/grub
echo "linux /boot/vmlinuz-{VERSION} root=UUID={UUID} $GRUB_CMDLINE_LINUX" >"$2"
""",
}


def needs_helper() -> None:
    """Skip where no helper machine can be made."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    for program in ("qemu-system-x86_64", "qemu-nbd", "busybox", "mke2fs", "debugfs", "blkid"):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"no {program}")
    if not list(Path("/boot").glob("vmlinuz-*-cloud-*")):
        pytest.skip("no Debian kernel in /boot")


def make_mini(disk: Path, change: Callable[[Path], None] = lambda tree: None) -> Path:
    """A disk with one partition that holds the guest; `change` is done to its files before."""
    with tempfile.TemporaryDirectory(prefix="mini-") as made:
        tree = Path(made)
        for folder in ("bin", "dev", "proc", "sys", "run", "tmp", "var/tmp", "root"):
            (tree / folder).mkdir(parents=True)
        for name, text in (*_FILES.items(), *_PROGRAMS.items()):
            file = tree / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if name in _PROGRAMS else 0o644)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, tree / "bin/busybox")
        for name in ("sh", "find", "grep", "sed", "sort", "mv", "cat", "env"):
            (tree / "bin" / name).symlink_to("busybox")
        lines = []
        for name, place in _MODULES.items():
            file = tree / f"lib/modules/{VERSION}/kernel/drivers/{place}/{name}.ko"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
            lines.append(f"{file.relative_to(tree / f'lib/modules/{VERSION}')}:\n")
        (tree / f"lib/modules/{VERSION}/modules.dep").write_text("".join(lines))
        change(tree)
        with disk.open("wb") as file_of_disk:
            file_of_disk.truncate(DISK_BYTES)
        _run("sfdisk", "-q", str(disk), given=f"label: dos\nstart={START // 512}, type=83, bootable\n")
        features = ("-t", "ext4", "-b", "4096", "-U", UUID, "-d", str(tree), "-E", f"offset={START}")
        _run("mke2fs", "-q", "-F", *features, str(disk), str((DISK_BYTES - START) // 4096))
    return disk


def content(disk: Path, path: str) -> bytes:
    """A file of the guest, read past everything that a conversion is made of."""
    with tempfile.NamedTemporaryFile() as copy:
        _run("debugfs", "-R", f"dump {path} {copy.name}", f"{disk}?offset={START}")
        return Path(copy.name).read_bytes()


def _run(*argv: str, given: str = "") -> None:
    environment = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(argv, input=given, text=True, check=True, env=environment, capture_output=True)
