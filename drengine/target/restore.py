"""Writing one volume of a point to a raw file or device: sparse, in parallel, resumable, verified.

Rules. Nothing is called complete that was not written, synced, read back and compared. A file is written beside its
final name and renamed last. What is done is remembered in a checksummed sidecar, always after the destination was
synced, so a crash at any moment costs at most the units since then; the sidecar belongs to one point, volume and size
and no other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from drengine.durable import replace_durably, sync_directory
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.store.view import View
from drengine.target.errors import (
    DESTINATION_EXISTS,
    DESTINATION_REFUSED,
    DESTINATION_SMALL,
    RESTORE_FAILED,
    RESTORE_INTERRUPTED,
)

UNIT_BYTES = 4 << 20
SAVE_SECONDS = 5.0
WORKERS = 2
PARTIAL = ".partial"
SIDECAR = ".drengine-restore"
_SIDECAR = struct.Struct("<8s16sQQ")
_SIDECAR_MAGIC = b"DRENRST1"
_BLKZEROOUT = 0x127F
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


class Restore:
    """One volume on its way to one destination."""

    def __init__(
        self,
        view: View,
        volume: VolumeGeometry,
        destination: Path,
        *,
        identity: bytes,
        clock: Clock,
        verify: bool = True,
    ) -> None:
        """`identity` names the store and point; a sidecar of another one is not taken over."""
        self._view = view
        self._volume = volume
        self._destination = destination
        self._clock = clock
        self._verify = verify
        self._is_device = destination.exists() and stat.S_ISBLK(destination.stat().st_mode)
        self._path = destination if self._is_device else destination.with_name(destination.name + PARTIAL)
        self._sidecar = destination.with_name(destination.name + SIDECAR)
        self._key = xxh3_128_digest(identity + f"/{volume.volume}/{volume.size_bytes}/{UNIT_BYTES}".encode())
        self._units = -(-volume.size_bytes // UNIT_BYTES)
        self._digests: list[bytes] = [_NOT_DONE] * self._units
        self._stop = threading.Event()
        self._sync_failed = False
        self._fresh = True

    def run(self, progress: Progress) -> RestoreReport:
        """Write, sync, read back, rename.

        Raises:
            DrengineError: DESTINATION_SMALL, RESTORE_FAILED, RESTORE_INTERRUPTED, DAMAGED; what was written and
                synced stays, for the next run.
        """
        self._fresh = fresh = not self._load()
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_EXCL if self._is_device else os.O_CREAT)
        with self._failures():
            descriptor = os.open(self._path, flags, 0o600)
        try:
            _lock(descriptor, self._path)
            with self._failures():
                if not self._is_device:
                    if fresh:
                        os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, self._volume.size_bytes)
                resumed = sum(digest != _NOT_DONE for digest in self._digests)
                written = self._write_all(descriptor, progress)
                if self._verify:
                    self._read_back(descriptor)
        finally:
            os.close(descriptor)
        with self._failures():
            if not self._is_device:
                self._path.rename(self._destination)
            self._sidecar.unlink(missing_ok=True)
            sync_directory(self._destination.parent)
        return RestoreReport(
            self._destination,
            self._volume.size_bytes,
            written,
            min(resumed * UNIT_BYTES, self._volume.size_bytes),
            self._verify,
        )

    def stop(self) -> None:
        """Ask a running `run` to save what is done and give up."""
        self._stop.set()

    def _write_all(self, descriptor: int, progress: Progress) -> int:
        """Write all units that are not done; returns bytes written."""
        missing = iter([unit for unit, digest in enumerate(self._digests) if digest == _NOT_DONE])
        done_bytes = sum(self._length(unit) for unit, digest in enumerate(self._digests) if digest != _NOT_DONE)
        finished: list[tuple[int, bytes]] = []
        saved_at, written = self._clock.monotonic(), 0
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="restore") as pool:
            running: set[Future[tuple[int, bytes]]] = set()
            try:
                while not self._stop.is_set():
                    for unit in missing:
                        running.add(pool.submit(self._write_unit, descriptor, unit))
                        if len(running) >= 2 * WORKERS:
                            break
                    if not running:
                        break
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in ended:
                        unit, digest = each.result()
                        finished.append((unit, digest))
                        written += self._length(unit)
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
            finished += [each.result() for each in running]
        self._save(descriptor, finished)
        if self._stop.is_set():
            raise DrengineError(RESTORE_INTERRUPTED, f"{self._path} is NOT restored; {written} bytes were written")
        return written

    def _length(self, unit: int) -> int:
        return min(UNIT_BYTES, self._volume.size_bytes - unit * UNIT_BYTES)

    def _write_unit(self, descriptor: int, unit: int) -> tuple[int, bytes]:
        offset, length = unit * UNIT_BYTES, self._length(unit)
        runs = list(self._view.extents(self._volume.volume, offset, length))
        if all(kind != "data" for _, _, kind in runs):
            self._zero(descriptor, offset, length)
            return unit, xxh3_128_digest(_ZERO_UNIT[:length])
        buffer = bytearray(length)
        self._view.read_into(self._volume.volume, offset, buffer)
        view = memoryview(buffer)
        for start, size, kind in runs:
            if kind == "data":
                _write_at(descriptor, start, view[start - offset : start - offset + size])
            else:
                self._zero(descriptor, start, size)
        return unit, xxh3_128_digest(buffer)

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
            for unit, digest in enumerate(pool.map(lambda unit: self._digest_of(descriptor, unit), range(self._units))):
                if digest != self._digests[unit]:
                    self._digests[unit] = _NOT_DONE
                    self._save(descriptor, [])
                    raise DrengineError(
                        RESTORE_FAILED, f"{self._path} does not hold what was written at {unit * UNIT_BYTES}"
                    )

    def _digest_of(self, descriptor: int, unit: int) -> bytes:
        return xxh3_128_digest(os.pread(descriptor, self._length(unit), unit * UNIT_BYTES))

    def _load(self) -> bool:
        """Take over what an earlier run of the same restore has done; False if there is nothing."""
        try:
            data = self._sidecar.read_bytes()
            present = self._path.exists()
        except OSError:
            return False
        if len(data) != _SIDECAR.size + 16 * self._units or not present:
            return False
        magic, key, units, check = _SIDECAR.unpack_from(data)
        body = data[_SIDECAR.size :]
        if magic != _SIDECAR_MAGIC or key != self._key or units != self._units or check != xxh3_64_intdigest(body):
            return False
        self._digests = [body[at : at + 16] for at in range(0, len(body), 16)]
        return True

    def _save(self, descriptor: int, finished: list[tuple[int, bytes]]) -> None:
        """First the data is durable, then the sidecar says so.

        After a failed sync nothing more is remembered: the kernel may report the next one as a success.
        """
        self._sync_failed = True
        os.fdatasync(descriptor)
        self._sync_failed = False
        for unit, digest in finished:
            self._digests[unit] = digest
        finished.clear()
        body = b"".join(self._digests)
        head = _SIDECAR.pack(_SIDECAR_MAGIC, self._key, self._units, xxh3_64_intdigest(body))
        replace_durably(self._sidecar, head + body)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Give failures of the destination their kind."""
        try:
            yield
        except OSError as error:
            kind = DESTINATION_SMALL if error.errno in (errno.ENOSPC, errno.EDQUOT) else RESTORE_FAILED
            raise DrengineError(kind, f"{self._path}: {error.strerror}; it is NOT restored") from error


