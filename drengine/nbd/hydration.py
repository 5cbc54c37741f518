"""Hydration: a remote disk is used at once, and becomes local in the background.

Reads come from the local copy where it is filled, else from the remote disk (and fill it). Writes go to the remote disk
first, always: it stays the truth and keeps its recovery points, so a workload is protected from its first write and
loses nothing with this host. The copy is a cache: after any stop it is filled anew, so nothing about it must survive.

Without a place for the copy it only passes on: for clients that can't speak TLS as the remote side wants it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from drengine.linux.devices import device_behind
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.nbd.export import FLAG_FUA, Command, Complete, Export, ExportInfo, NbdError, Peer, Reply, Request

BLOCK_BYTES = 64 << 10
FILL_BYTES = 1 << 20
LOCKS = 256
_PUNCH_HOLE = 0x03
_ZEROS = bytes(FILL_BYTES)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Hydration:
    """One disk on its way here. Threads may share it.

    Invariant: a block that is marked filled holds in the local copy what the remote disk holds. It is kept by changing
    both under the locks of all blocks that a request touches.
    """

    def __init__(self, connect: Callable[[], NbdClient], copy: Path | None, *, connections: int = 4) -> None:
        """Connect so many times, and begin an empty copy at `copy` (a file is made anew; a device, also behind a link,
        must be big enough and not be in use; None: there is none).

        Raises:
            DrengineError, OSError: the remote disk or the copy can't be opened.
        """
        self._clients: queue.SimpleQueue[NbdClient] = queue.SimpleQueue()
        self._connect = connect
        with ExitStack() as undo:
            for _ in range(connections):
                client = connect()
                undo.callback(client.close)
                self._clients.put(client)
            self.size_bytes = client.size_bytes
            self.sector_bytes = client.block_bytes_min
            self._copy = -1
            if copy is not None:
                copy = device_behind(copy)
                flags = os.O_EXCL if copy.is_block_device() else os.O_CREAT
                self._copy = os.open(copy, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
                undo.callback(os.close, self._copy)
                self._begin_copy(copy)
            undo.pop_all()
        self._is_file = copy is not None and copy.is_file()
        self._filled = bytearray(-(-self.size_bytes // BLOCK_BYTES))
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def _begin_copy(self, copy: Path) -> None:
        if copy.is_file():
            os.ftruncate(self._copy, 0)
            os.ftruncate(self._copy, self.size_bytes)
        elif os.lseek(self._copy, 0, os.SEEK_END) < self.size_bytes:
            raise OSError(f"{copy} is smaller than {self.size_bytes} bytes")

    @property
    def hydrated_bytes(self) -> int:
        """How much of the disk is local."""
        return min(self.size_bytes, self._filled.count(1) * BLOCK_BYTES)

    @property
    def complete(self) -> bool:
        """Whether reads need the remote disk no more."""
        return 0 not in self._filled

    def read(self, offset: int, length: int) -> bytes:
        """Read; what was not local is afterwards.

        Raises:
            OSError, DrengineError: the remote disk or the copy failed.
        """
        if self._copy < 0:
            with self._remote() as remote:
                return bytes(remote.read(offset, length))
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        with self._locked(first, last):
            if 0 in self._filled[first : last + 1]:
                self._fill(first, last)
            return self._read_copy(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write to both; it is durable after `flush`."""
        with self._changing(offset, len(data)):
            with self._remote() as remote:
                remote.write(offset, data)
            self._write_copy(offset, data)

    def zero(self, offset: int, length: int, *, discard: bool) -> None:
        """Zeros, or a discard, to both."""
        with self._changing(offset, length):
            with self._remote() as remote:
                (remote.trim if discard else remote.zero)(offset, length)
            self._zero_copy(offset, length)

    def flush(self) -> None:
        """Everything written is durable, remotely: the copy is a cache."""
        with self._remote() as remote:
            remote.flush()

    def fill(self, stopping: threading.Event) -> None:
        """Bring everything here, in order; requests of clients go first.

        Raises:
            OSError, DrengineError: as `read`; calling it again goes on.
        """
        step = FILL_BYTES // BLOCK_BYTES
        if self._copy < 0:
            stopping.wait()
            return
        for first in range(0, len(self._filled), step):
            if stopping.is_set():
                return
            last = min(first + step, len(self._filled)) - 1
            if 0 in self._filled[first : last + 1]:
                with self._locked(first, last):
                    self._fill(first, last)

    def close(self) -> None:
        """Let go; the copy stays as it is."""
        while not self._clients.empty():
            self._clients.get().close()
        if self._copy >= 0:
            os.close(self._copy)

    def _fill(self, first: int, last: int) -> None:
        """Bring what is missing of these blocks; their locks are held."""
        block = first
        while block <= last:
            if self._filled[block]:
                block += 1
                continue
            run = block
            while run <= last and not self._filled[run] and (run - block) * BLOCK_BYTES < FILL_BYTES:
                run += 1
            offset, end = block * BLOCK_BYTES, min(run * BLOCK_BYTES, self.size_bytes)
            with self._remote() as remote:
                data = remote.read(offset, end - offset)
            if data == _ZEROS[: len(data)]:
                self._zero_copy(offset, len(data))
            else:
                self._write_copy(offset, data)
            self._filled[block:run] = b"\1" * (run - block)
            block = run

    @contextmanager
    def _changing(self, offset: int, length: int) -> Iterator[None]:
        """Around a change of both: while it is under way, and if it fails, the blocks that it touches count as not
        filled: what the remote disk holds then is unknown. Afterwards those are filled that were before, and
        those that it covered whole."""
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        with self._locked(first, last):
            after = bytearray(self._filled[first : last + 1])
            for edge in (first, last):
                begin, end = edge * BLOCK_BYTES, min((edge + 1) * BLOCK_BYTES, self.size_bytes)
                after[edge - first] |= offset <= begin and end <= offset + length
            after[1:-1] = b"\1" * len(after[1:-1])
            self._filled[first : last + 1] = bytes(len(after))
            yield
            self._filled[first : last + 1] = after

    @contextmanager
    def _locked(self, first: int, last: int) -> Iterator[None]:
        wanted = range(LOCKS) if last - first >= LOCKS else sorted({block % LOCKS for block in range(first, last + 1)})
        with ExitStack() as held:
            for number in wanted:
                held.enter_context(self._locks[number])
            yield

    @contextmanager
    def _remote(self) -> Iterator[NbdClient]:
        """A connection to the remote disk; one that failed is replaced by a new one."""
        client = self._clients.get()
        try:
            yield client
        except (OSError, DrengineError):
            client.close()
            try:
                client = self._connect()
            finally:
                self._clients.put(client)  # a dead one fails again, and is replaced then
            raise
        self._clients.put(client)

    def _read_copy(self, offset: int, length: int) -> bytes:
        data = os.pread(self._copy, length, offset)
        while len(data) < length:
            more = os.pread(self._copy, length - len(data), offset + len(data))
            if not more:
                raise OSError("the copy was cut short")
            data += more
        return data

    def _write_copy(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self._copy < 0:
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(self._copy, view, offset)
            offset, view = offset + written, view[written:]

    def _zero_copy(self, offset: int, length: int) -> None:
        if self._copy < 0:
            return
        if self._is_file and _libc.fallocate(self._copy, _PUNCH_HOLE, offset, length) == 0:
            return
        for at in range(offset, offset + length, len(_ZEROS)):
            self._write_copy(at, _ZEROS[: min(len(_ZEROS), offset + length - at)])


class HydratingExport:
    """A hydration as an NBD export."""

    inline = False

    def __init__(self, name: str, hydration: Hydration, pool: ThreadPoolExecutor) -> None:
        self._hydration = hydration
        self._pool = pool
        self.info = ExportInfo(
            name,
            hydration.size_bytes,
            description="hydrating",
            block_bytes_preferred=BLOCK_BYTES,
            sector_bytes=hydration.sector_bytes,
            can_block_status=False,
        )

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        """Not used: the export is not inline."""
        raise NotImplementedError

    async def handle(self, request: Request) -> Reply:
        """See Export."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._serve, request)

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Not offered."""
        raise NotImplementedError

    def close(self) -> None:
        """Others may use it still."""

    def _serve(self, request: Request) -> Reply:
        disk = self._hydration
        try:
            match request.command:
                case Command.READ:
                    return Reply(request, data=disk.read(request.offset, request.length))
                case Command.WRITE:
                    assert request.data is not None
                    disk.write(request.offset, request.data)
                case Command.TRIM | Command.WRITE_ZEROES:
                    disk.zero(request.offset, request.length, discard=request.command == Command.TRIM)
                case _:
                    pass
            if request.command == Command.FLUSH or request.flags & FLAG_FUA:
                disk.flush()
        except (OSError, DrengineError) as error:
            return Reply(request, NbdError.EIO, message=str(error))
        return Reply(request)


class HydratingProvider:
    """Serves one hydration under every name: a socket of its own has only one disk."""

    def __init__(self, export: HydratingExport) -> None:
        self._export = export

    async def names(self) -> list[str]:
        """See ExportProvider."""
        return [self._export.info.name]

    async def open(self, name: str, peer: Peer) -> Export:
        """See ExportProvider."""
        return self._export
