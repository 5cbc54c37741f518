"""Devices that complete bios: zram stands in for device mapper and md, which many kernels for tests lack."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine_agent.capture.ebpf import program
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.offsets import ISSUE_EVENT
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.rig import (
    BLKDISCARD,
    BLOCK,
    KIB,
    MIB,
    block_ioctl,
    fresh_source,
    loop_device,
    needs_kernel,
    opened,
    taken,
    watched,
    watching,
    write,
)

CONTROL = Path("/sys/class/zram-control")
pytestmark = [needs_kernel, pytest.mark.skipif(not CONTROL.exists(), reason="needs zram")]


@pytest.fixture
def zram() -> Iterator[Path]:
    number = (CONTROL / "hot_add").read_text().strip()
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text("64M")
        yield Path(f"/dev/zram{number}")
    finally:
        with contextlib.suppress(OSError):
            Path(f"/sys/block/zram{number}/reset").write_text("1")
        (CONTROL / "hot_remove").write_text(number)


def test_bios_of_any_length_mark_exactly_their_blocks(zram: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    assert BlockDevice.of_path(zram).bio
    with watching(watched(zram)) as watch:
        for _ in range(60):
            first, count = rng.randrange(15_000), rng.choice([1, 2, 17, 130, 256])
            write(zram, first * BLOCK, count * BLOCK, rng.randrange(256))
            assert taken(watch) == [(1, first * BLOCK, count * BLOCK)]
        block_ioctl(zram, BLKDISCARD, 8 * MIB, 40 * MIB)
        assert taken(watch) == [(1, 8 * MIB, 40 * MIB)]
        with opened(zram) as fd:
            os.fsync(fd)
        assert watch.is_quiet()
        statistics = watch.statistics()
        assert (statistics.unmatched, statistics.unrecorded, statistics.faults) == (0, 0, 0)
        assert watch.check() == "none"


def test_a_group_of_both_kinds_has_one_counter(zram: Path, tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img", 32 * MIB) as disk, watching(watched(zram, disk)) as watch:
        write(disk, MIB, BLOCK)
        first = watch.counter()
        write(zram, 2 * MIB, 64 * KIB)
        assert watch.counter() > first
        assert taken(watch) == [(1, 2 * MIB, 64 * KIB), (2, MIB, BLOCK)]
        assert watch.is_quiet()


def test_a_bio_that_was_not_recorded_is_marked_all_the_same_and_is_a_reason_for_doubt(
    zram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the program that records what is queued: as at the moment of attaching."""
    build = program.programs
    monkeypatch.setattr(
        program,
        "programs",
        lambda regions, offsets, maps: [
            each if not each.name.startswith("queue") else program.Program(each.name, ISSUE_EVENT, nothing())
            for each in build(regions, offsets, maps)
        ],
    )
    source = fresh_source()
    try:
        watch = Watch.attach(source, watched(zram))
        try:
            write(zram, MIB, 16 * KIB)
            assert watch.statistics().unmatched == program.COPIES
            assert taken(watch) == [(1, MIB, 16 * KIB)]
            assert watch.check() == "tracking-lost"
        finally:
            watch.close()
        watch = Watch.attach(source, watched(zram))
        assert watch.doubt == "tracking-lost"
        watch.close()
    finally:
        Watch.detach(source)


def nothing() -> bytes:
    """A program that does nothing."""
    from drengine_agent.capture.ebpf.instructions import Assembler, Do

    code = Assembler()
    code.do_value(Do.MOVE, 0, 0)
    code.leave()
    return code.finish()
