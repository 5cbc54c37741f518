"""A source's volume as it lies on this host: a file or block device, opened once, known by what it is.

A path is only a way to find a volume. What it *is* gets read from the open file, as evidence of several kinds
(drengine.linux.identity). So another disk under an old name is refused (VOLUME_REPLACED), never replicated as if it
were the old one, until somebody says that it replaces that one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from drengine.linux.devices import BLOCK_DEVICES, Number, attribute, boot_id, device_number, disk_attribute
from drengine.linux.identity import Evidence, evidence_in, evidence_of, identity_of, is_same, is_weak, joined
from drengine.linux.mounts import read_mounts
from drengine.model.errors import DrengineError, error_kind
from drengine.model.points import VolumeGeometry

VOLUME_MISSING = error_kind(
    "volume-missing",
    70,
    "A volume's path does not open.",
    "Attach the disk or correct `path` in the configuration.",
    retryable=True,
)
VOLUME_REPLACED = error_kind(
    "volume-replaced",
    71,
    "Another file or device lies under a volume's path.",
    "Attach the right disk; if it is meant to replace the old one: `drengine-agent adopt --volume NAME`.",
)
VOLUME_IN_USE = error_kind(
    "volume-in-use",
    72,
    "A volume is mounted or otherwise in use, so writes would pass by the tap.",
    "Unmount it and use it through the agent's NBD address only.",
)
VOLUME_UNSUPPORTED = error_kind(
    "volume-unsupported",
    73,
    "A path is no regular file and no block device, or is empty.",
    "Name a disk, a partition, a logical volume or a disk image.",
)

WEAK_HINT = (
    "Give the disk a serial number (QEMU: serial=, libvirt: <serial>), a partition table or a file system; "
    "or accept it with `anonymous = true` in the volume's table of the configuration."
)
_BLKGETSIZE64: Final = 0x80081272
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_CANNOT_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY})
_ZEROS = bytes(1 << 20)
_DIRECT_ALIGN_BYTES = 4096
_IOV_MAX = 1024
_CANNOT_TELL = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Volume:
    """One open volume. Safe to use from several threads; `close` by its owner only.

    Attributes:
        volume: its number inside the source.
        name: what people call it.
        path: where it was found.
        identity: what it is, printable; stays the same over restarts.
        declared: what the target knows it as: the identity of the first disk that it lay on.
        evidence: what it was recognised by, to be remembered.
        size_bytes: its size when it was opened.
        writable: it was opened (and locked) for the tap.
    """

    def __init__(self, volume: int, name: str, path: Path, fd: int, *, writable: bool, direct: bool) -> None:
        """Take over an open file descriptor; use `open`."""
        self.volume = volume
        self.name = name
        self.path = path
        self.writable = writable
        self._fd = fd
        status = os.fstat(fd)
        self._device = _number(status) if stat.S_ISBLK(status.st_mode) else None
        self.evidence = evidence_of(fd)
        self.identity = self.declared = identity_of(self.evidence)
        self.size_bytes = _size(fd, status)
        self._disk_sequence = disk_attribute(self._device, "diskseq") if self._device is not None else ""
        self._direct_fd = self._open_direct() if direct else -1

    @staticmethod
    def open(
        volume: int,
        name: str,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        identity: str = "",
        evidence: Evidence | None = None,
        declared: str = "",
        direct: bool = False,
    ) -> Volume:
        """Open a volume and check what it is.

        Args:
            volume: its number inside the source.
            name: what people call it.
            path: a regular file or a block device.
            writable: for the tap: refused while anybody else may write to it, and locked.
            identity: what it must be, as `identity` of an earlier open said; empty accepts anything.
            evidence: what it was recognised by then, if that is known.
            declared: what the target knows it as, if that is something else.
            direct: large aligned reads bypass the page cache where the file system can.

        Raises:
            DrengineError: VOLUME_MISSING, VOLUME_REPLACED, VOLUME_IN_USE or VOLUME_UNSUPPORTED.
        """
        where = Path(path)
        fd = _open(name, where, writable)
        try:
            opened = Volume(volume, name, where, fd, writable=writable, direct=direct)
            opened._verify(identity, evidence or evidence_in(identity))
            opened.declared = declared or opened.identity
            if writable:
                opened._claim()
        except BaseException:
            os.close(fd)
            raise
        return opened

    @property
    def geometry(self) -> VolumeGeometry:
        """The volume as it is declared to the target."""
        return VolumeGeometry(self.volume, self.name, self.declared, self.size_bytes)

    @property
    def sector_bytes(self) -> int:
        """Logical sector size; 0 for a file, which has none."""
        return int(self.evidence.get("sector", 0))

    @property
    def is_weak(self) -> bool:
        """Nothing that lasts tells this disk from another one like it."""
        return is_weak(self.evidence)

    def evidence_now(self) -> dict[str, str]:
        """What it can be recognised by from now on: what is written on it may have changed.

        Raises:
            OSError: it can't be looked at.
        """
        self.evidence = joined(self.evidence, evidence_of(self._fd))
        return self.evidence

    @property
    def descriptor_path(self) -> str:
        """A path that opens this very file or device again, whatever lies at `path` now."""
        return f"/proc/self/fd/{self._fd}"

    def check(self) -> int:
        """Look again, at the path and at the open file, and return the size in bytes as it is now.

        A size other than `size_bytes` means new geometry: close the volume and open it again.

        Raises:
            DrengineError: VOLUME_MISSING or VOLUME_REPLACED.
        """
        try:
            there = os.stat(self.path)  # noqa: PTH116 - same call as fstat below, on purpose
            here = os.fstat(self._fd)
            same = (
                there.st_rdev == here.st_rdev
                if stat.S_ISBLK(there.st_mode) and self._device is not None
                else (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
            )
            if self._device is not None and disk_attribute(self._device, "diskseq") != self._disk_sequence:
                same = False
            if not same:
                raise DrengineError(VOLUME_REPLACED, f"volume {self.name}: {self.path} is another device or file now")
            return _size(self._fd, here)
        except OSError as error:
            raise DrengineError(VOLUME_MISSING, f"volume {self.name}: {self.path}: {error.strerror}") from error

    def stamp(self) -> str:
        """A text that changes when anybody writes to the volume: compare it after a stop.

        For a file its size and times; for a device the boot and how many sectors were written and discarded (a reboot
        changes it). Not how many writes there were: a flush counts as one on some devices, and changes nothing.
        """
        if self._device is None:
            status = os.fstat(self._fd)
            return f"file {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        fields = attribute(self._device, "stat").split()
        counters = [fields[i] for i in (6, 13) if i < len(fields)]  # sectors written, sectors discarded
        return " ".join(["device", boot_id(), self._disk_sequence, *counters])

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes.

        Raises:
            OSError: the device failed, or it ends early (EIO): nothing is made up for what can't be read.
        """
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            data += self._read_rest(offset + len(data), length - len(data))
        return data

    def read_cached(self, offset: int, length: int) -> bytearray | None:
        """As `read`, but None where that would wait for the disk, or the file system can't tell.

        Raises:
            OSError: the device failed.
        """
        buffer = bytearray(length)
        try:
            done = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in _CANNOT_TELL:
                return None
            raise
        return buffer if done == length else None

    def _read_rest(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise OSError(errno.EIO, f"volume {self.name} ends at byte {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview | bytearray) -> None:
        """Fill a buffer; past the page cache if opened `direct` and everything is aligned to pages.

        Raises:
            OSError: as `read`.
        """
        view = memoryview(buffer)
        if self._direct_fd >= 0 and not (offset | len(view)) % _DIRECT_ALIGN_BYTES:
            try:
                done = os.preadv(self._direct_fd, [view], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                done = 0  # an unaligned buffer: the ordinary way will do
            offset, view = offset + done, view[done:]
        while view:
            done = os.preadv(self._fd, [view], offset)
            if not done:
                raise OSError(errno.EIO, f"volume {self.name} ends at byte {offset}")
            offset, view = offset + done, view[done:]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` (to the page cache; `sync` makes it durable).

        Raises:
            OSError: the device failed; part of it may have been written.
        """
        done = os.pwrite(self._fd, data, offset)
        if done != len(data):
            self._write_rest(offset + done, memoryview(data)[done:])

    def write_all(self, offset: int, parts: Sequence[bytes | memoryview], length: int) -> None:
        """Write adjacent parts, `length` bytes together, in one go.

        Raises:
            OSError: as `write`.
        """
        if len(parts) > _IOV_MAX or os.pwritev(self._fd, parts, offset) != length:
            for part in parts:
                self._write_rest(offset, memoryview(part))
                offset += len(part)

    def _write_rest(self, offset: int, view: memoryview) -> None:
        while view:
            done = os.pwrite(self._fd, view, offset)
            offset, view = offset + done, view[done:]

    def zero(self, offset: int, length: int, *, hole: bool = True) -> None:
        """Make a range read as zeros, freeing its space if `hole` and the device can, else by writing zeros.

        Raises:
            OSError: as `write`.
        """
        try:
            _fallocate(self._fd, _KEEP_SIZE | (_PUNCH_HOLE if hole else _ZERO_RANGE), offset, length)
        except OSError as error:
            if error.errno not in _CANNOT_FALLOCATE:
                raise
            for start in range(offset, offset + length, len(_ZEROS)):
                part = min(len(_ZEROS), offset + length - start)
                self._write_rest(start, memoryview(_ZEROS)[:part])

    def sync(self) -> None:
        """Make everything written durable.

        Raises:
            OSError: it is unknown what is durable; asking again proves nothing (fsyncgate).
        """
        os.fdatasync(self._fd)

    def forget_cached(self) -> None:
        """Let the kernel drop what it keeps in memory of the volume: what is read next comes from the disk."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def data_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """Cut a range of a file into (offset, length, is data) by its holes; a device is all data."""
        end = offset + length
        if self._device is not None:
            return [(offset, length, True)]
        pieces: list[tuple[int, int, bool]] = []
        while offset < end:
            try:
                data = min(os.lseek(self._fd, offset, os.SEEK_DATA), end)
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end) if data < end else end
            except OSError as error:
                if error.errno != errno.ENXIO:
                    return [*pieces, (offset, end - offset, True)]
                data = hole = end  # no data up to the end of the file
            if data > offset:
                pieces.append((offset, data - offset, False))
            if hole > data:
                pieces.append((data, hole - data, True))
            offset = max(hole, data)
        return pieces

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
        self._fd = self._direct_fd = -1

    def _verify(self, identity: str, known: Evidence) -> None:
        if identity:
            if not is_same(known, self.evidence):
                raise DrengineError(
                    VOLUME_REPLACED,
                    f"volume {self.name}: {self.path} is {self.identity}, expected {identity}",
                    hint="Attach the right disk; if it is meant to replace the old one: "
                    f"`drengine-agent adopt --volume {self.name}`.",
                )
            self.identity, self.evidence = identity, joined(known, self.evidence)
        if self.size_bytes == 0:
            raise DrengineError(VOLUME_UNSUPPORTED, f"volume {self.name}: {self.path} is empty")

    def _open_direct(self) -> int:
        try:
            return os.open(self.descriptor_path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return -1  # tmpfs and the like: reads go through the page cache

    def _claim(self) -> None:
        user = _loop_user(self.path) if self._device is None else _device_user(self._device)
        if user:
            raise DrengineError(VOLUME_IN_USE, f"volume {self.name}: {self.path} is in use by {user}")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DrengineError(VOLUME_IN_USE, f"volume {self.name}: another process has locked {self.path}") from error


def _open(name: str, path: Path, writable: bool) -> int:
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise DrengineError(VOLUME_UNSUPPORTED, f"volume {name}: {path} is no regular file and no block device")
        flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
        if writable and stat.S_ISBLK(status.st_mode):
            user = _device_user(_number(status))
            if user:
                raise DrengineError(VOLUME_IN_USE, f"volume {name}: {path} is in use by {user}")
            flags |= os.O_EXCL  # the kernel refuses a claimed device, and refuses to mount ours
        return os.open(path, flags)
    except OSError as error:
        kind = VOLUME_IN_USE if error.errno == errno.EBUSY else VOLUME_MISSING
        raise DrengineError(kind, f"volume {name}: {path}: {error.strerror}") from error


def _size(fd: int, status: os.stat_result) -> int:
    if not stat.S_ISBLK(status.st_mode):
        return status.st_size
    answer = fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8))
    return int.from_bytes(answer, "little")


def _number(status: os.stat_result) -> Number:
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _device_user(device: Number) -> str:
    """Who may write to a device beside us: a mount, swap, or a device built upon it or its partitions."""
    root = BLOCK_DEVICES / "{}:{}".format(*device)
    family = [root]
    with contextlib.suppress(OSError):
        family += [child for child in root.iterdir() if (child / "partition").exists()]
    numbers = set()
    for member in family:
        with contextlib.suppress(OSError):
            numbers.add((member / "dev").read_text().strip())
            holders = sorted(holder.name for holder in (member / "holders").iterdir())
            if holders:
                return f"the device {holders[0]}"
    with contextlib.suppress(OSError):
        for mount in read_mounts():
            if "{}:{}".format(*mount.block_device() or (0, 0)) in numbers:
                return f"a mount at {mount.at}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/swaps").read_text().splitlines()[1:]:
            if "{}:{}".format(*device_number(Path(line.split()[0]))) in numbers:
                return "swap"
    return ""


def _loop_user(path: Path) -> str:
    """The loop device that shows a file, if it may write to it."""
    wanted = str(path.resolve())
    for device in sorted(Path("/sys/block").glob("loop*")):
        with contextlib.suppress(OSError):
            backing = (device / "loop" / "backing_file").read_text().strip()
            if backing == wanted and (device / "ro").read_text().strip() != "1":
                return f"/dev/{device.name}"
    return ""
