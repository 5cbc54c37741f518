"""Disks that grow, disks and their partitions, and disks that are much larger than what they hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

from drengine.nbd.client import NbdClient
from tests.agent.capture.ebpf.rig import BLOCK, GIB, MIB, add_partition, write
from tests.field.ground import Ground, Pair, read_live
from tests.field.trial import trial

SIZE = 64 * MIB
GROWING = 320 * MIB
TEBIBYTE = 1024 * GIB
PROTECTED_SECONDS = 60.0
RESIDENT_BYTES_MAX = 160 * MIB


@trial(seconds_max=120)
def a_mounted_disk_grows_online(ground: Ground) -> None:
    """Disk and file system grow while files are written; new points have the new size, older ones keep theirs."""
    ground.needs_kernel()
    ground.needs("mkfs.xfs", "xfs_growfs", "xfs_repair")
    disk = ground.disk("data", GROWING)
    ground.run("mkfs.xfs", "-q", "-f", disk)
    pair = Pair(ground, {"data": disk}, tracker="ebpf").start()
    with ground.mounted(disk, "mount") as mount:
        (mount / "before").write_bytes(ground.rng.randbytes(MIB))
        os.sync()
        pair.until_equal()
        old = pair.newest()
        assert old
        for step in (1, 2):
            size = GROWING + step * 32 * MIB
            os.truncate(ground.folder / "data.img", size)
            ground.run("losetup", "--set-capacity", disk)
            (mount / f"while-{step}").write_bytes(ground.rng.randbytes(MIB))
            ground.run("xfs_growfs", mount)
            (mount / f"after-{step}").write_bytes(ground.rng.randbytes(20 * MIB))
            os.sync()
            pair.until_equal(f"the replica equals the disk of {size >> 20} MiB")
        newest = pair.newest()
        assert newest and newest.size_bytes == GROWING + 64 * MIB, newest
        again = next(each for each in pair.points() if each.id == old.id)
        assert again.size_bytes == GROWING, again
    image = ground.folder / "old.img"
    image.write_bytes(pair.content("data", old))
    with ground.mounted(image, "old", "-o", "loop,nouuid") as mount:
        assert [each.name for each in mount.iterdir()] == ["before"]
    ground.run("xfs_repair", "-n", image)


@trial(seconds_max=120)
def a_disk_and_its_partition_are_tracked_each_by_its_own_agent(ground: Ground) -> None:
    """One agent tracks the disk, another its partition; writes by way of either arrive at both."""
    ground.needs_kernel()
    disk = ground.disk("disk", SIZE, partitions=True, filled=MIB)
    part = add_partition(disk, 1, 8 * MIB, 16 * MIB)
    whole = Pair(ground, {"disk": disk}, tracker="ebpf", name="disk").start()
    only = Pair(ground, {"part": part}, tracker="ebpf", name="part").start()
    for turn in range(ground.times(6)):
        offset = ground.rng.randrange(16 * MIB // BLOCK) * BLOCK
        write(part, offset, BLOCK, fill=1 + turn)
        write(disk, 8 * MIB + ground.rng.randrange(16 * MIB // BLOCK) * BLOCK, BLOCK, fill=101 + turn)
        write(disk, 40 * MIB + offset, BLOCK, fill=201 + turn)
        whole.until_equal("the disk's replica equals it")
        only.until_equal("the partition's replica equals it")
    shown = whole.content("disk")
    assert shown[8 * MIB : 24 * MIB] == only.content("part") == read_live(part)
    for pair in (whole, only):
        assert pair.status()["rescans"] == {}, pair.status()["rescans"]
    ground.measured["writes each way"] = 3 * ground.times(6)


@trial(seconds_max=180)
def a_sparse_tebibyte_is_protected_in_seconds(ground: Ground) -> None:
    """A disk of 1 TiB that holds little is protected in seconds, in little memory, and served byte for byte."""
    image = ground.image("data", TEBIBYTE, filled=8 * MIB)
    places = [ground.rng.randrange(TEBIBYTE // BLOCK) * BLOCK for _ in range(64)]
    with image.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(ground.rng.randbytes(BLOCK))
    pair = Pair(ground, {"data": image})
    pair.start_target()
    begun = time.monotonic()
    pair.start_agent()
    ground.until("a first point", pair.newest, seconds=PROTECTED_SECONDS)
    seconds = time.monotonic() - begun
    resident = {"agent": _resident_bytes(pair.process.pid), "target": _resident_bytes(pair.target.pid)}
    _, told = pair.export("latest", "--volume", "data")
    with NbdClient.of(told["uris"][0]) as disk, image.open("rb") as file:
        assert disk.size_bytes == TEBIBYTE
        for place, length in [(0, 8 * MIB), *((place, BLOCK) for place in places), (TEBIBYTE - MIB, MIB)]:
            file.seek(place)
            assert file.read(length) == disk.read(place, length), f"they differ at {place}"
    ground.measured["seconds until protected"] = round(seconds, 1)
    ground.measured |= {f"{name} MiB resident": value >> 20 for name, value in resident.items()}
    assert max(resident.values()) < RESIDENT_BYTES_MAX, resident


def _resident_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
