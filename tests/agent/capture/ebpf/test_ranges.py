"""Every operation marks its whole range: lengths, sectors, partitions, failures, several disks at once."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import WatchedVolume
from tests.agent.capture.ebpf.rig import (
    BLKDISCARD,
    BLKZEROOUT,
    BLOCK,
    GIB,
    KIB,
    MIB,
    add_partition,
    block_ioctl,
    loop_device,
    needs_kernel,
    opened,
    run,
    taken,
    watched,
    watching,
    write,
)

pytestmark = needs_kernel


@pytest.mark.fault(24)
def test_discards_of_any_length_up_to_tens_of_gigabytes_mark_exactly_their_blocks(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = 64 * GIB
    edges = [0, 1, 63, 64, 65, 127 * 64, 128 * 64 - 1, 128 * 64, 128 * 64 + 1, 4095, 4096, 4097, 8191, 8192, 12288]
    with loop_device(tmp_path / "disk.img", size) as disk, watching(watched(disk)) as watch:
        for turn in range(160):
            first = rng.choice(edges) + rng.choice([0, 4096, 4096 * 512, rng.randrange(1 << 23)])
            count = max(
                1, rng.choice(edges) + rng.choice([0, 0, 4096, 1 << 15, rng.randrange(1 << rng.randint(1, 23))])
            )
            count = min(count, size // BLOCK - first)
            block_ioctl(disk, BLKDISCARD, first * BLOCK, count * BLOCK)
            assert taken(watch) == [(1, first * BLOCK, count * BLOCK)], f"turn {turn}"
        assert watch.check() == "none"


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.fault(28)
def test_writes_of_any_alignment_mark_the_blocks_that_they_touch(tmp_path: Path, sector: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = 16 * MIB + sector * (5 if sector == 512 else 1)
    with loop_device(tmp_path / "disk.img", size, sector=sector) as disk, watching(watched(disk)) as watch:
        for _ in range(100):
            offset = rng.randrange(size // sector) * sector
            length = min(rng.randint(1, 64 * KIB // sector) * sector, size - offset)
            write(disk, offset, length)
            start = offset // BLOCK * BLOCK
            end = min(-(-(offset + length) // BLOCK) * BLOCK, size)
            assert taken(watch) == [(1, start, end - start)]


@pytest.mark.parametrize("sector", [512, 4096])
def test_partitions_see_their_own_writes_at_their_own_offsets(tmp_path: Path, sector: int) -> None:
    """Two neighbours of a disk, the second not aligned to 4 KiB when sectors are small, and a gap before both."""
    odd = 63 * 512 if sector == 512 else sector
    with loop_device(tmp_path / "disk.img", 64 * MIB, sector=sector, partitions=True) as disk:
        shapes = [(MIB, 8 * MIB + odd), (9 * MIB + odd, 16 * MIB), (40 * MIB, 8 * MIB)]
        one, two, three = (add_partition(disk, number, *shape) for number, shape in enumerate(shapes, 1))
        with watching(watched(one, two, three)) as watch:
            write(two, 0, BLOCK)
            found = taken(watch)
            assert (2, 0, BLOCK) in found or (2, 0, 2 * BLOCK) in found
            assert sum(length for _, _, length in found) <= 4 * BLOCK
            write(one, 2 * MIB, 3 * BLOCK)
            assert taken(watch) == [(1, 2 * MIB, 3 * BLOCK)]
            write(three, MIB, BLOCK)
            assert [each[0] for each in taken(watch)] == [3]
            write(disk, 50 * MIB, BLOCK)  # behind all of them
            write(disk, 0, BLOCK)  # the table
            assert taken(watch) == []
            block_ioctl(two, BLKZEROOUT, 0, 16 * MIB)
            assert (2, 0, 16 * MIB) in taken(watch)
        with watching(watched(one)) as watch:
            write(disk, MIB, BLOCK)
            write(two, MIB, BLOCK)
            assert taken(watch) == [(1, 0, BLOCK)]
        with watching(watched(two)) as watch:
            write(two, 5 * BLOCK, BLOCK)
            assert taken(watch) == [(1, 5 * BLOCK, BLOCK)]


def test_several_disks_have_one_counter_and_their_own_bits(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(loop_device(tmp_path / f"{n}.img", (n + 1) * 32 * MIB)) for n in range(3)]
        watch = stack.enter_context(watching(watched(*disks)))
        for number, disk in enumerate(disks):
            write(disk, number * MIB, BLOCK)
        assert taken(watch) == [(1, 0, BLOCK), (2, MIB, BLOCK), (3, 2 * MIB, BLOCK)]
        before = watch.counter()
        write(disks[2], 0, BLOCK)
        assert watch.counter() > before


def test_a_volume_smaller_than_its_device_gets_only_its_own_bytes(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img", 16 * MIB) as disk:
        device = BlockDevice.of_path(disk)
        with watching([WatchedVolume(7, device, MIB + 512)]) as watch:
            write(disk, MIB, 2 * BLOCK)
            assert taken(watch) == [(7, MIB, 512)]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk whose writes fail, because its image lies on a file system without space."""
    folder = tmp_path / "full"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder)
    try:
        with loop_device(folder / "disk.img", 16 * MIB) as disk:
            yield disk
    finally:
        run("umount", "--lazy", folder)


def test_a_write_that_fails_or_is_done_in_part_marks_its_whole_range(full_disk: Path) -> None:
    with watching(watched(full_disk)) as watch:
        for offset in range(0, 8 * MIB, MIB):
            with contextlib.suppress(OSError, AssertionError):
                write(full_disk, offset, 512 * KIB)
            assert taken(watch) == [(1, offset, 512 * KIB)]
        with pytest.raises(OSError, match=r"error|space"):
            write(full_disk, 9 * MIB, BLOCK)


@pytest.mark.parametrize("flags", [os.O_DSYNC, os.O_SYNC, 0])
def test_writes_with_a_flush_before_or_force_unit_access_count_and_bare_flushes_do_not(
    tmp_path: Path, flags: int
) -> None:
    with loop_device(tmp_path / "disk.img", 16 * MIB) as disk, watching(watched(disk)) as watch:
        with opened(disk, os.O_RDWR | os.O_DIRECT | flags) as fd, contextlib.closing(mmap.mmap(-1, BLOCK)) as data:
            os.pwrite(fd, data, 5 * BLOCK)
            assert taken(watch) == [(1, 5 * BLOCK, BLOCK)]
            os.fsync(fd)
            os.fsync(fd)
        assert watch.is_quiet()


def test_a_journal_commit_with_flush_and_force_unit_access_is_seen(tmp_path: Path) -> None:
    """ext4's commit block is written with both flags (FWFS)."""
    with loop_device(tmp_path / "disk.img", 32 * MIB) as disk:
        run("mkfs.ext4", "-q", "-F", disk)
        mounted = tmp_path / "mounted"
        mounted.mkdir()
        run("mount", disk, mounted)
        try:
            with watching(watched(disk)) as watch:
                image = (tmp_path / "disk.img").read_bytes()
                (mounted / "file").write_bytes(b"x" * 10_000)
                with opened(mounted / "file", os.O_RDONLY) as fd:
                    os.fsync(fd)
                after = (tmp_path / "disk.img").read_bytes()
                changed = {at for at in range(0, len(image), BLOCK) if image[at : at + BLOCK] != after[at : at + BLOCK]}
                marked = {o for _, at, length in taken(watch) for o in range(at, at + length, BLOCK)}
                assert changed
                assert changed <= marked
        finally:
            run("umount", mounted)
