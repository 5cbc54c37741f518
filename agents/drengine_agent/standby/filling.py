"""Making a volume of this host equal to a branch, or a branch equal to a volume: what a helper of EC2 does.

Invariant: when `equalise` returns, the copy holds the origin's bytes, durably, and was read back. It may be stopped or
killed anywhere and asked again: what is equal already is not written again.

A volume is found by its disk's serial number, never by a name that the kernel may give to another. One that is in use
is refused; and one that is not blank, unless this host has begun to fill it: that is noted before its first write.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from drengine.control.attach import HydrateDisk, HydrateOrder
from drengine.durable import sync_directory
from drengine.linux.devices import is_mounted
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.nbd.remote import RemoteDisk
from drengine.process.threads import each_in_threads
from drengine.terminal import human_bytes
from drengine.wire.payload import digest
from drengine_agent.standby.errors import STANDBY_FAILED, STANDBY_SETTINGS

PIECE_BYTES = 1 << 20
THREADS = 4
REPAIRS_MAX = 2
OPEN_SECONDS = 5.0
BLOCKS = Path("/sys/block")
DEVICES = Path("/dev")
_SERIAL = re.compile(r"vol[0-9a-f]{8,17}")
_ZEROS = bytes(PIECE_BYTES)

Say = Callable[[str], None]


class Copy(Protocol):
    """A disk that is read and written at offsets. Threads may share it."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Its bytes."""

    def read_back(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Its bytes as they are durable, not as they are remembered."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Durable after `flush`."""

    def flush(self) -> None:
        """Everything written is durable."""

    def close(self) -> None:
        """Let go."""


class Branch(RemoteDisk):
    """A branch over NBD."""

    def read_back(self, offset: int, length: int) -> bytes | bytearray:
        """The target checks each block's digest when it reads it."""
        return self.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if data == _ZEROS[: len(data)]:
            self.zero(offset, len(data), discard=False)
        else:
            super().write(offset, bytes(data))


class Volume(Copy):
    """A block device of this host that nobody uses."""

    def __init__(self, device: Path, *, writable: bool) -> None:
        """
        Raises:
            OSError: it is in use, or can't be opened.
        """
        flags = os.O_RDWR if writable else os.O_RDONLY
        self._file = os.open(device, flags | os.O_EXCL | os.O_CLOEXEC)
        self._direct = -1
        self.size_bytes = os.lseek(self._file, 0, os.SEEK_END)
        with contextlib.suppress(OSError):  # a file system below a loop device may not know it
            self._direct = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        return _all_of(lambda at, left: os.pread(self._file, left, at), offset, length)

    def read_back(self, offset: int, length: int) -> bytes:
        if self._direct < 0 or length % mmap.PAGESIZE:
            os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_DONTNEED)
            return self.read(offset, length)
        with mmap.mmap(-1, length) as buffer:
            if os.preadv(self._direct, [buffer], offset) != length:
                raise OSError("it was cut short")
            return buffer[:]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            offset, view = offset + written, view[written:]

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
        if self._direct >= 0:
            os.close(self._direct)


def find_volume(serial: str, blocks: Path = BLOCKS) -> Path:
    """The device whose disk tells this serial number.

    Raises:
        DrengineError: STANDBY_SETTINGS, it is no serial number of a volume; STANDBY_FAILED, there is none, or two.
    """
    if not _SERIAL.fullmatch(serial):
        raise DrengineError(STANDBY_SETTINGS, f"{serial[:40]!r} is no serial number of an EBS volume")
    found = [disk.name for disk in sorted(blocks.iterdir()) if serial in _serials(disk)]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise DrengineError(STANDBY_FAILED, f"one disk has to have the serial number {serial}; there is {listed}")
    return DEVICES / found[0]


