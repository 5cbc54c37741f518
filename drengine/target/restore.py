"""Writing one volume of a point to a raw file or device: sparse, in parallel, resumable, verified.

Rules. Nothing is called complete that was not written, synced, read back and compared. A file is written beside its
final name and renamed last, and replaces nothing that it was not asked to. What is done is remembered in a checksummed
sidecar, always after the destination was synced, so a crash at any moment costs at most the units since then; the
sidecar belongs to one point, volume and size, and to one file or device, and to no other. It stays until all volumes
of a restore are done and this was told, so that the same command given again knows what it has completed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from drengine.durable import ASIDE, replace_durably, sync_directory
from drengine.linux import writeback
from drengine.linux.devices import device_behind, device_instance
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.store.views.view import View
from drengine.target.destination import check_destination, free_bytes, lock, rename_new
from drengine.target.errors import (
    BAD_DESTINATION,
    DESTINATION_EXISTS,
    DESTINATION_SMALL,
    RESTORE_FAILED,
    RESTORE_INTERRUPTED,
)

UNIT_BYTES = 4 << 20
SAVE_SECONDS = 5.0
WORKERS = 2
READ_BACK_UNITS = 16
PARTIAL = ".partial"
SIDECAR = ".drengine-restore"
_SIDECAR = struct.Struct("<8s16sQQQQ")
_SIDECAR_MAGIC = b"DRENRST2"
_BLKZEROOUT = 0x127F
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_DONE = bytes(16)
_ZERO_UNIT = bytes(UNIT_BYTES)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a completed restore did.

    Attributes:
        path: the destination.
        size_bytes: the volume's size.
        written_bytes: written now, without what an earlier, interrupted run had written.
        resumed_bytes: taken over from an earlier run.
        verified: the destination was read back and compared.
    """

    path: Path
    size_bytes: int
    written_bytes: int
    resumed_bytes: int
    verified: bool


class _Stamp(NamedTuple):
    """Which file or device was written, and when last.

    Attributes:
        instance: a file's inode, or a device's number of this boot.
        modified_ns: 0 for a device.
    """

    instance: int
    modified_ns: int

    @staticmethod
    def of(status: os.stat_result) -> _Stamp:
        """That of an open or named file."""
        if stat.S_ISBLK(status.st_mode):
            return _Stamp(device_instance(status), 0)
        return _Stamp(status.st_ino, status.st_mtime_ns)


def _check_of(stamp: _Stamp, body: bytes) -> int:
    return xxh3_64_intdigest(struct.pack("<QQ", *stamp) + body)


