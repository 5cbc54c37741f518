"""What the kernel says of its memory."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available_memory() -> int:
    """What programs can have without swapping, in bytes.

    Raises:
        OSError: there is no /proc.
    """
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