def carry_out(
    order: HydrateOrder, notes: Path, secure: Callable[[str], str], stopping: threading.Event, say: Say, blocks: Path
) -> dict[str, str]:
    """Each disk of an order, one after the other; serial numbers by volume.

    Args:
        order: what is to be done.
        notes: directory in which it is noted which volumes this host fills.
        secure: a disk's URI as this host would attach it.
        stopping: it is given up when set.
        say: is told how far it is.
        blocks: the kernel's list of disks.

    Raises:
        DrengineError: STANDBY_SETTINGS, STANDBY_FAILED, NBD_CLIENT, OUTSIDE_DATA_NETWORK.
    """
    if order.direction not in ("fill", "return"):
        raise DrengineError(STANDBY_SETTINGS, f"direction {order.direction[:40]!r} is neither fill nor return")
    for name, disk in order.disks.items():
        uri, device = secure(disk.uri), find_volume(disk.serial, blocks)

        def told(text: str, name: str = name) -> None:
            say(f"{name}: {text}")

        try:
            with _opened(uri, device, disk, writable=order.direction == "fill") as (branch, volume):
                if order.direction == "fill":
                    resumed = _note(notes, disk, volume)
                    equalise(branch, volume, disk.size_bytes, stopping, told, blank=not resumed)
                else:
                    equalise(volume, branch, disk.size_bytes, stopping, told)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"{name}, {device}: {error.strerror or error}") from error
    return {name: disk.serial for name, disk in order.disks.items()}