class Restore:
    """One volume on its way to one destination: `take` it, `run`, and `forget` when all that belongs to it is told."""

    def __init__(
        self,
        view: View,
        volume: VolumeGeometry,
        destination: Path,
        *,
        identity: bytes,
        clock: Clock,
        verify: bool = True,
        overwrite: bool = False,
        write_device: bool = False,
    ) -> None:
        """
        Args:
            identity: names the store and point; a sidecar of another one is not taken over.
            overwrite: a file that is there may be replaced.
            write_device: a block device may be written.
        """
        self._view = view
        self._volume = volume
        self.destination = device_behind(destination)
        self._clock = clock
        self._verify = verify
        self._overwrite = overwrite
        self._write_device = write_device
        self._is_device = self.destination.is_block_device()
        self._path = self.destination if self._is_device else self._beside(PARTIAL)
        self._sidecar = self._beside(SIDECAR)
        self._key = xxh3_128_digest(identity + f"/{volume.volume}/{volume.size_bytes}/{UNIT_BYTES}".encode())
        self._units = -(-volume.size_bytes // UNIT_BYTES)
        self._digests: list[bytes] = [_NOT_DONE] * self._units
        self._stamp = _Stamp(0, 0)
        self._descriptor = -1
        self._made = False
        self._fresh = False
        self._written = False
        self._stop = threading.Event()
        self._sync_failed = False
        self._buffers = threading.local()
        self._compared: set[int] = set()
        self._load()

    @property
    def is_in_place(self) -> bool:
        """Whether an earlier run of the same restore has completed this file, and it has not changed since."""
        if self._is_device or _NOT_DONE in self._digests:
            return False
        try:
            found = self.destination.lstat()
        except OSError:
            return False
        return _Stamp.of(found) == self._stamp and found.st_size == self._volume.size_bytes

    def check(self, store: Path) -> None:
        """See `check_destination`; what this restore has completed may be there."""
        overwrite = self._overwrite or self.is_in_place
        check_destination(self.destination, self._volume, store, overwrite=overwrite, write_device=self._write_device)

    def names(self) -> set[tuple[int, int, str]]:
        """The device, or the files that it makes, each with its folder's identity, and the file that is there."""
        if self._is_device:
            return {(0, self.destination.stat().st_rdev, "")}
        folder = self.destination.parent.stat()
        paths = (self.destination, self._path, self._sidecar, self._sidecar.with_name(self._sidecar.name + ASIDE))
        names = {(folder.st_dev, folder.st_ino, path.name) for path in paths}
        if self.destination.exists():
            there = self.destination.stat()
            names.add((there.st_dev, there.st_ino, ""))
        return names

    def take(self) -> tuple[int, int]:
        """Open and lock what is to be written; returns which file or device that is. Nothing is written yet.

        Raises:
            DrengineError: DESTINATION_REFUSED, DESTINATION_SMALL, RESTORE_FAILED.
        """
        if self.is_in_place:
            self._path = self.destination
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_EXCL if self._is_device else 0)
        with self._failures():
            try:
                self._descriptor = os.open(self._path, flags)
            except FileNotFoundError:
                self._descriptor = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                self._made = True
            status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def lay_out(self) -> None:
        """Give the file its size, which asks the kernel whether it can have it; holes take no room."""
        lock(self._descriptor, self._path)
        with self._failures():
            status = os.fstat(self._descriptor)
            self._fresh = self._stamp.instance != _Stamp.of(status).instance
            if self._fresh:
                self._digests = [_NOT_DONE] * self._units
            if not self._is_device and self._path != self.destination:
                if self._fresh:
                    os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, self._volume.size_bytes)

    def room_bytes(self) -> int:
        """How much of the file system's free space it still needs, at most."""
        if self._is_device or self._path == self.destination:
            return 0
        data = sum(size for _, size, kind in self._view.extents(self._volume.volume) if kind == "data")
        return max(0, data - os.fstat(self._descriptor).st_blocks * 512)

    def run(self, progress: Progress) -> RestoreReport:
        """Write, sync, read back, rename. Takes the destination if that was not done.

        Raises:
            DrengineError: DESTINATION_EXISTS, DESTINATION_SMALL, RESTORE_FAILED, RESTORE_INTERRUPTED, DAMAGED; what
                was written and synced stays, for the next run.
        """
        try:
            if self._descriptor < 0:
                self.take()
                self.lay_out()
            with self._failures():
                resumed = sum(self._length(unit) for unit, digest in enumerate(self._digests) if digest != _NOT_DONE)
                written = self._write_all(self._descriptor, progress)
                if self._verify:
                    self._read_back(self._descriptor)
                if self._path != self.destination:
                    self._give_name()
        finally:
            self.close()
        return RestoreReport(self.destination, self._volume.size_bytes, written, resumed, self._verify)

    def close(self) -> None:
        """Let go; a file that was made and not written to is removed again."""
        if self._descriptor < 0:
            return
        if self._made and not self._written:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def forget(self) -> None:
        """Remove the memory of what is done: the whole restore is complete, and its caller knows."""
        with contextlib.suppress(OSError):  # it would only say again what is true
            self._sidecar.unlink()

    def _beside(self, ending: str) -> Path:
        return self.destination.with_name(self.destination.name + ending)

    def _give_name(self) -> None:
        if self._overwrite:
            self._path.replace(self.destination)
        else:
            try:
                rename_new(self._path, self.destination)
            except FileExistsError as error:
                said = f"{self.destination} has come to be there meanwhile; what was restored is {self._path}"
                raise DrengineError(DESTINATION_EXISTS, said) from error
        sync_directory(self.destination.parent)

    def stop(self) -> None:
        """Ask a running `run` to save what is done and give up."""
        self._stop.set()

    def _write_all(self, descriptor: int, progress: Progress) -> int:
        """Write all units that are not done; returns bytes written. What the device has is compared meanwhile."""
        missing = iter([unit for unit, digest in enumerate(self._digests) if digest == _NOT_DONE])
        done_bytes = sum(self._length(unit) for unit, digest in enumerate(self._digests) if digest != _NOT_DONE)
        finished: list[tuple[int, bytes]] = []
        behind: deque[tuple[int, bytes]] = deque()
        saved_at, written = self._clock.monotonic(), 0
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="restore") as pool:
            running: set[Future[tuple[int, bytes] | None]] = set()
            try:
                while not self._stop.is_set():
                    while len(running) < 2 * WORKERS:
                        if self._verify and len(behind) > READ_BACK_UNITS:
                            running.add(pool.submit(self._compare_early, descriptor, *behind.popleft()))
                        elif (unit := next(missing, None)) is not None:
                            self._written = True
                            running.add(pool.submit(self._write_unit, descriptor, unit))
                        else:
                            break
                    if not running:
                        break
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in ended:
                        if wrote := each.result():
                            finished.append(wrote)
                            behind.append(wrote)
                            written += self._length(wrote[0])
                    progress(done_bytes + written, self._volume.size_bytes)
                    if self._clock.monotonic() - saved_at >= SAVE_SECONDS:
                        self._save(descriptor, finished)
                        saved_at = self._clock.monotonic()
            except BaseException:
                wait(running)
                if not self._sync_failed:
                    with contextlib.suppress(OSError):
                        self._save(descriptor, finished)
                raise
            wait(running)
            finished += [wrote for each in running if (wrote := each.result())]
        self._save(descriptor, finished)
        if self._stop.is_set():
            raise DrengineError(RESTORE_INTERRUPTED, f"{self._path} is NOT restored; {written} bytes were written")
        return written

    def _compare_early(self, descriptor: int, unit: int, written: bytes) -> None:
        """Compare a unit once the device has it. What differs, or cannot be told yet, is left for `_read_back`."""
        if not writeback.drop(descriptor, unit * UNIT_BYTES, self._length(unit)):
            return
        if self._digest_of(descriptor, unit) == written:
            self._compared.add(unit)

    def _length(self, unit: int) -> int:
        return min(UNIT_BYTES, self._volume.size_bytes - unit * UNIT_BYTES)

    def _write_unit(self, descriptor: int, unit: int) -> tuple[int, bytes]:
        offset, length = unit * UNIT_BYTES, self._length(unit)
        runs = list(self._view.extents(self._volume.volume, offset, length))
        if all(kind != "data" for _, _, kind in runs):
            self._zero(descriptor, offset, length)
            return unit, _zero_digest(length)
        view = self._buffer(length)
        self._view.read_into(self._volume.volume, offset, view)
        for start, size, kind in runs:
            if kind == "data":
                _write_at(descriptor, start, view[start - offset : start - offset + size])
            else:
                self._zero(descriptor, start, size)
        writeback.begin(descriptor, offset, length)
        return unit, xxh3_128_digest(view)

    def _buffer(self, length: int) -> memoryview:
        """This thread's buffer for a unit: a fresh one for each costs as much as filling it."""
        found: memoryview | None = getattr(self._buffers, "unit", None)
        if found is None:
            found = self._buffers.unit = memoryview(bytearray(UNIT_BYTES))
        return found[:length]

    def _zero(self, descriptor: int, offset: int, length: int) -> None:
        """A new partial file is a hole of its full size; a device, or what an earlier run left, may hold anything."""
        if not self._is_device:
            if not self._fresh:
                for at in range(offset, offset + length, UNIT_BYTES):
                    size = min(UNIT_BYTES, offset + length - at)
                    if os.pread(descriptor, size, at) != _ZERO_UNIT[:size]:
                        _write_at(descriptor, at, memoryview(_ZERO_UNIT)[:size])
            return
        try:
            fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("<QQ", offset, length))
        except OSError:
            # unaligned, or a device that can't: plain zeros do
            for at in range(offset, offset + length, UNIT_BYTES):
                _write_at(descriptor, at, memoryview(_ZERO_UNIT)[: min(UNIT_BYTES, offset + length - at)])

    def _read_back(self, descriptor: int) -> None:
        """Compare what the disk gives back, past the page cache as far as the kernel drops it."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="verify") as pool:
            left = [unit for unit in range(self._units) if unit not in self._compared]
            for first in range(0, len(left), READ_BACK_UNITS):
                units = left[first : first + READ_BACK_UNITS]
                if self._stop.is_set():
                    raise DrengineError(RESTORE_INTERRUPTED, f"{self._path} is NOT restored: it was not read back")
                found = list(pool.map(lambda unit: self._digest_of(descriptor, unit), units))
                for unit, digest in zip(units, found, strict=True):
                    if digest != self._digests[unit]:
                        self._differs(descriptor, unit)

    def _differs(self, descriptor: int, unit: int) -> NoReturn:
        """A unit does not hold what was written: it is written again by the next run, if that is ours to do.

        Raises:
            DrengineError: RESTORE_FAILED, DESTINATION_EXISTS.
        """
        if self._path == self.destination and not self._is_device:
            raise DrengineError(DESTINATION_EXISTS, f"{self.destination} was restored, and was changed since")
        self._digests[unit] = _NOT_DONE
        self._save(descriptor, [])
        raise DrengineError(RESTORE_FAILED, f"{self._path} does not hold what was written at {unit * UNIT_BYTES}")

    def _digest_of(self, descriptor: int, unit: int) -> bytes:
        offset, length = unit * UNIT_BYTES, self._length(unit)
        if not self._is_device and _is_hole(descriptor, offset, length):
            return _zero_digest(length)
        buffer = self._buffer(length)
        return xxh3_128_digest(buffer[: os.preadv(descriptor, [buffer], offset)])

    def _load(self) -> None:
        """Take over what an earlier run of the same restore remembered, if there is anything."""
        try:
            data = self._sidecar.read_bytes()
        except OSError:
            return
        if len(data) != _SIDECAR.size + 16 * self._units:
            return
        magic, key, units, instance, modified_ns, check = _SIDECAR.unpack_from(data)
        body = data[_SIDECAR.size :]
        if (magic, key, units) != (_SIDECAR_MAGIC, self._key, self._units):
            return
        if check != _check_of(_Stamp(instance, modified_ns), body):
            return
        self._stamp = _Stamp(instance, modified_ns)
        self._digests = [body[at : at + 16] for at in range(0, len(body), 16)]

    def _save(self, descriptor: int, finished: list[tuple[int, bytes]]) -> None:
        """First the data is durable, then the sidecar says so.

        After a failed sync nothing more is remembered: the kernel may report the next one as a success.
        """
        self._sync_failed = True
        os.fsync(descriptor)  # not fdatasync: the stamp has the time of the last write
        self._sync_failed = False
        for unit, digest in finished:
            self._digests[unit] = digest
        finished.clear()
        body = b"".join(self._digests)
        stamp = _Stamp.of(os.fstat(descriptor))
        head = _SIDECAR.pack(_SIDECAR_MAGIC, self._key, self._units, *stamp, _check_of(stamp, body))
        replace_durably(self._sidecar, head + body)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Give failures of the destination their kind."""
        try:
            yield
        except OSError as error:
            kind = DESTINATION_SMALL if error.errno in _NO_ROOM else RESTORE_FAILED
            raise DrengineError(kind, f"{self._path}: {error.strerror}; it is NOT restored") from error


