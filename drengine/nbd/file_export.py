"""A file or block device as an export: the plainest one, for tests, benchmarks and small jobs."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.nbd.errors import NBD_UNKNOWN_EXPORT
from drengine.nbd.export import (
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    STATUS_HOLE,
    STATUS_ZERO,
    Command,
    Complete,
    Export,
    ExportInfo,
    NbdError,
    Peer,
    Reply,
    Request,
)

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_ZEROES = bytes(1 << 20)
_READ, _WRITE = int(Command.READ), int(Command.WRITE)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class FileExport:
    """Reads and writes go to the page cache at once; FLUSH and FUA wait for fdatasync in an executor.

    A failed fdatasync is never retried: pages may have been dropped, so from then on every flush fails (fault 5).
    """

    inline = True

    def __init__(self, path: str | os.PathLike[str], name: str = "", *, read_only: bool = False) -> None:
        """Open `path`.

        Raises:
            OSError: it cannot be opened.
        """
        self._descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self._regular = stat.S_ISREG(status.st_mode)
        size = status.st_size if self._regular else os.lseek(self._descriptor, 0, os.SEEK_END)
        self._sync_failed = False
        self.info = ExportInfo(name, size, read_only=read_only, can_block_status=self._regular)

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        """See Export."""
        replies: list[Reply] = []
        descriptor, pwrite = self._descriptor, os.pwrite
        durable: list[Request] = []
        for request in requests:
            data = request.data
            try:
                if data is not None:
                    if pwrite(descriptor, data, request.offset) != request.length:
                        self._write_rest(request, data)
                elif request.command == _READ:
                    replies.append(Reply(request, 0, self._read(request.offset, request.length)))
                    continue
                elif request.command != Command.FLUSH:
                    self._clear(request)
            except OSError as error:
                replies.append(_failure(request, error))
                continue
            if request.flags & FLAG_FUA or request.command == Command.FLUSH:
                durable.append(request)
            else:
                replies.append(Reply(request))
        if durable:
            self._sync(durable, complete)
        return replies

    async def handle(self, request: Request) -> Reply:
        """Not used: the export is inline."""
        raise NotImplementedError

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Data and holes as the file system knows them."""
        extents: list[tuple[int, int]] = []
        end = offset + length
        while offset < end:
            data = self._seek(offset, os.SEEK_DATA, end)
            if data > offset:
                extents.append((data - offset, STATUS_HOLE | STATUS_ZERO))
            hole = self._seek(data, os.SEEK_HOLE, end) if data < end else end
            if hole > data:
                extents.append((hole - data, 0))
            offset = hole
        return extents

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._descriptor, offset, whence), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the file has shrunk")
            data += more
        return data

    def _write_rest(self, request: Request, data: memoryview) -> None:
        """After a short write: all of it again, until done or an error says why."""
        done = 0
        while done < request.length:
            done += os.pwrite(self._descriptor, data[done:], request.offset + done)

    def _clear(self, request: Request) -> None:
        """TRIM and WRITE_ZEROES: both read as zeros afterwards."""
        zeroing = request.command == Command.WRITE_ZEROES
        keep = bool(request.flags & FLAG_NO_HOLE)
        mode = _KEEP_SIZE | (_ZERO_RANGE if keep else _PUNCH_HOLE)
        if _libc.fallocate(self._descriptor, mode, request.offset, request.length) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
            raise OSError(code, os.strerror(code))
        if zeroing and request.flags & FLAG_FAST_ZERO:
            raise OSError(errno.EOPNOTSUPP, "zeroing is not fast here")
        if zeroing:
            offset, left = request.offset, request.length
            while left:
                written = os.pwrite(self._descriptor, memoryview(_ZEROES)[: min(left, len(_ZEROES))], offset)
                offset, left = offset + written, left - written

    def _sync(self, requests: Sequence[Request], complete: Complete) -> None:
        future = asyncio.get_running_loop().run_in_executor(None, os.fdatasync, self._descriptor)

        def synced(done: asyncio.Future[None]) -> None:
            error = done.exception()
            self._sync_failed = self._sync_failed or error is not None
            code, message = (NbdError.EIO, "a write could not be made durable") if self._sync_failed else (0, "")
            complete([Reply(request, code, message=message) for request in requests])

        future.add_done_callback(synced)


def _failure(request: Request, error: OSError) -> Reply:
    code = {errno.ENOSPC: NbdError.ENOSPC, errno.EOPNOTSUPP: NbdError.ENOTSUP}.get(error.errno or 0, NbdError.EIO)
    return Reply(request, code, message=error.strerror or "")


class FileProvider:
    """Serves a fixed set of files by name; the empty name means the first. Each connection opens its own."""

    def __init__(self, files: dict[str, Path], *, read_only: bool = False) -> None:
        self._files = files
        self._read_only = read_only

    async def names(self, peer: Peer) -> list[str]:
        """See ExportProvider."""
        return list(self._files)

    async def open(self, name: str, peer: Peer) -> Export:
        """See ExportProvider."""
        wanted = name or next(iter(self._files), "")
        if wanted not in self._files:
            raise DrengineError(NBD_UNKNOWN_EXPORT, f"there is no export {name!r}")
        return FileExport(self._files[wanted], wanted, read_only=self._read_only)
