"""Disks of 4096-byte sectors: told, shown and warned of; what is made of them can be read again."""

from __future__ import annotations

import os
import struct
import subprocess
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.linux.devices import sector_bytes
from drengine.linux.identity import evidence_in, identity_of, is_same
from drengine.model.sectors import recorded_sectors, sector_bytes_of, with_sectors, without_sectors
from drengine.target.destination import sectors_differ
from tests.agent.cuts.disks import needs_root, run

MIB = 1 << 20
pytestmark = pytest.mark.fault(76)


def gpt_at(*sectors: int) -> bytes:
    head = bytearray(8192)
    for each in sectors:
        head[each : each + 8] = b"EFI PART"
    return bytes(head)


@pytest.mark.parametrize(
    ("identity", "head", "size"),
    [
        ("block:wwid=x", bytes(8192), 512),
        ("block:wwid=x:sector=4096", bytes(8192), 4096),
        ("block:wwid=x:sector=4096", gpt_at(512), 512),  # written through a tap that showed smaller ones
        ("block:wwid=x", gpt_at(4096), 4096),  # protected by a version that recorded nothing
        ("file:1:2:3", gpt_at(4096), 4096),
        ("block:wwid=x:sector=4096", gpt_at(512, 4096), 4096),  # an older table was left beside
        ("block:wwid=x", b"", 512),
    ],
)
def test_the_content_knows_best(identity: str, head: bytes, size: int) -> None:
    assert sector_bytes_of(identity, head) == size


def test_an_identity_tells_of_sectors_only_where_they_are_unusual_and_never_grows_too_long() -> None:
    assert with_sectors("block:wwid=x", 512, 255) == with_sectors("block:wwid=x", 0, 255) == "block:wwid=x"
    long = with_sectors("x" * 300, 4096, 255)
    assert (len(long), recorded_sectors(long), without_sectors(long)) == (255, 4096, "x" * 243)
    seen = {"wwid": "x", "partition": "1", "sector": "4096", "number": "8:1"}
    assert identity_of(seen) == "block:wwid=x:partition=1:sector=4096"
    assert is_same(evidence_in(identity_of(seen)), seen)
    assert is_same(evidence_in("block:wwid=x:partition=1"), seen), "an older version told nothing of them"


@contextmanager
def disk(image: Path, sectors: int, *, size: int = 64 * MIB) -> Iterator[Path]:
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size)
    device = Path(run("losetup", "--find", "--show", "--partscan", "--sector-size", str(sectors), image))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def partitioned(device: Path) -> str:
    """A GPT with one partition; its UUID."""
    named = uuid.uuid4()
    with device.open("r+b") as disk:
        size = disk.seek(0, os.SEEK_END)
        disk.seek(0)
        disk.write(gpt(sector_bytes(device), size, named))
    return str(named)


def gpt(sector: int, size: int, named: uuid.UUID) -> bytes:
    """The beginning of a disk with one partition (UEFI 2.10, 5.3)."""
    last = size // sector - 1
    linux = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    entry = struct.pack("<16s16sQQQ72s", linux, named.bytes_le, 64, 127, 0, "data".encode("utf-16-le"))
    entries = entry.ljust(128 * 128, b"\0")
    fields = (b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 33, named.bytes_le, 2, 128, 128, zlib.crc32(entries))
    layout = struct.Struct("<8sIIIIQQQQ16sQIII")
    header = layout.pack(*fields)
    header = layout.pack(*fields[:3], zlib.crc32(header), *fields[4:])
    protective = (
        bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, last) + bytes(48) + b"\x55\xaa"
    )
    return protective.ljust(sector, b"\0") + header.ljust(sector, b"\0") + entries


def table_of(device: Path) -> str:
    """UUID of the partition table as this device's sectors show it; empty if they show none."""
    done = subprocess.run(
        ["blkid", "--probe", "--match-tag", "PTUUID", "--output", "value", device],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


@needs_root
def test_what_a_restore_says_of_other_sectors_and_that_its_advice_works(tmp_path: Path) -> None:
    image = tmp_path / "a disk.img"
    with disk(image, 4096) as device:
        assert sector_bytes(device) == 4096
        wanted = partitioned(device)
        assert sectors_differ("data", 4096, device) == ""
        assert "has 4096" in sectors_differ("data", 512, device)
    assert sectors_differ("data", 512, image) == ""
    told = sectors_differ("data", 4096, image)
    with disk(image, 512) as other:
        assert "has 512" in sectors_differ("data", 4096, other)
        assert table_of(other) == "", "the trial tries nothing"
    command = told.partition("`")[2].rstrip("`")
    attached = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.strip()
    try:
        assert table_of(Path(attached)) == wanted
    finally:
        run("losetup", "--detach", attached)
