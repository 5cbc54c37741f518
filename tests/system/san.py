"""Machines that boot from a SAN: iPXE in QEMU logs in to an iSCSI target and starts what lies on its LUN.

    python -m tests.system.san on FOLDER
    python -m tests.system.san off FOLDER

is the switch of such a machine, as a runbook calls it; it learns the LUN from DRENGINE_ROOT_PATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from drengine.process import end_marked, start_marked

MARK = "DR_TEST_SAN"
INITIATOR = "iqn.1993-08.org.debian:01:san"
USER, SECRET = "shop", "a-secret-of-some-length"
CACHE = Path(os.environ.get("DRENGINE_TEST_IMAGES", "/var/cache/drengine-test-images"))
_MIRROR = "http://deb.debian.org/debian"
_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
_IPXE, _CODE, _VARIABLES = Path("/boot/ipxe.efi"), Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), "OVMF_VARS_4M.fd"
BIOS, UEFI = "bios", "uefi"
_FIRST_SECTOR, _ESP_SECTORS = 2048, 64 << 11
_PACKAGES = "linux-image-cloud-amd64,initramfs-tools,zstd,kmod,systemd-sysv,udev,open-iscsi,iproute2,grub-efi-amd64-bin"
_CONFIGURE = r"""#!/bin/sh
set -e
root=$1
echo 'LABEL=root / ext4 errors=remount-ro,_netdev 0 1' > $root/etc/fstab
echo 'MODULES=list' > $root/etc/initramfs-tools/conf.d/test
printf 'virtio_pci\nvirtio_net\nsd_mod\next4\n' >> $root/etc/initramfs-tools/modules
echo san > $root/etc/hostname
cat > $root/etc/systemd/system/marker.service <<'END'
[Service]
ExecStart=/bin/sh -c 'n=$$(tail -n 1 /markers || echo 0); while :; do n=$$((n+1)); echo $$n >> /markers; \
 sync /markers; echo "MARKER $$n" >/dev/console; sleep 0.2; done'