def equalise(
    origin: Copy, copy: Copy, size_bytes: int, stopping: threading.Event, say: Say, *, blank: bool = False
) -> int:
    """Make a copy equal to its origin, and read it back. Returns how many bytes were written.

    Args:
        origin, copy: disks; neither is changed by anybody else meanwhile.
        size_bytes: how much of them.
        stopping: given up when set.
        say: how far it is.
        blank: the copy is believed to hold zeros only, so zeros are not written; reading back would find what is not.

    Raises:
        OSError, DrengineError: one of them fails; STANDBY_FAILED: the copy does not keep what is written, or it was
            stopped.
    """
    work = _Equalising(origin, copy, size_bytes, _Count(say, size_bytes), blank)
    pieces = range(-(-size_bytes // PIECE_BYTES))
    _each(work.bring, pieces, stopping)
    copy.flush()
    suspects: Sequence[int] = pieces
    for repairs_left in reversed(range(REPAIRS_MAX + 1)):
        suspects = work.read_back(suspects, stopping)
        if not suspects:
            return work.count.bytes
        if repairs_left:
            _each(work.mend, suspects, stopping)
            copy.flush()
    raise DrengineError(STANDBY_FAILED, f"what is written at {suspects[0] * PIECE_BYTES} is not what is read there")


class _Equalising:
    """What is done with each piece."""

    def __init__(self, origin: Copy, copy: Copy, size_bytes: int, count: _Count, blank: bool) -> None:
        self._origin = origin
        self._copy = copy
        self._size_bytes = size_bytes
        self._blank = blank
        self._digests: dict[int, bytes] = {}
        self.count = count

    def bring(self, piece: int) -> None:
        """Write what is not there yet."""
        offset, length = self._span(piece)
        data = self._origin.read(offset, length)
        self._digests[piece] = digest(data)
        there = _ZEROS[:length] if self._blank else self._copy.read(offset, length)
        if data != there:
            self._copy.write(offset, data)
            self.count.add(length)
        self.count.pass_by(length, "copied")

    def read_back(self, pieces: Sequence[int], stopping: threading.Event) -> list[int]:
        """Those that are not what was brought."""
        wrong: list[int] = []

        def look(piece: int) -> None:
            offset, length = self._span(piece)
            if digest(self._copy.read_back(offset, length)) != self._digests[piece]:
                wrong.append(piece)
            self.count.pass_by(length, "read back")

        self.count.begin()
        _each(look, pieces, stopping)
        return sorted(wrong)

    def mend(self, piece: int) -> None:
        """Write it, whatever is there."""
        offset, length = self._span(piece)
        self._copy.write(offset, self._origin.read(offset, length))
        self.count.add(length)

    def _span(self, piece: int) -> tuple[int, int]:
        offset = piece * PIECE_BYTES
        return offset, min(PIECE_BYTES, self._size_bytes - offset)


class _Count:
    """How much was written, and telling how much was gone through."""

    def __init__(self, say: Say, size_bytes: int) -> None:
        self._say = say
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._passed = 0
        self.bytes = 0

    def begin(self) -> None:
        self._passed = 0

    def add(self, length: int) -> None:
        with self._lock:
            self.bytes += length

    def pass_by(self, length: int, verb: str) -> None:
        with self._lock:
            before = 100 * self._passed // self._size_bytes
            self._passed += length
            now = 100 * self._passed // self._size_bytes
            if now > before:
                self._say(f"{now}% of {human_bytes(self._size_bytes)} {verb}")


def _each(work: Callable[[int], None], pieces: Sequence[int], stopping: threading.Event) -> None:
    """Do work for each piece, several at a time, in order.

    Raises:
        DrengineError: STANDBY_FAILED, it was stopped; and whatever work raises.
    """

    def go_on() -> None:
        if stopping.is_set():
            raise DrengineError(STANDBY_FAILED, "it was stopped")

    def wanted() -> Iterator[int]:
        for piece in pieces:
            go_on()
            yield piece
        go_on()

    each_in_threads(work, wanted(), THREADS, "hydrate")


@contextlib.contextmanager
def _opened(uri: str, device: Path, disk: HydrateDisk, *, writable: bool) -> Iterator[tuple[Branch, Volume]]:
    """Both, if they are as large as the disk.

    Raises:
        OSError, DrengineError: they can't be opened; STANDBY_FAILED.
    """
    with contextlib.ExitStack() as open_:
        volume = _open_volume(device, writable=writable)
        open_.callback(volume.close)
        branch = Branch(lambda: NbdClient.of(uri), THREADS)
        open_.callback(branch.close)
        for what, each in ((str(device), volume), ("its branch", branch)):
            if each.size_bytes < disk.size_bytes:
                missing = disk.size_bytes - each.size_bytes
                raise DrengineError(STANDBY_FAILED, f"{what} is {missing} bytes smaller than the disk")
        yield branch, volume


def _open_volume(device: Path, *, writable: bool) -> Volume:
    """An order before this one, which was given up, may need a moment to let go.

    Raises:
        OSError: it is in use.
        DrengineError: STANDBY_FAILED, it is mounted.
    """
    if is_mounted(device.stat()):
        raise DrengineError(STANDBY_FAILED, f"{device} is mounted here")
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return Volume(device, writable=writable)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _note(notes: Path, disk: HydrateDisk, volume: Volume) -> bool:
    """Note that this host fills a volume, before it is written; whether it was noted before.

    Raises:
        DrengineError: STANDBY_FAILED, it holds what this host did not put there.
        OSError: it can't be noted.
    """
    note = notes / disk.serial
    if note.exists():
        return True
    ends = (0, max(0, volume.size_bytes - PIECE_BYTES))
    if any(volume.read(at, min(PIECE_BYTES, volume.size_bytes - at)).strip(b"\0") for at in ends):
        raise DrengineError(
            STANDBY_FAILED, f"volume {disk.serial} is not blank, and this host did not begin to fill it: remove it"
        )
    notes.mkdir(parents=True, exist_ok=True, mode=0o700)
    note.touch()
    sync_directory(notes)
    return False


def _serials(disk: Path) -> set[str]:
    found = set()
    for place in ("device/serial", "serial"):
        with contextlib.suppress(OSError):
            found.add((disk / place).read_text(encoding="ascii", errors="replace").strip().replace("-", ""))
    return found


def _all_of(read: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
    data = read(offset, length)
    while len(data) < length:
        more = read(offset + len(data), length - len(data))
        if not more:
            raise OSError("it was cut short")
        data += more
    return data
