"""What lies on a device, by its first bytes: file systems, swap space, and members of LVM, md and LUKS.

The names are those of blkid and udev. The bytes may be anything: whatever they are, an answer comes, and no exception.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

HEAD_BYTES: Final = 68 << 10
"""So much of a device's beginning is needed: up to the end of btrfs' first superblock."""
_EXT4_INCOMPATIBLE, _EXT4_READ_ONLY = 0x2C0, 0x278
"""Features that ext3 does not have: extents, 64 bit, flex_bg; huge files, checksums, directories without limit..."""


class Superblock(NamedTuple):
    """What was found. `uuid` is written as the kind writes it; `label` may be empty."""

    kind: str
    uuid: str = ""
    label: str = ""


def superblock(head: bytes) -> Superblock | None:
    """By a device's first HEAD_BYTES; None: nothing that is known."""
    for offset, magic, describe in _KINDS:
        if head[offset : offset + len(magic)] == magic and (found := describe(head)):
            return found
    return None


def _text(head: bytes, begin: int, length: int) -> str:
    text = head[begin : begin + length].split(b"\0")[0].decode("utf-8", "replace").strip()
    return "".join(char if char.isprintable() else "?" for char in text)


def _uuid(head: bytes, begin: int) -> str:
    raw = head[begin : begin + 16]
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 and any(raw) else ""


def _number(head: bytes, begin: int, length: int) -> int:
    return int.from_bytes(head[begin : begin + length], "little")


def _luks(head: bytes) -> Superblock:
    label = _text(head, 24, 48) if head[6:8] == b"\0\2" else ""
    return Superblock("crypto_LUKS", _text(head, 168, 40), label)


def _md(at: int) -> Callable[[bytes], Superblock]:
    return lambda head: Superblock("linux_raid_member", _uuid(head, at + 16), _text(head, at + 32, 32))


def _lvm(at: int) -> Callable[[bytes], Superblock | None]:
    def describe(head: bytes) -> Superblock | None:
        if head[at + 24 : at + 32] != b"LVM2 001":
            return None
        text, begin, parts = _text(head, at + 32, 32), 0, []
        for length in (6, 4, 4, 4, 4, 4, 6):
            parts.append(text[begin : begin + length])
            begin += length
        return Superblock("LVM2_member", "-".join(parts))

    return describe


def _ext(head: bytes) -> Superblock:
    compatible, incompatible, read_only = (_number(head, at, 4) for at in (0x45C, 0x460, 0x464))
    kind = "ext3" if compatible & 4 else "ext2"
    if incompatible & _EXT4_INCOMPATIBLE or read_only & _EXT4_READ_ONLY:
        kind = "ext4"
    return Superblock("jbd" if incompatible & 8 else kind, _uuid(head, 0x468), _text(head, 0x478, 16))


def _fat(serial_at: int, label_at: int) -> Callable[[bytes], Superblock]:
    def describe(head: bytes) -> Superblock:
        serial = f"{_number(head, serial_at, 4):08X}"
        label = _text(head, label_at, 11)
        return Superblock("vfat", f"{serial[:4]}-{serial[4:]}", "" if label == "NO NAME" else label)

    return describe


def _exfat(head: bytes) -> Superblock:
    serial = f"{_number(head, 100, 4):08X}"
    return Superblock("exfat", f"{serial[:4]}-{serial[4:]}")


_KINDS: Final[tuple[tuple[int, bytes, Callable[[bytes], Superblock | None]], ...]] = (
    (0, b"LUKS\xba\xbe", _luks),
    (4096, b"\xfc\x4e\x2b\xa9", _md(4096)),
    (0, b"\xfc\x4e\x2b\xa9", _md(0)),
    *((512 * number, b"LABELONE", _lvm(512 * number)) for number in range(4)),
    (3, b"-FVE-FS-", lambda head: Superblock("BitLocker")),
    (3, b"NTFS    ", lambda head: Superblock("ntfs", f"{_number(head, 0x48, 8):016X}")),
    (3, b"EXFAT   ", _exfat),
    (0, b"XFSB", lambda head: Superblock("xfs", _uuid(head, 32), _text(head, 108, 12))),
    (0x10040, b"_BHRfS_M", lambda head: Superblock("btrfs", _uuid(head, 0x10020), _text(head, 0x1012B, 256))),
    (0x438, b"\x53\xef", _ext),
    *((at, b"SWAPSPACE2", lambda head: Superblock("swap", _uuid(head, 0x40C), _text(head, 0x41C, 16)))
      for at in (4086, 65526)),
    (0x52, b"FAT32   ", _fat(0x43, 0x47)),
    (0x36, b"FAT1", _fat(0x27, 0x2B)),
    (0x8001, b"CD001", lambda head: Superblock("iso9660", "", _text(head, 0x8028, 32))),
    (0, b"hsqs", lambda head: Superblock("squashfs")),
)  # fmt: skip
"""Where a magic stands, in the order in which they are tried: what holds other things comes first."""
