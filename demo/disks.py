"""The source's two disks: an ext4 file system with a ledger file inside it, and a raw log disk."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

DATA_BYTES = 256 << 20
LOG_BYTES = 64 << 20
LEDGER_BYTES = 8 << 20
SLOT_BYTES = 4096
KNOWN_BYTES = 40 << 20
"""The first so many bytes of the seed's generator lie in a file of the data disk."""


class MissingTool(Exception):
    """e2fsprogs, which every Debian has, was not found."""


def tool(name: str) -> str:
    """Path of an e2fsprogs tool; they live in /sbin, which is not on a user's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not found:
        raise MissingTool(f"{name} was not found; install e2fsprogs")
    return found


@dataclass(frozen=True)
class Slots:
    """Where stamped blocks may be written: (volume name, offset) of each 4 KiB slot."""

    places: tuple[tuple[str, int], ...]


def make_disks(folder: Path, seed: int) -> tuple[Path, Path, Slots]:
    """Make both images and return them with the slots: the ledger file's own blocks, and the log disk's.

    The writer changes only blocks that belong to the ledger file, so the file system must check clean at any point.
    """
    content = folder / "content"
    content.mkdir()
    rng = random.Random(seed)
    (content / "ledger").write_bytes(b"\xff" * LEDGER_BYTES)
    (content / "incompressible.bin").write_bytes(rng.randbytes(KNOWN_BYTES))
    line = b"2026-11-23T10:00:00Z INFO order accepted id=%08d amount=%06d status=paid\n"
    (content / "orders.log").write_bytes(b"".join(line % (i, rng.randrange(10**6)) for i in range(600_000)))
    data, log = folder / "data.img", folder / "log.img"
    with data.open("wb") as image:
        image.truncate(DATA_BYTES)
    _run(tool("mkfs.ext4"), "-q", "-F", "-b", str(SLOT_BYTES), "-d", str(content), str(data))
    with log.open("wb") as image:
        image.truncate(LOG_BYTES)
    shutil.rmtree(content)
    places = [("data", block * SLOT_BYTES) for block in _ledger_blocks(data)]
    places += [("log", offset) for offset in range(0, LOG_BYTES, SLOT_BYTES)][: len(places)]
    return data, log, Slots(tuple(places))


def _ledger_blocks(image: Path) -> list[int]:
    """Physical numbers of the ledger's data blocks, from its leaf extents (not those of the extent tree itself)."""
    listing = _run(tool("debugfs"), "-R", "dump_extents -l /ledger", str(image))
    runs = re.findall(r"\d+/\s*\d+\s+\d+/\s*\d+\s+\d+\s*-\s*\d+\s+(\d+)\s*-\s*(\d+)\s+\d+", listing)
    blocks = [block for first, last in runs for block in range(int(first), int(last) + 1)]
    if len(blocks) != LEDGER_BYTES // SLOT_BYTES:
        raise RuntimeError(f"debugfs listed {len(blocks)} of the ledger's blocks")
    return blocks


def filesystem_clean(image: Path) -> bool:
    """Whether `e2fsck -fn` finds nothing to say about the file system."""
    return subprocess.run([tool("e2fsck"), "-fn", str(image)], capture_output=True, check=False).returncode == 0


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
