"""Device mapper, md and SCSI, on kernels that have them (docs/ebpf.md says where this was run)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import random
import secrets
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.hammer import hammering
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
    run,
    taken,
    watched,
    watching,
    write,
)
from tests.agent.capture.ebpf.test_flip import Ledger

SG_IO = 0x2285
TO_DEVICE, FROM_DEVICE, NO_DATA = -2, -3, -1
SIZE = 64 * MIB

pytestmark = needs_kernel


def modprobe(name: str, *options: str) -> bool:
    """Whether the kernel has this module, or has it built in."""
    tool = shutil.which("modprobe")
    return tool is not None and subprocess.run([tool, name, *options], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def mapped(table: str) -> Iterator[Path]:
    """A device mapper device."""
    if shutil.which("dmsetup") is None or not modprobe("dm-mod") or not Path("/dev/mapper/control").exists():
        pytest.skip("needs device mapper")
    name = f"drengine-{secrets.token_hex(4)}"
    run("dmsetup", "create", name, "--noudevsync", "--table", table)
    try:
        number = run("dmsetup", "info", "-c", "--noheadings", "-o", "minor", name)
        yield Path(f"/dev/dm-{number}")
    finally:
        run("dmsetup", "remove", "--retry", "--noudevsync", name)


@pytest.fixture
def legs(tmp_path: Path) -> Iterator[list[Path]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(loop_device(tmp_path / f"{number}.img", SIZE)) for number in range(2)]


TABLES = {
    "linear over two disks": "0 131072 linear {0} 0\n131072 131072 linear {1} 0",
    "small pieces in turn": "\n".join(
        f"{at} 24 linear {{{at // 24 % 2}}} {at // 48 * 24}" for at in range(0, 24_000, 24)
    ),
    "striped": "0 262144 striped 2 16 {0} 0 {1} 0",
}


@pytest.mark.parametrize("shape", TABLES)
def test_a_write_that_device_mapper_splits_marks_its_whole_range(legs: list[Path], shape: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with mapped(TABLES[shape].format(*legs)) as device, watching(watched(device)) as watch:
        found = BlockDevice.of_path(device)
        assert found.bio
        blocks = found.size_bytes // BLOCK
        for _ in range(60):
            count = rng.choice([1, 3, 40, 256])
            first = rng.choice([rng.randrange(blocks - count), min(SIZE // BLOCK - 1, blocks - count)])
            write(device, first * BLOCK, count * BLOCK)
            assert taken(watch) == [(1, first * BLOCK, count * BLOCK)]
        block_ioctl(device, BLKDISCARD, 0, 4 * MIB)
        assert taken(watch) == [(1, 0, 4 * MIB)]
        assert watch.is_quiet()
        assert watch.check() == "none"


def test_hammers_on_a_striped_device_lose_nothing_while_halves_are_swapped(legs: list[Path], tmp_path: Path) -> None:
    with (
        mapped(TABLES["striped"].format(*legs)) as device,
        watching(watched(device)) as watch,
        hammering(device, tmp_path, 2 * SIZE // BLOCK) as hammers,
    ):
        while not all(hammer.completed() for hammer in hammers):
            time.sleep(0.01)
        watch.flip()
        watch.clear_pending()
        ledger = Ledger(hammers)
        for _ in range(100):
            ledger.flip(watch)
        assert ledger.missing | ledger.invented == set()
        assert watch.check() == "none"


@pytest.mark.parametrize("level", ["linear", "1"])
def test_an_md_array_is_refused(legs: list[Path], level: str) -> None:
    """On 6.1 a write to a linear array was seen under its member's number only: so it isn't tracked."""
    if shutil.which("mdadm") is None or not modprobe("md-mod"):
        pytest.skip("needs md and mdadm")
    modprobe({"linear": "linear"}.get(level, f"raid{level}"))
    device = Path(f"/dev/md{random.randrange(100, 250)}")
    run("mdadm", "--create", device, "--run", "--assume-clean", "--metadata=1.2", f"--level={level}",
        "--raid-devices=2", *legs)  # fmt: skip
    try:
        with pytest.raises(DrengineError, match="members"):
            Watch.attach(fresh_source(), watched(device))
    finally:
        run("mdadm", "--stop", device)


@pytest.fixture
def scsi() -> Iterator[Path]:
    before = set(Path("/sys/block").glob("sd*"))
    if not modprobe("sd_mod") or not modprobe("scsi_debug", "dev_size_mb=64", "lbpu=1", "lbpws=1"):
        pytest.skip("needs scsi_debug")
    try:
        deadline = time.monotonic() + 20
        while not (new := set(Path("/sys/block").glob("sd*")) - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        device = Path("/dev") / new.pop().name
        while not device.exists():
            time.sleep(0.05)
        yield device
    finally:
        run("rmmod", "scsi_debug")


def command(device: Path, cdb: bytes, direction: int, data: bytes) -> None:
    """A SCSI command straight to the device, as sg_raw and smartctl give it."""
    buffer = ctypes.create_string_buffer(data, max(len(data), 1))
    sense = ctypes.create_string_buffer(64)
    code = ctypes.create_string_buffer(cdb, len(cdb))
    header = struct.pack(
        "<iiBBHIQQQIIiQBBBBHHiII",
        ord("S"), direction, len(cdb), 64, 0, len(data), ctypes.addressof(buffer), ctypes.addressof(code),
        ctypes.addressof(sense), 5000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    with opened(device) as fd:
        fcntl.ioctl(fd, SG_IO, bytearray(header.ljust(88, b"\0")))


def test_commands_that_pass_by_the_block_layer_are_told_apart(scsi: Path) -> None:
    """Monitoring polls with commands that read: no doubt. A command that carries data to the disk is told, once."""
    with watching(watched(scsi)) as watch:
        write(scsi, MIB, 64 * KIB)
        block_ioctl(scsi, BLKDISCARD, 8 * MIB, 8 * MIB)
        assert taken(watch) == [(1, MIB, 64 * KIB), (1, 8 * MIB, 8 * MIB)]
        before = watch.statistics()
        for _ in range(20):
            command(scsi, bytes([0x12, 0, 0, 0, 96, 0]), FROM_DEVICE, bytes(96))  # INQUIRY
            command(scsi, bytes(6), NO_DATA, b"")  # TEST UNIT READY
            command(scsi, bytes([0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64, 0]), FROM_DEVICE, bytes(64))  # LOG SENSE
        after = watch.statistics()
        assert after.passed_in - before.passed_in >= 60
        assert after.passed_out == before.passed_out
        assert watch.check() == "none"
        assert watch.is_quiet()
        command(scsi, struct.pack(">BBIBHB", 0x2A, 0, 4096, 0, 8, 0), TO_DEVICE, b"x" * 4096)  # WRITE(10)
        assert watch.check() == "passthrough"
        assert watch.check() == "none"


def test_a_pass_through_write_while_nobody_watches_is_told_until_it_was_answered(scsi: Path) -> None:
    source = fresh_source()
    try:
        Watch.attach(source, watched(scsi)).close()
        command(scsi, struct.pack(">BBIBHB", 0x2A, 0, 4096, 0, 8, 0), TO_DEVICE, b"x" * 4096)
        for answered in (False, True):
            watch = Watch.attach(source, watched(scsi))
            assert (watch.doubt, watch.check()) == ("none", "passthrough")
            if answered:
                watch.passthrough_answered()
            watch.close()
        watch = Watch.attach(source, watched(scsi))
        assert watch.check() == "none"
        watch.close()
    finally:
        Watch.detach(source)