def prepare(works: Sequence[Restore], store: Path) -> None:
    """Check and take all destinations of one restore from a store's directory before any is written.

    Raises:
        DrengineError: BAD_DESTINATION, DESTINATION_REFUSED, DESTINATION_EXISTS, DESTINATION_SMALL.
    """
    names: set[tuple[int, int, str]] = set()
    for each in works:
        each.check(store)
        if not names.isdisjoint(each.names()):
            said = f"{each.destination} is named twice, or is a file that is needed to write another one"
            raise DrengineError(BAD_DESTINATION, said)
        names |= each.names()
    with ExitStack() as undo:
        taken: dict[tuple[int, int], Restore] = {}
        for each in works:
            undo.callback(each.close)
            other = taken.setdefault(each.take(), each)
            if other is not each:
                said = f"{other.destination} and {each.destination} are two names of the same file"
                raise DrengineError(BAD_DESTINATION, said)
            each.lay_out()
        _check_room(works)
        undo.pop_all()


def _check_room(works: Sequence[Restore]) -> None:
    """What is still to be written fits: holes need no room, and files on one file system share it."""
    needed: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for each in works:
        folder = each.destination.parent
        system = folder.stat().st_dev
        folders[system] = folder
        needed[system] += each.room_bytes()
    for system, folder in folders.items():
        free = free_bytes(folder)
        if needed[system] > free:
            raise DrengineError(
                DESTINATION_SMALL,
                f"{folder} has {free} bytes free, and {needed[system]} bytes of data are to be written there",
            )


@functools.cache
def _zero_digest(length: int) -> bytes:
    return xxh3_128_digest(_ZERO_UNIT[:length])


def _is_hole(descriptor: int, offset: int, length: int) -> bool:
    """Whether a file has nothing there that could be read but zeros, by its file system's word."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        return error.errno == errno.ENXIO


def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
