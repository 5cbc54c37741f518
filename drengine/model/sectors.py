"""In which unit a disk counts: the logical sector size of what its content was made on.

A partition table counts in sectors, so one that was made on a disk of 4096-byte sectors can't be read on one of 512
bytes, and the other way round; some file systems refuse smaller ones as well. The volume's identity tells what its disk
had, where that was not 512; the place of a GPT tells it of any content.
"""

from __future__ import annotations

import re
from typing import Final

SECTOR_BYTES: Final = 512
"""The usual ones. A volume of which nothing else is told is taken to have these."""
HEAD_BYTES: Final = 8192
"""As much of a disk's beginning shows where its GPT is."""

_RECORDED = re.compile(r":sector=(\d{3,6})$", re.ASCII)
_GPT = b"EFI PART"


def with_sectors(identity: str, sector_bytes: int, characters_max: int) -> str:
    """An identity that tells the sector size as well, where it is not the usual one."""
    told = "" if sector_bytes in (0, SECTOR_BYTES) else f":sector={sector_bytes}"
    return identity[: characters_max - len(told)] + told


def without_sectors(identity: str) -> str:
    """An identity without what it tells of sectors."""
    return _RECORDED.sub("", identity)


def recorded_sectors(identity: str) -> int:
    """What a volume's identity tells of its disk."""
    found = _RECORDED.search(identity)
    return int(found[1]) if found else SECTOR_BYTES


def sector_bytes_of(identity: str, head: bytes) -> int:
    """The sector size of a volume's content: that of its GPT, else what was recorded of its disk.

    Args:
        identity: of the volume.
        head: its first HEAD_BYTES bytes.
    """
    shown = [size for size in (SECTOR_BYTES, 4096) if head[size : size + len(_GPT)] == _GPT]
    return shown[0] if len(shown) == 1 else recorded_sectors(identity)
