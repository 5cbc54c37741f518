"""Random ways of changing a disk: each is a function of a place (file or device), a source of randomness and a size."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.agent.capture.ebpf.rig import BLKDISCARD, BLKZEROOUT, BLOCK, KIB, MIB, block_ioctl, opened, run

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
FITRIM = 0xC0185879
IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = 206, 207, 208, 209
UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSPC}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class Place:
    """Where an operation works.

    Attributes:
        path: the raw device, or a file on a mounted file system.
        size: bytes that may be touched.
        sector: the disk's.
        folder: the mounted file system; None for a raw device.
    """

    path: Path
    size: int
    sector: int
    folder: Path | None


def stretch(place: Place, rng: random.Random, longest: int, unit: int = 1) -> tuple[int, int]:
    """A random (offset, length), in units."""
    length = max(1, rng.randint(1, longest) // unit) * unit
    offset = rng.randrange(max(1, (place.size - length) // unit)) * unit
    return offset, length


def buffered_write(place: Place, rng: random.Random) -> None:
    """pwrite through the page cache, at any byte."""
    offset, length = stretch(place, rng, 200 * KIB)
    with opened(place.path, os.O_RDWR) as fd:
        os.pwrite(fd, rng.randbytes(length), offset)


def vectored_write(place: Place, rng: random.Random) -> None:
    """pwritev of odd pieces."""
    offset, _ = stretch(place, rng, 64 * KIB)
    with opened(place.path, os.O_RDWR) as fd:
        os.pwritev(fd, [rng.randbytes(rng.randint(1, 9000)) for _ in range(rng.randint(1, 8))], offset)


def direct_write(place: Place, rng: random.Random) -> None:
    """O_DIRECT, sometimes O_DSYNC, in whole sectors."""
    offset, length = stretch(place, rng, 256 * KIB, place.sector)
    flags = os.O_RDWR | os.O_DIRECT | (os.O_DSYNC if rng.random() < 0.3 else 0)
    with opened(place.path, flags) as fd, contextlib.closing(mmap.mmap(-1, length + BLOCK)) as data:
        data.write(rng.randbytes(length))
        with memoryview(data) as view, view[:length] as part:
            os.pwrite(fd, part, offset)


def mapped_write(place: Place, rng: random.Random) -> None:
    """Stores through a shared mapping, sometimes with msync."""
    with opened(place.path, os.O_RDWR) as fd, contextlib.closing(mmap.mmap(fd, place.size)) as view:
        for _ in range(rng.randint(1, 6)):
            offset, length = stretch(place, rng, 20 * KIB)
            view[offset : offset + length] = rng.randbytes(length)
        if rng.random() < 0.5:
            view.flush()


def asynchronous_write(place: Place, rng: random.Random) -> None:
    """io_submit (Linux AIO) of several direct writes at once."""
    context = ctypes.c_ulong(0)
    count = rng.randint(1, 8)
    data = mmap.mmap(-1, 16 * KIB)
    data.write(rng.randbytes(16 * KIB))
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    with opened(place.path, os.O_RDWR | os.O_DIRECT) as fd:
        if _libc.syscall(IO_SETUP, count, ctypes.byref(context)) != 0:
            raise OSError(ctypes.get_errno(), "io_setup")
        try:
            blocks = []
            for number in range(count):
                offset, length = stretch(place, rng, 16 * KIB, place.sector)
                block = struct.pack("<QIiHhIQQqQII", number, 0, 0, 1, 0, fd, address, length, offset, 0, 0, 0)
                blocks.append(ctypes.create_string_buffer(block, 64))
            pointers = (ctypes.c_void_p * count)(*(ctypes.addressof(block) for block in blocks))
            submitted = _libc.syscall(IO_SUBMIT, context, count, pointers)
            if submitted < 0:
                raise OSError(ctypes.get_errno(), "io_submit")
            events = ctypes.create_string_buffer(32 * count)
            _libc.syscall(IO_GETEVENTS, context, submitted, submitted, events, None)
        finally:
            _libc.syscall(IO_DESTROY, context)


def ring_write(place: Place, rng: random.Random) -> None:
    """io_uring, by fio."""
    size = place.size // MIB * MIB
    run(
        "fio", "--name=ring", f"--filename={place.path}", "--ioengine=io_uring", "--direct=1", "--rw=randwrite",
        f"--bs={rng.choice(['4k', '16k', '64k'])}", f"--size={size}", "--io_size=512k", "--iodepth=8",
        f"--randseed={rng.randrange(1 << 30)}", "--randrepeat=0", "--allow_file_create=0", "--refill_buffers",
        f"--fixedbufs={rng.randrange(2)}", "--output=/dev/null",
    )  # fmt: skip


def fallocate(place: Place, rng: random.Random) -> None:
    """Zero a range or punch a hole; on a device these are write-zeroes and discards."""
    unit = place.sector if place.folder is None else 1
    offset, length = stretch(place, rng, rng.choice([16 * KIB, 4 * MIB]), unit)
    mode = rng.choice([ZERO_RANGE, PUNCH_HOLE]) | KEEP_SIZE
    with opened(place.path, os.O_RDWR) as fd:
        if _libc.fallocate(fd, mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")


def discard(place: Place, rng: random.Random) -> None:
    """BLKDISCARD of a device; FITRIM of a file system."""
    if place.folder is None:
        block_ioctl(place.path, BLKDISCARD, *stretch(place, rng, 4 * MIB, place.sector))
        return
    with opened(place.folder, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FITRIM, struct.pack("<QQQ", 0, (1 << 64) - 1, 0))


def zero_out(place: Place, rng: random.Random) -> None:
    """BLKZEROOUT of a device; many small files come and go on a file system."""
    if place.folder is None:
        block_ioctl(place.path, BLKZEROOUT, *stretch(place, rng, 2 * MIB, place.sector))
        return
    for _ in range(rng.randint(1, 12)):
        name = place.folder / f"small-{rng.randrange(12)}"
        if name.exists() and rng.random() < 0.5:
            name.unlink()
        else:
            name.write_bytes(rng.randbytes(rng.randint(0, 60_000)))


def truncate(place: Place, rng: random.Random) -> None:
    """Shorter and longer again; a device is synced instead."""
    with opened(place.path, os.O_RDWR) as fd:
        if place.folder is not None:
            os.ftruncate(fd, rng.randrange(place.size))
            os.ftruncate(fd, place.size)
        else:
            os.fsync(fd)


def random_blocks(place: Place, rng: random.Random) -> None:
    """A burst of direct writes of 4 KiB: the load that the 1.3 is measured with."""
    flags = os.O_RDWR | os.O_DIRECT
    with opened(place.path, flags) as fd, contextlib.closing(mmap.mmap(-1, BLOCK)) as data:
        for _ in range(100):
            data[:] = rng.randbytes(BLOCK)
            os.pwrite(fd, data, rng.randrange(place.size // BLOCK) * BLOCK)


OPERATIONS: tuple[Callable[[Place, random.Random], None], ...] = (
    buffered_write, vectored_write, direct_write, direct_write, mapped_write, asynchronous_write, fallocate,
    fallocate, discard, zero_out, truncate,
)  # fmt: skip


def operate(place: Place, rng: random.Random) -> str:
    """One random operation; its name, with a mark if this place does not support it."""
    operation = ring_write if rng.random() < 0.02 else rng.choice(OPERATIONS)
    try:
        operation(place, rng)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return f"{operation.__name__} (refused)"
    return operation.__name__
