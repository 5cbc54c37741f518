"""A guest that stamps its disk: a kernel and an initramfs, no file system.

Stamp n goes to a sector of its own and is flushed; the guest reads it back past its page cache, and an older one, and
only then says `STAMP n`. What it finds wrong it says as `BAD`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.failover.drivers.qemu.guests import linux_guest

SECTORS = 1 << 16
"""Of the disk at its beginning that are stamped; the disk must be larger."""

_STRIDE = 40_503
_DEVICES = {"virtio": "/dev/vda", "scsi": "/dev/sda", "nvme": "/dev/nvme0n1"}
_SCRIPT = f"""
while [ ! -b $disk ]; do $B sleep 0.1; done
found() {{
  there=$($B dd if=$disk bs=512 skip=$(($1 * {_STRIDE} % {SECTORS})) count=1 iflag=direct 2>/dev/null)
  case "$there" in "stamp $1 "*) ;; *) echo "BAD $1 $there" ;; esac
}}
number=0
while true; do
  number=$((number + 1))
  $B printf '%-512s' "stamp $number" |
    $B dd of=$disk bs=512 seek=$((number * {_STRIDE} % {SECTORS})) conv=notrunc,fsync 2>/dev/null || echo "BAD write"
  found $number
  found $(((number + 1) / 2))
  echo "STAMP $number"
done
"""


def stamping_guest(folder: Path, disk_bus: str = "virtio") -> dict[str, Any]:
    """Settings of the driver `qemu` for one, whose initramfs is made in `folder`."""
    script = f"disk={_DEVICES[disk_bus]}\n{_SCRIPT}"
    return {**linux_guest(folder, script, has=(disk_bus,)), "disk_bus": disk_bus, "ready": "STAMP"}


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
