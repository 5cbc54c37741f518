"""Guests for the driver `qemu`, each as small as can be: a boot sector, an EFI program, or a kernel with a script."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
DISK_BYTES = 8 << 20
_VIRTIO = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci")
_MODULES = {
    "virtio": ("virtio_blk",),
    "scsi": ("scsi_common", "scsi_mod", "sd_mod", "virtio_scsi"),
    "nvme": (),
    "net": ("failover", "net_failover", "virtio_net"),
    "agent": ("virtio_console",),
}
_INIT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t sysfs sys /sys
$B mount -t proc proc /proc
exec >/dev/console 2>&1
for module in {modules}; do $B insmod /modules/$module.ko; done
"""


def kernel() -> Path | None:
    """A Debian cloud kernel of this host."""
    return next(iter(sorted(Path("/boot").glob("vmlinuz-*-cloud-*"), reverse=True)), None)


def missing_for_linux() -> str:
    """What a guest with a kernel can't be had without; empty when all is there."""
    wanted = {each: shutil.which(each) for each in ("qemu-system-x86_64", "busybox", "cpio")}
    return ", ".join(name for name, there in {**wanted, "a Debian kernel": kernel()}.items() if not there)


def missing_for_uefi() -> str:
    """What a disk that boots by UEFI can't be had without; empty when all is there."""
    wanted = {each: shutil.which(each) for each in ("qemu-system-x86_64", "sfdisk", "mformat")}
    return ", ".join(name for name, there in {**wanted, "ovmf": OVMF.exists()}.items() if not there)


def linux_guest(
    folder: Path, script: str, *, has: tuple[str, ...] = ("virtio",), programs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Settings of the driver for one that runs a shell script from its initramfs, made in `folder`.

    Its busybox is $B. `has` names what it has drivers for: buses, `net`, `agent`; `programs` of this host are there
    at their places, with their libraries.
    """
    booted = kernel()
    assert booted is not None
    modules = [*_VIRTIO, *(module for each in has for module in _MODULES[each])]
    root = folder / "initramfs"
    for name in ("bin", "dev", "modules", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    drivers = Path("/lib/modules", booted.name.removeprefix("vmlinuz-"), "kernel")
    for module in modules:
        shutil.copy(next(drivers.rglob(f"{module}.ko")), root / "modules")
    for program in programs:
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        for file in (program, *re.findall(r"(/\S+) \(0x", listed)):
            (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / file[1:])
    (root / "init").write_text(_INIT.format(modules=" ".join(modules)) + script)
    (root / "init").chmod(0o755)
    subprocess.run("find . | cpio -o -H newc --quiet > ../initrd", shell=True, check=True, cwd=root)
    return {
        "accelerator": "tcg",
        "memory_mib": 192,
        "kernel": str(booted),
        "initrd": str(folder / "initrd"),
        "append": "console=ttyS0 quiet panic=-1",
        "grace": "0.2s",
    }


def bios_disk(path: Path, says: str, *, then: str = "f4ebfd") -> None:
    """A disk whose boot sector says something on the first serial port, and halts, or goes on with other code."""
    code = bytes.fromhex("be1c7c")  # mov $text, %si
    code += bytes.fromhex("bafd03eca82074fb")  # wait: mov $0x3fd, %dx; in; test $0x20; jz (until the line is free)
    code += bytes.fromhex("2eac84c07406baf803eeebec" + then)  # lodsb; test; jz end; mov $0x3f8, %dx; out; jmp wait
    sector = code.ljust(0x1C, b"\xf4") + says.encode() + b"\r\n\0"
    with path.open("wb") as file:
        file.write(sector.ljust(510, b"\0") + b"\x55\xaa")
        file.truncate(DISK_BYTES)


def uefi_disk(path: Path, says: str) -> None:
    """A GPT disk with a system partition, whose \\EFI\\BOOT\\BOOTX64.EFI says something on the console."""
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    program = path.with_suffix(".efi")
    program.write_bytes(_efi_program(says))
    partition, sectors = f"{path}@@1M", (DISK_BYTES - (2 << 20)) // 512
    _run("sfdisk", "-q", str(path), given="label: gpt\nstart=2048, type=uefi\n")
    _run("mformat", "-i", partition, "-T", str(sectors), "-h", "2", "-s", "32", "::")
    _run("mmd", "-i", partition, "::/EFI", "::/EFI/BOOT")
    _run("mcopy", "-i", partition, str(program), "::/EFI/BOOT/BOOTX64.EFI")


def _efi_program(says: str) -> bytes:
    """PE32+ with one section: SystemTable.ConOut.OutputString(text), and then it waits for ever."""
    call = bytes.fromhex("4883ec28ff5108ebfe")  # sub $40, %rsp; call *8(%rcx); jmp .
    text = f"{says}\r\n\0".encode("utf-16-le")
    code = bytes.fromhex("488b4a40488d15") + struct.pack("<i", len(call)) + call + text  # mov 64(%rdx), %rcx; lea text
    body = code.ljust(512, b"\0")
    header = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    header += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x22E)
    header += struct.pack("<HBBIIIII", 0x20B, 0, 0, len(body), 0, 0, 0x1000, 0x1000)
    sizes = (0x2000, 0x200, 0, 10, 0, 0, 0, 0, 0, 0, 16)  # of image, of headers, ..., an EFI application, ...
    header += struct.pack("<QIIHHHHHHIIIIHHQQQQII", 0, 0x1000, 0x200, 0, 0, 0, 0, 0, 0, 0, *sizes) + bytes(128)
    header += b".text\0\0\0" + struct.pack("<IIIIIIHHI", len(body), 0x1000, len(body), 0x200, 0, 0, 0, 0, 0x60000020)
    return header.ljust(512, b"\0") + body


def _run(*argv: str, given: str = "") -> None:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