[Install]
WantedBy=multi-user.target
END
chroot $root systemctl enable marker.service
chroot $root systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service fstrim.timer
rm -rf $root/var/lib/apt/lists/* $root/var/cache/apt/*.bin
chroot $root update-initramfs -u -k all
cat > $root/tmp/grub.cfg <<'END'
insmod part_msdos
insmod ext2
search --no-floppy --label root --set=root
linux /vmlinuz root=LABEL=root rw console=ttyS0 iscsi_auto net.ifnames=0 panic=5
initrd /initrd.img
boot
END
chroot $root grub-mkstandalone -O x86_64-efi -o /boot/bootx64.efi boot/grub/grub.cfg=/tmp/grub.cfg
"""
_DEBIAN = """SERIAL 0
DEFAULT debian
PROMPT 0
LABEL debian
  LINUX /vmlinuz
  INITRD /initrd.img
  APPEND root=LABEL=root rw console=ttyS0 iscsi_auto net.ifnames=0 panic=5
"""
_SCRIPT = """#!ipxe
set initiator-iqn {initiator}
set username {user}
set password {secret}
sanboot {root_path}
"""


def root_bytes(firmware: str) -> int:
    """Where the root's partition begins."""
    return (_FIRST_SECTOR + (_ESP_SECTORS if firmware == UEFI else 0)) * 512


def missing_for_san(*more: str, firmware: str = BIOS) -> str:
    """What such a machine can't be made or booted without; empty when all is there."""
    if os.geteuid() != 0:
        return "only root can make a disk that boots"
    programs = ("qemu-system-x86_64", "extlinux", "tgtd", "nbdfuse", *more)
    wanted = {**{name: shutil.which(name) for name in programs}, "mbr.bin": _MBR.exists()}
    wanted["ipxe-qemu"] = Path("/usr/lib/ipxe/qemu/pxe-virtio.rom").exists()
    if firmware == UEFI:
        wanted |= {str(file): file.exists() for file in (_IPXE, _CODE)}
    return ", ".join(name for name, there in wanted.items() if not there)


def make_disk(path: Path, size_bytes: int, loader: str, tree: Path | None = None, *, firmware: str = BIOS) -> None:
    """A disk that boots: its root is its last partition, an ext4.

    By BIOS extlinux is told `loader`; by UEFI what the tree has as /boot/bootx64.efi is started, from the EFI system
    partition before the root. `tree`: a tar of the rest.
    """
    first = root_bytes(firmware) // 512
    partitions = [(0x80, 0x83, first, size_bytes // 512 - first)]
    if firmware == UEFI:
        partitions.insert(0, (0, 0xEF, _FIRST_SECTOR, _ESP_SECTORS))
    with path.open("wb") as file:
        file.truncate(size_bytes)
        table = b"".join(struct.pack("<B3xB3xII", *each) for each in partitions).ljust(64, b"\0")
        file.write(_MBR.read_bytes()[:440].ljust(446, b"\0") + table + b"\x55\xaa")
    with tempfile.TemporaryDirectory() as mount, ExitStack() as cleanup:
        loop = _run("losetup", "-f", "--show", "-o", str(first * 512), str(path)).strip()
        cleanup.callback(_run, "losetup", "-d", loop)
        _run("mkfs.ext4", "-q", "-L", "root", "-O", "^64bit,^metadata_csum", loop)
        _run("mount", loop, mount)
        cleanup.callback(_run, "umount", mount)
        if tree is not None:
            _run("tar", "-xf", str(tree), "-C", mount)
        boot = Path(mount) / "boot"
        boot.mkdir(exist_ok=True)
        if firmware == UEFI:
            _make_esp(path, boot / "bootx64.efi", _ESP_SECTORS)
        else:
            (boot / "extlinux.conf").write_text(loader)
            _run("extlinux", "--install", str(boot))


def _make_esp(disk: Path, program: Path, sectors: int, *, first: int = _FIRST_SECTOR) -> None:
    """An EFI system partition on a disk, from which firmware starts a program unasked."""
    at = f"{disk}@@{first * 512}"
    _run("mformat", "-i", at, "-F", "-h", "64", "-s", "32", "-T", str(sectors), "::")
    _run("mmd", "-i", at, "::/EFI", "::/EFI/BOOT")
    _run("mcopy", "-i", at, str(program), "::/EFI/BOOT/BOOTX64.EFI")


def debian_disk(firmware: str = BIOS) -> Path:
    """A Debian that counts on its disk, and finds it over iSCSI; made once and kept. Not to be written."""
    key = hashlib.sha256(repr((_PACKAGES, _CONFIGURE, _DEBIAN, firmware)).encode()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    disk = CACHE / f"san-{firmware}-{key}.raw"
    with (CACHE / "san.lock").open("w") as lock, tempfile.TemporaryDirectory() as work:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.exists():
            tree, hook, making = Path(work) / "tree.tar", Path(work) / "configure", disk.with_suffix(".making")
            hook.write_text(_CONFIGURE)
            hook.chmod(0o755)
            options = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")]
            options += [f"--customize-hook={hook}", f"--include={_PACKAGES}", "--format=tar", "--variant=minbase"]
            options += ['--aptopt=APT::Install-Recommends "false"']
            argv = ["mmdebstrap", *options, "bookworm", str(tree), _MIRROR]
            made = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no Debian image can be made here (is the mirror reachable?): {made.stderr[-400:]}")
            make_disk(making, 1200 << 20, _DEBIAN, tree, firmware=firmware)
            making.rename(disk)
    return disk


def switch_on(folder: Path, root_path: str) -> None:
    """Start the machine, unless it runs; the target's host, this one's loopback, is 10.0.2.2 to it.

    By BIOS iPXE is in its network card; by UEFI, if the folder says so, on a small disk of its own.
    """
    script = folder / "tftp" / "boot.ipxe"
    script.parent.mkdir(exist_ok=True)
    seen = root_path.replace("iscsi:127.0.0.1:", "iscsi:10.0.2.2:")
    script.write_text(_SCRIPT.format(initiator=INITIATOR, user=USER, secret=SECRET, root_path=seen))
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg", "-m", "512"]
    argv += ["-display", "none", "-vga", "std", "-no-reboot", "-serial", f"file:{console(folder)}"]
    argv += ["-netdev", f"user,id=net,restrict=off,tftp={script.parent},bootfile={script.name}"]
    if (folder / UEFI).exists():
        variables, disk = folder / "variables.fd", folder / "ipxe.img"
        shutil.copy(_CODE.with_name(_VARIABLES), variables)
        with disk.open("wb") as file:
            file.truncate(_ESP_SECTORS * 512)
        _make_esp(disk, _IPXE, _ESP_SECTORS, first=0)
        argv += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_CODE}"]
        argv += ["-drive", f"if=pflash,format=raw,unit=1,file={variables}"]
        argv += ["-drive", f"if=none,id=ipxe,format=raw,readonly=on,file={disk}"]
        argv += ["-device", "virtio-blk-pci,drive=ipxe,bootindex=1", "-device", "virtio-net-pci,netdev=net,romfile="]
    else:
        argv += ["-device", "virtio-net-pci,netdev=net,bootindex=1"]
    end_marked(MARK, folder.name, folder, grace_seconds=0.0)
    start_marked(argv, MARK, folder.name, output=folder / "qemu.log", directory=folder)


def switch_off(folder: Path) -> None:
    """Pull its plug."""
    end_marked(MARK, folder.name, folder, grace_seconds=0.0)


def console(folder: Path) -> Path:
    """What it says."""
    return folder / "console.log"


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


if __name__ == "__main__":
    at = Path(sys.argv[2])
    switch_off(at)
    if sys.argv[1] == "on":
        switch_on(at, os.environ["DRENGINE_ROOT_PATH"])
