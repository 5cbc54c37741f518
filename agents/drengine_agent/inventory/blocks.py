"""Block devices as the kernel shows them, what lies under each, and which of them are replicated."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drengine.linux.identity import content_name
from drengine.linux.superblocks import HEAD_BYTES
from drengine_agent.inventory.texts import number_of, text_of

BLOCKS_MAX = 1024
_KERNEL_SECTOR = 512
_PASSED_OVER = ("ram", "zram", "sr", "fd")


@dataclass(frozen=True, slots=True)
class Block:
    """A block device.

    Attributes:
        name: the kernel's.
        at: its directory in /sys.
        number: major and minor.
        below: what it is made of: its disk, if it is a partition; members of device mapper and md.
        partition: its number; 0: it is none.
        offset_bytes: where a partition begins.
    """

    name: str
    at: Path
    number: tuple[int, int]
    size_bytes: int
    below: tuple[str, ...] = ()
    partition: int = 0
    offset_bytes: int = 0

    @property
    def is_encrypting(self) -> bool:
        """It is what dm-crypt shows of another device."""
        return text_of(self.at / "dm/uuid").startswith("CRYPT-")

    @property
    def is_disk(self) -> bool:
        """It is a disk of its own, and stays in the machine."""
        is_made = self.name.startswith(("dm-", "md", "loop"))
        return not (is_made or self.partition or text_of(self.at / "removable") == "1")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of it; fewer where they can't be read."""
        return read_at(Path("/dev") / self.name.replace("!", "/"), offset, length)


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a file or device; fewer where they can't be read."""
    with contextlib.suppress(OSError, OverflowError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    return b""


Blocks = Mapping[str, Block]
"""By the kernel's name."""


def read_blocks(root: Path) -> dict[str, Block]:
    """All that have a size, but for memory, drives with a medium, and read-only loops (packages of snap)."""
    found: dict[str, Block] = {}
    with contextlib.suppress(OSError):
        for each in sorted((root / "sys/class/block").iterdir())[:BLOCKS_MAX]:
            name = each.name
            if name.startswith(_PASSED_OVER) or text_of(each / "hidden") == "1":
                continue
            if name.startswith("loop") and text_of(each / "ro") == "1":
                continue
            if block := _block(each):
                found[name] = block
    return found


def _block(at: Path) -> Block | None:
    major, _, minor = text_of(at / "dev").partition(":")
    size = number_of(at / "size") * _KERNEL_SECTOR
    if not size or not major.isdigit() or not minor.isdigit():
        return None
    partition = number_of(at / "partition")
    below: tuple[str, ...] = ()
    with contextlib.suppress(OSError):
        below = (at.resolve().parent.name,) if partition else tuple(sorted(os.listdir(at / "slaves")))  # noqa: PTH208
    offset = number_of(at / "start") * _KERNEL_SECTOR if partition else 0
    return Block(at.name, at, (int(major), int(minor)), size, below, partition, offset)


def chain_of(name: str, blocks: Blocks) -> tuple[str, ...]:
    """A device, and all that lies under it down to the disks, each once."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop(0)
        if each in blocks and each not in found:
            found[each] = None
            waiting[:0] = blocks[each].below
    return tuple(found)


def disks_of(name: str, blocks: Blocks) -> tuple[str, ...]:
    """The disks on which a device lies in the end."""
    return tuple(each for each in chain_of(name, blocks) if not set(blocks[each].below) & blocks.keys())


def uncovered(name: str, blocks: Blocks, replicated: Iterable[str]) -> tuple[str, ...]:
    """Those of the disks under a device that hold a part of it which no volume covers."""
    if name in replicated or name not in blocks:
        return ()
    below = [each for each in blocks[name].below if each in blocks]
    if not below:
        return (name,)
    return tuple(dict.fromkeys(disk for each in below for disk in uncovered(each, blocks, replicated)))


def volumes_of(volumes: Mapping[str, Path], blocks: Blocks) -> dict[str, str]:
    """By device the volume that it is: itself, as a loop over the volume's file, or as what the tap shows of it."""
    found: dict[str, str] = {}
    for volume, path in volumes.items():
        try:
            status = path.stat()
        except OSError:
            continue
        number = (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISBLK(status.st_mode) else None
        content = content_name(read_at(path, 0, HEAD_BYTES))
        for block in blocks.values():
            is_shown = block.name.startswith("nbd") and content
            if (
                (number and block.number == number)
                or (number is None and _is_loop_over(block, status))
                or (is_shown and content_name(block.read(0, HEAD_BYTES)) == content)
            ):
                found[block.name] = volume
    return found


def _is_loop_over(block: Block, status: os.stat_result) -> bool:
    backing = text_of(block.at / "loop/backing_file") if block.name.startswith("loop") else ""
    with contextlib.suppress(OSError, ValueError):
        return bool(backing) and os.path.samestat(Path(backing).stat(), status)
    return False
