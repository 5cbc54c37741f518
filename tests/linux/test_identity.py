"""What a file or a disk is: recognised when numbers change, and told apart when names do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.linux.identity import content_name, evidence_in, evidence_of, identity_of, is_same, is_weak, joined
from tests.agent.cuts.disks import BYTES, MAKE, needs_root, run

WWID = {"wwid": "naa.5000c500a1b2c3d4", "content": "gpt=a", "number": "8:0", "attachment": "8:0 7 boot"}
PLAIN = {"content": "gpt=a", "number": "254:16", "attachment": "254:16 9 boot"}
BLANK = {"number": "254:16", "attachment": "254:16 9 boot"}
FILE = {"inode": "42:8f00", "uuid": "u", "fsid": "f"}


def seen(path: Path) -> dict[str, str]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return evidence_of(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.fault(27)
@pytest.mark.fault(76)
@pytest.mark.parametrize(
    ("known", "found", "same"),
    [
        (WWID, WWID | {"number": "8:16", "attachment": "8:16 1 next"}, True),  # found in another order at boot
        (WWID, WWID | {"content": "gpt=b"}, True),  # partitioned anew
        (WWID, WWID | {"wwid": "naa.5000c500a1b2c3d5"}, False),  # another disk in its place, cloned
        (WWID, PLAIN | {"attachment": "8:0 8 boot"}, True),  # a driver that tells no WWID; the same content
        (WWID, BLANK | {"number": "8:0"}, False),  # a blank disk under its number
        (PLAIN, PLAIN | {"number": "254:32", "attachment": "254:32 2 next"}, True),
        (PLAIN, PLAIN | {"content": "gpt=b", "attachment": "254:16 4 next"}, False),  # swapped with one like it
        (PLAIN, PLAIN | {"content": "gpt=b"}, True),  # partitioned anew in this boot
        (PLAIN, BLANK | {"attachment": "254:16 4 next"}, False),  # a blank one
        (PLAIN, PLAIN | {"serial": "S1", "attachment": "254:16 4 next"}, True),  # it was given a serial number
        (PLAIN | {"serial": "S1"}, PLAIN | {"serial": "S2"}, False),
        (BLANK, BLANK | {"attachment": "254:16 4 next"}, True),  # nothing better is to be had: there is a warning
        (BLANK, PLAIN | {"attachment": "254:16 4 next"}, True),  # partitioned since
        (BLANK, BLANK | {"number": "254:32", "attachment": "254:32 4 next"}, False),
        (WWID | {"partition": "1"}, WWID | {"partition": "2"}, False),
        (WWID | {"partition": "1"}, WWID, False),
        ({"partuuid": "p"}, WWID | {"partuuid": "p", "partition": "1"}, True),
        ({"partuuid": "p"}, WWID | {"partuuid": "q", "partition": "1"}, False),
        (FILE, FILE, True),
        (FILE, FILE | {"inode": "42:8f01"}, False),  # the inode number was used again
        (FILE, FILE | {"uuid": "v", "fsid": "g"}, False),  # restored to another file system
        ({"inode": "42:8f00", "uuid": "u"}, {"inode": "42:8f00", "uuid": "u"}, True),  # xfs: its id is no evidence
        ({"inode": "42:8f00", "fsid": "701"}, {"inode": "42:8f00", "uuid": "u"}, True),  # noted by an older version
        ({"inode": "42:0", "fsid": "701"}, {"inode": "42:0", "uuid": "u"}, False),  # without a generation: doubt
        (FILE, WWID, False),
        (WWID, FILE, False),
        ({}, BLANK, False),
    ],
)
def test_evidence(known: dict[str, str], found: dict[str, str], same: bool) -> None:
    assert is_same(known, found) is same


@pytest.mark.parametrize(
    ("evidence", "identity", "weak"),
    [
        (FILE, "file:f:42:8f00", False),
        ({"inode": "42:8f00", "uuid": "u"}, "file:uuid=u:42:8f00", False),
        (WWID, "block:wwid=naa.5000c500a1b2c3d4", False),
        (WWID | {"partition": "2"}, "block:wwid=naa.5000c500a1b2c3d4:partition=2", False),
        (WWID | {"partuuid": "p", "partition": "2"}, "block:partuuid=p", False),
        (PLAIN, "block:gpt=a", False),
        (BLANK, "block:number=254:16", True),
    ],
)
def test_an_identity_says_enough_to_be_recognised_by_itself(
    evidence: dict[str, str], identity: str, weak: bool
) -> None:
    assert (identity_of(evidence), is_weak(evidence)) == (identity, weak)
    assert is_same(evidence_in(identity), evidence)


def test_what_lasts_is_remembered_when_a_driver_tells_less() -> None:
    assert joined(WWID, PLAIN)["wwid"] == WWID["wwid"]
    assert joined(PLAIN, BLANK) == BLANK


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_file_system_names_its_disk(kind: str, tmp_path: Path) -> None:
    if not shutil.which(MAKE[kind][0]):
        pytest.skip(f"{MAKE[kind][0]} is not installed")
    image, wanted = tmp_path / "image", uuid.uuid4()
    with image.open("wb") as file:
        file.truncate(BYTES[kind])
    given = ["-m", f"uuid={wanted}"] if kind == "xfs" else ["-U", str(wanted)]
    subprocess.run([*MAKE[kind], *given, image], check=True, capture_output=True)
    assert content_name(image.read_bytes()[: 68 << 10]).endswith(f"={wanted}")


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_partition_table_names_its_disk(sector: int) -> None:
    head, wanted = bytearray(68 << 10), uuid.uuid4()
    assert content_name(bytes(head)) == ""
    head[510:512], head[440:444] = b"\x55\xaa", (0xC0FFEE01).to_bytes(4, "little")
    assert content_name(bytes(head)) == "mbr=c0ffee01"
    head[sector : sector + 8], head[sector + 56 : sector + 72] = b"EFI PART", wanted.bytes_le
    assert content_name(bytes(head)) == f"gpt={wanted}"
    assert content_name(b"") == content_name(bytes(100)) == ""


@contextmanager
def mounted_xfs(image: Path, place: Path, *, before: int = 0) -> Iterator[None]:
    """As after a boot in which `before` other loop devices were made first."""
    if not shutil.which("mkfs.xfs"):
        pytest.skip("mkfs.xfs is not installed")
    others = []
    try:
        for number in range(before):
            other = image.with_suffix(f".{number}")
            other.write_bytes(bytes(1 << 20))
            others.append(run("losetup", "--find", "--show", other))
        device = run("losetup", "--find", "--show", image)
        try:
            run("mount", device, place)
            yield
            run("umount", place)
        finally:
            run("losetup", "--detach", device)
    finally:
        for other in others:
            run("losetup", "--detach", other)


@needs_root
@pytest.mark.fault(76)
def test_a_file_on_xfs_is_the_same_file_when_its_disk_gets_another_number(tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "mount"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(BYTES["xfs"])
    subprocess.run([*MAKE["xfs"], image], check=True)
    with mounted_xfs(image, place):
        (place / "disk").write_bytes(b"x" * 4096)
        before = seen(place / "disk")
        number = (place / "disk").stat().st_dev
        noted = f"file:{os.statvfs(place).f_fsid:x}:{before['inode']}"  # by versions before
    with mounted_xfs(image, place, before=2):
        assert (place / "disk").stat().st_dev != number, "the trial tries nothing"
        after = seen(place / "disk")
        assert identity_of(after) == identity_of(before)
        assert is_same(before, after)
        assert is_same(evidence_in(noted), after)
        shutil.copy(place / "disk", place / "copy")
        assert not is_same(before, seen(place / "copy"))
