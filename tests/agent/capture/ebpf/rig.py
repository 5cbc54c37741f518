"""Loop devices, partitions and aligned writes for the tests of the kernel side; all undone, also after a failure."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import secrets
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from drengine_agent.capture.ebpf.btf import VMLINUX
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import WatchedVolume
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.capture.tracker import Range

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK = 4096
BLKDISCARD, BLKZEROOUT, BLKPG = 0x1277, 0x127F, 0x1269

needs_kernel = pytest.mark.skipif(
    os.geteuid() != 0 or not VMLINUX.exists() or not Path("/dev/loop-control").exists(),
    reason="needs root, loop devices and a kernel with BTF",
)


def fresh_source() -> str:
    """A source name that nobody else uses."""
    return f"test.{secrets.token_hex(4)}"


def run(*command: str | Path) -> str:
    """Run a command; its output. A failure shows what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr or done.stdout}")
    return done.stdout.strip()


@contextlib.contextmanager
def loop_device(image: Path, size: int, *, sector: int = 512, partitions: bool = False) -> Iterator[Path]:
    """A loop device over a sparse file; direct I/O, so that discards punch the file."""
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size)
    extra = ["--partscan"] if partitions else []
    device = run("losetup", "--show", "--find", "--direct-io=on", "--sector-size", str(sector), *extra, image)
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def add_partition(disk: Path, number: int, start: int, length: int) -> Path:
    """Tell the kernel of a partition (bytes). Kernels without any partition table parser have partitions, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    partition = ctypes.create_string_buffer(struct.pack("<qqi64s64s", start, length, number, b"", b""), 152)
    argument = struct.pack("<iiiiQ", 1, 0, 152, 0, ctypes.addressof(partition))
    with opened(disk, os.O_RDWR) as fd:
        if libc.ioctl(fd, BLKPG, argument) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    return Path(f"{disk}p{number}")


def watched(*devices: Path | str) -> list[WatchedVolume]:
    """Volumes 1, 2, ... of these devices."""
    found = [BlockDevice.of_path(device) for device in devices]
    return [WatchedVolume(number, device, device.size_bytes) for number, device in enumerate(found, 1)]


@contextlib.contextmanager
def watching(volumes: Sequence[WatchedVolume], source: str | None = None) -> Iterator[Watch]:
    """A watch that is removed at the end."""
    name = source or fresh_source()
    watch = Watch.attach(name, volumes)
    try:
        yield watch
    finally:
        watch.close()
        Watch.detach(name)


def write(device: Path, offset: int, length: int, fill: int = 1) -> None:
    """One direct write of so many bytes."""
    with opened(device) as fd, contextlib.closing(mmap.mmap(-1, max(length, BLOCK))) as buffer:
        buffer.write(bytes([fill]) * length)
        with memoryview(buffer) as view, view[:length] as part:
            assert os.pwrite(fd, part, offset) == length


@contextlib.contextmanager
def opened(device: Path, flags: int = os.O_RDWR | os.O_DIRECT) -> Iterator[int]:
    """A file descriptor for a while."""
    fd = os.open(device, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def block_ioctl(device: Path, command: int, offset: int, length: int) -> None:
    """BLKDISCARD or BLKZEROOUT of a range."""
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(device, os.O_RDWR) as fd:
        if libc.ioctl(fd, command, (ctypes.c_uint64 * 2)(offset, length)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def taken(watch: Watch) -> list[tuple[int, int, int]]:
    """Flip, read what was marked, clear: (volume, offset, length)."""
    watch.flip()
    found = [(each.volume, each.offset, each.length) for each in watch.pending()]
    watch.clear_pending()
    return found


def blocks_of(ranges: Sequence[Range]) -> set[tuple[int, int]]:
    """(volume, block of 4 KiB) of ranges."""
    return {
        (each.volume, block)
        for each in ranges
        for block in range(each.offset // BLOCK, (each.offset + each.length - 1) // BLOCK + 1)
    }
