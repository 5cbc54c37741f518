"""What lies on a device, as blkid says it; partition tables as sfdisk says them; and bytes of any kind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.linux.partitions import ENTRIES_MAX, LOGICAL_MAX, read_partitions
from drengine.linux.superblocks import HEAD_BYTES, Superblock, superblock

MIB = 1 << 20
SWAP = ("mkswap", "--label", "cache", "--uuid", "0a1b2c3d-0000-4000-8000-000000000009")
MADE = {
    "ext2": ("mkfs.ext4", "-q", "-t", "ext2", "-L", "boot"),
    "ext3": ("mkfs.ext4", "-q", "-t", "ext3", "-L", "old"),
    "ext4": ("mkfs.ext4", "-q", "-L", "root disk"),
    "xfs": ("mkfs.xfs", "-q", "-L", "data"),
    "btrfs": ("mkfs.btrfs", "-q", "-L", "paper"),
    "vfat 16": ("mkfs.vfat", "-F", "16", "-n", "BOOT"),
    "vfat": ("mkfs.vfat", "-F", "32", "-n", "EFI"),
    "ntfs": ("mkfs.ntfs", "-q", "-F"),
    "exfat": ("mkfs.exfat",),
    "crypto_LUKS": (
        *("cryptsetup", "luksFormat", "--batch-mode", "--key-file", "/etc/hostname"),
        *("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"),  # its own choice takes seconds of all processors
    ),
    "swap": SWAP,
}


def tool(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def image(path: Path, size: int = 320 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def run(*command: str | Path, given: str = "") -> str:
    done = subprocess.run(
        [tool(str(command[0])), *command[1:]], input=given, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.parametrize("kind", MADE)
def test_it_is_called_as_blkid_calls_it(kind: str, tmp_path: Path) -> None:
    path = image(tmp_path / "image")
    run(*MADE[kind], path)
    told = dict(line.partition("=")[::2] for line in run("blkid", "-p", "-o", "export", path).splitlines())
    with path.open("rb") as file:
        found = superblock(file.read(HEAD_BYTES))
    label = told.get("LABEL", "").replace("\\ ", " ")
    assert found == Superblock(told["TYPE"], told.get("UUID", ""), label)


def test_a_member_of_lvm_is_known_by_its_label() -> None:
    head = bytearray(HEAD_BYTES)
    head[512:520], head[536:544] = b"LABELONE", b"LVM2 001"
    head[544:576] = b"abcdefGHIJklmnOPQRstuvWXYZ012345"
    assert superblock(bytes(head)) == Superblock("LVM2_member", "abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345")


def test_a_member_of_md_is_known_by_its_superblock() -> None:
    head = bytearray(HEAD_BYTES)
    head[4096:4100], head[4112:4128], head[4128:4134] = b"\xfc\x4e\x2b\xa9", bytes(range(16)), b"host:0"
    assert superblock(bytes(head)) == Superblock("linux_raid_member", "00010203-0405-0607-0809-0a0b0c0d0e0f", "host:0")


TABLES = {
    "gpt": "label: gpt\nsize=8MiB, type=uefi\nsize=16MiB\nstart=64MiB, size=8MiB\n",
    "dos": "label: dos\n1: size=8MiB, bootable\n2: size=100MiB, type=extended\n"
    "5: size=8MiB\n6: size=16MiB, type=82\n7: size=8MiB\n",
}


@contextlib.contextmanager
def disk(path: Path, sector: int) -> Iterator[Path]:
    """A file; with other sectors than a file is taken to have, a device over it."""
    image(path)
    if sector == 512:
        yield path
        return
    if os.geteuid() != 0:
        pytest.skip("only root can make a disk with such sectors")
    device = Path(run("losetup", "--find", "--show", "--sector-size", str(sector), path).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_partition_table_is_read_as_sfdisk_reads_it(table: str, sector: int, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", sector) as path:
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, given=TABLES[table])
        told = json.loads(run("sfdisk", "--json", path))["partitiontable"]
        data = path.read_bytes()
    found = read_partitions(lambda at, length: data[at : at + length], sector)
    assert found.table == told["label"] == table and len(found.entries) == len(told["partitions"])
    for entry, each in zip(found.entries, told["partitions"], strict=True):
        assert each["node"].endswith(str(entry.number))
        assert (entry.offset_bytes, entry.size_bytes) == (each["start"] * sector, each["size"] * sector)
        assert entry.type.upper().lstrip("0") == each["type"].upper().lstrip("0")
        if table == "gpt":
            assert entry.uuid.upper() == each["uuid"]
    if table == "dos":
        assert [entry.number for entry in found.entries] == [1, 2, 5, 6, 7]
        assert found.entries[3].uuid == f"{told['id'].removeprefix('0x')}-06"


def test_a_file_system_without_a_table_has_none(tmp_path: Path) -> None:
    path = image(tmp_path / "image", 64 * MIB)
    for command in (MADE["ext4"], SWAP):
        run(*command, path)
        data = path.read_bytes()
        assert read_partitions(lambda at, length: data[at : at + length]).table == ""  # noqa: B023


@given(st.integers(0, 2**32), st.sampled_from(["gpt", "dos", "loop", ""]))
def test_any_bytes_get_an_answer_in_bounds(seed: int, kind: str) -> None:
    dice = random.Random(seed)
    disk = bytearray(dice.randbytes(128 << 10))
    disk[510:512] = b"\x55\xaa"
    if kind == "gpt":
        disk[512:520], disk[584:592] = b"EFI PART", (2).to_bytes(8, "little")
        disk[592:600] = dice.choice([2**32 - 1, 128, 0]).to_bytes(4, "little") + dice.choice([128, 0, 2**31]).to_bytes(
            4, "little"
        )
    if kind in ("dos", "loop"):
        for at in range(446, 510, 16):
            disk[at] = 0x80
        # An extended partition, whose chain leads to itself.
        disk[450], disk[454:462] = 5, (10).to_bytes(4, "little") + (100).to_bytes(4, "little")
        if kind == "loop":
            disk[5120:5632] = disk[:512]
    calls = []

    def read(offset: int, length: int) -> bytes:
        calls.append(length)
        return bytes(disk[offset : offset + length])

    found = read_partitions(read)
    assert len(found.entries) <= ENTRIES_MAX and len(calls) < LOGICAL_MAX + 10 and max(calls) <= 1 << 20
    shown = superblock(bytes(disk[:HEAD_BYTES]))
    assert shown is None or (shown.uuid + shown.label).isprintable()
