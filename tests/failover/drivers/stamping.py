"""A guest that stamps its disk: a kernel and an initramfs, no file system.

Stamp n goes to a sector of its own and is flushed; the guest reads it back past its page cache, and an older one, and
only then says `STAMP n`. What it finds wrong it says as `BAD`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

SECTORS = 1 << 16
"""Of the disk at its beginning that are stamped; the disk must be larger."""

_STRIDE = 40_503
_MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
_INIT = f"""#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
for module in {" ".join(_MODULES)}; do $B insmod /modules/$module.ko; done
while [ ! -b /dev/vda ]; do $B sleep 0.1; done
found() {{
  there=$($B dd if=/dev/vda bs=512 skip=$(($1 * {_STRIDE} % {SECTORS})) count=1 iflag=direct 2>/dev/null)
  case "$there" in "stamp $1 "*) ;; *) echo "BAD $1 $there" ;; esac
}}
number=0
while true; do
  number=$((number + 1))
  $B printf '%-512s' "stamp $number" |
    $B dd of=/dev/vda bs=512 seek=$((number * {_STRIDE} % {SECTORS})) conv=notrunc,fsync 2>/dev/null || echo "BAD write"
  found $number
  found $(((number + 1) / 2))
  echo "STAMP $number"
done
"""


def missing_for_stamping() -> str:
    """What such a guest can't be had without; empty when all is there."""
    wanted = {each: shutil.which(each) for each in ("qemu-system-x86_64", "busybox", "cpio")}
    return ", ".join(name for name, there in {**wanted, "a Debian kernel": _kernel()}.items() if not there)


def stamping_guest(folder: Path) -> dict[str, Any]:
    """Settings of the driver `qemu` for one, whose initramfs is made in `folder`."""
    kernel = _kernel()
    assert kernel is not None
    root = folder / "initramfs"
    for name in ("bin", "dev", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    modules = Path("/lib/modules", kernel.name.removeprefix("vmlinuz-"), "kernel/drivers")
    for module in _MODULES:
        shutil.copy(next(modules.rglob(f"{module}.ko")), root / "modules")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    subprocess.run("find . | cpio -o -H newc --quiet > ../initrd", shell=True, check=True, cwd=root)
    return {
        "accelerator": "tcg",
        "memory_mib": 192,
        "kernel": str(kernel),
        "initrd": str(folder / "initrd"),
        "append": "console=ttyS0 quiet panic=-1",
        "ready": "STAMP",
        "grace": "0.2s",
    }


def newest_stamp(console: Path) -> int:
    """The newest that the guest was sure of.

    Raises:
        AssertionError: it found something wrong.
    """
    said = console.read_text(errors="replace")
    assert "BAD" not in said, re.findall(r"BAD.*", said)[:5]
    return int((re.findall(r"STAMP (\d+)\r?\n", said) or ["0"])[-1])


def stamps_missing(disk: bytes, newest: int) -> list[int]:
    """Those up to the newest that a disk does not hold."""
    places = ((number, number * _STRIDE % SECTORS * 512) for number in range(1, newest + 1))
    return [number for number, at in places if not disk[at : at + 512].startswith(b"stamp %d " % number)]


def _kernel() -> Path | None:
    return next(iter(sorted(Path("/boot").glob("vmlinuz-*-cloud-*"), reverse=True)), None)
