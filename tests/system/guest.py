"""A small Debian guest whose disk boots by itself: Debian's kernel and initrd, busybox, and a program that counts.

At each start it prints the last number that it finds on its disk, then goes on counting: each number is on the disk
(sync) before it is printed.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

DISK_BYTES = 160 << 20
_FIRST_SECTOR = 2048
_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
_INIT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev 2>/dev/null
exec >/dev/console 2>&1
last=$($B tail -n 1 /markers 2>/dev/null)
$B echo "FOUND ${last:-nothing}"
number=${last:-0}
while true; do
  number=$((number + 1))
  $B echo $number >> /markers
  $B sync
  $B echo "MARKER $number"
done
"""
_BOOT = """SERIAL 0
DEFAULT guest
PROMPT 0
LABEL guest
  LINUX /boot/vmlinuz
  INITRD /boot/initrd
  APPEND root=/dev/vda1 rw console=ttyS0 quiet panic=1 init=/init
"""


def missing_for_guest() -> str:
    """What a guest's disk can't be made or booted without; empty when all is there."""
    wanted = {
        "qemu-system-x86_64": shutil.which("qemu-system-x86_64"),
        "extlinux": shutil.which("extlinux"),
        "busybox": shutil.which("busybox"),
        "mbr.bin": _MBR.exists(),
        "a Debian kernel in /boot": kernel(),
    }
    return ", ".join(name for name, there in wanted.items() if not there)


def make_guest_disk(path: Path, work: Path) -> None:
    """A disk image with one ext4 partition that boots by BIOS; needs root."""
    booted = kernel()
    assert booted is not None
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    with path.open("r+b") as file:
        partition = struct.pack("<B3xB3xII", 0x80, 0x83, _FIRST_SECTOR, DISK_BYTES // 512 - _FIRST_SECTOR)
        file.write(_MBR.read_bytes()[:440].ljust(446, b"\0") + partition + bytes(48) + b"\x55\xaa")
    with ExitStack() as cleanup:
        loop = _run("losetup", "-f", "--show", "-o", str(_FIRST_SECTOR * 512), str(path)).strip()
        cleanup.callback(_run, "losetup", "-d", loop)
        _run("mkfs.ext4", "-q", "-O", "^64bit,^metadata_csum", loop)
        mount = work / "mount"
        mount.mkdir()
        _run("mount", loop, str(mount))
        cleanup.callback(_run, "umount", str(mount))
        for folder in ("bin", "boot", "dev", "proc", "sys", "run", "tmp", "etc", "root"):
            (mount / folder).mkdir()
        shutil.copy(booted, mount / "boot/vmlinuz")
        shutil.copy(booted.with_name(booted.name.replace("vmlinuz", "initrd.img")), mount / "boot/initrd")
        shutil.copy(shutil.which("busybox") or "", mount / "bin/busybox")
        init = mount / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        (mount / "boot/extlinux.conf").write_text(_BOOT)
        _run("extlinux", "--install", str(mount / "boot"))


def kernel() -> Path | None:
    """Debian's for clouds, with its initial RAM disk; None: there is none."""
    found = sorted(Path("/boot").glob("vmlinuz-*-cloud-*"))
    usable = [each for each in found if each.with_name(each.name.replace("vmlinuz", "initrd.img")).exists()]
    return usable[-1] if usable else None


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