def check_destination(destination: Path, volume: VolumeGeometry, store: Path, *, force: bool) -> None:
    """Refuse what must not be written, before anything is.

    Raises:
        DrengineError: DESTINATION_REFUSED (inside the store, a link, mounted or in use, the source's own volume, not a
            file or device), DESTINATION_EXISTS, DESTINATION_SMALL.
    """
    folder = destination.parent
    if destination.is_symlink() or not folder.is_dir():
        raise DrengineError(DESTINATION_REFUSED, f"{destination} is a symbolic link, or its folder does not exist")
    if store.resolve() in (folder / destination.name).resolve().parents:
        raise DrengineError(DESTINATION_REFUSED, f"{destination} lies inside the store")
    if not destination.exists():
        room = os.statvfs(folder)
        if volume.size_bytes > room.f_blocks * room.f_frsize:
            raise DrengineError(DESTINATION_SMALL, f"{folder} is smaller than the volume's {volume.size_bytes} bytes")
        return
    status = destination.stat()
    if stat.S_ISBLK(status.st_mode):
        _check_device(destination, volume, status.st_rdev)
    elif stat.S_ISREG(status.st_mode):
        _check_file(destination, volume, status)
    else:
        raise DrengineError(DESTINATION_REFUSED, f"{destination} is neither a regular file nor a block device")
    if not force:
        raise DrengineError(DESTINATION_EXISTS, f"{destination} exists")


def _check_file(file: Path, volume: VolumeGeometry, status: os.stat_result) -> None:
    """It must be nobody's disk: not the protected one, not an agent's, not a loop device's."""
    if volume.identity.startswith(f"file:{os.statvfs(file).f_fsid:x}:{status.st_ino}:"):
        raise DrengineError(DESTINATION_REFUSED, f"{file} is the protected volume itself")
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text(encoding="utf-8", errors="replace").rstrip("\n") == str(file.resolve()):
                raise DrengineError(DESTINATION_REFUSED, f"{file} is in use by {backing.parts[3]}")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DrengineError(DESTINATION_REFUSED, f"{file}: {error.strerror}") from error
    try:
        _lock(descriptor, file)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Agents and other restores lock what they use; the lock goes with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DrengineError(DESTINATION_REFUSED, f"{path} is in use by another process") from error


def _check_device(device: Path, volume: VolumeGeometry, number: int) -> None:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    if any(line.split()[2] == f"{os.major(number)}:{os.minor(number)}" for line in mounts):
        raise DrengineError(DESTINATION_REFUSED, f"{device} is mounted")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise DrengineError(DESTINATION_REFUSED, f"{device}: {error.strerror}") from error
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
    if size < volume.size_bytes:
        raise DrengineError(DESTINATION_SMALL, f"{device} has {size} bytes, the volume {volume.size_bytes}")


def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
