"""Hydration: a remote disk is used at once, and becomes local in the background.

Reads come from the local copy where it is filled, else from the remote disk (and fill it). Writes go to the remote disk
first, always: it stays the truth and keeps its recovery points, so a workload is protected from its first write and
loses nothing with this host. The copy is a cache: after any stop it is filled anew, so nothing about it must survive;
and when its disk is full or fails, it is given up and the remote disk serves alone.

Without a place for the copy it only passes on: for clients that can't speak TLS as the remote side wants it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from drengine.linux.devices import device_behind
from drengine.nbd.client import NbdClient
from drengine.nbd.remote import RemoteDisk
from drengine.process.threads import each_in_threads

BLOCK_BYTES = 64 << 10
FILL_BYTES = 1 << 20
FILLERS = 4
LOCKS = 4096
YIELD_SECONDS = 0.02
"""How long one piece of the background's copy gives way to clients that need the remote disk."""

_PUNCH_HOLE = 0x03
_ZEROS = bytes(FILL_BYTES)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class CopyError(Exception):
    """The local copy can't be read or written."""


class Hydration:
    """One disk on its way here. Threads may share it.

    Invariant: a block that is marked filled holds in the local copy what the remote disk holds. It is kept by changing
    both under the locks of all blocks that a request touches. Reading a filled block needs no lock: whoever changes it
    has not been answered yet, so old and new are both right.

    Attributes:
        given_up: why there is no copy any more; empty while there is one.
    """

    def __init__(self, connect: Callable[[], NbdClient], copy: Path | None, *, connections: int = 4) -> None:
        """Connect so many times, and begin an empty copy at `copy` (a file is made anew; a device, also behind a link,
        must be big enough and not be in use; None: there is none).

        Raises:
            DrengineError, OSError: the remote disk or the copy can't be opened.
        """
        self.given_up = ""
        self._trust = threading.Lock()
        self._relied_upon = False
        self._is_lent = False
        with ExitStack() as undo:
            self._remote = RemoteDisk(connect, connections + (FILLERS if copy else 0))
            undo.callback(self._remote.close)
            self.size_bytes = self._remote.size_bytes
            self.sector_bytes = self._remote.sector_bytes
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
        self._counting = threading.Lock()
        self._filled_blocks = 0
        self._clients_waiting = 0

    def _begin_copy(self, copy: Path) -> None:
        if copy.is_file():
            os.ftruncate(self._copy, 0)
            os.ftruncate(self._copy, self.size_bytes)
        elif os.lseek(self._copy, 0, os.SEEK_END) < self.size_bytes:
            raise OSError(f"{copy} is smaller than {self.size_bytes} bytes")

    @property
    def hydrated_bytes(self) -> int:
        """How much of the disk is local."""
        return 0 if self.given_up else min(self.size_bytes, self._filled_blocks * BLOCK_BYTES)

    @property
    def complete(self) -> bool:
        """Whether reads need the remote disk no more."""
        return self._has_copy and self._filled_blocks == len(self._filled)

    def rely(self) -> bool:
        """Whether the copy is complete, and from now on stays so: somebody will read it without asking us, so a change
        that does not reach it fails from now on, until `relinquish`.
        """
        with self._trust:
            self._relied_upon = self._relied_upon or self.complete
            self._is_lent = self._is_lent or self._relied_upon
            return self.complete

    def relinquish(self) -> None:
        """Nobody reads the copy any more but by asking us."""
        with self._trust:
            self._relied_upon = False

    def read_at_once(self, offset: int, length: int) -> bytearray | None:
        """Read what is local and in memory, without waiting for anything; None: `read` must."""
        if self._filled.find(0, offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1) >= 0 or self.given_up:
            return None
        data = bytearray(length)
        try:
            read = os.preadv(self._copy, [data], offset, os.RWF_NOWAIT)
        except OSError:  # it would wait, or this file system can't say
            return None
        return data if read == length else None

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Read; what was not local is afterwards.

        Raises:
            OSError, DrengineError: the remote disk failed.
        """
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        with self._client(), self._locked(first, last):
            if self._has_copy:
                try:
                    self._fill(first, last)
                    return self._read_copy(offset, length)
                except CopyError as error:
                    self._give_up(error)
            return self._remote.read(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write to both; it is durable after `flush`. The buffer is not changed any more.

        Raises:
            OSError, DrengineError: what the disk holds there is unknown.
        """
        with self._changing(offset, len(data)):
            self._remote.write(offset, data)
            self._change_copy(lambda: self._write_copy(offset, data))

    def zero(self, offset: int, length: int, *, discard: bool) -> None:
        """Zeros, or a discard, to both; raises as `write`."""
        with self._changing(offset, length):
            self._remote.zero(offset, length, discard=discard)
            self._change_copy(lambda: self._zero_copy(offset, length))

    def flush(self) -> None:
        """Everything written is durable, remotely: the copy is a cache.

        Raises:
            OSError, DrengineError: it may not be.
        """
        self._remote.flush()

    def fill(self, stopping: threading.Event) -> None:
        """Bring everything here, several pieces at a time; requests of clients go first. A copy that was given up gives
        its space back instead.

        Raises:
            OSError, DrengineError: as `read`; calling it again goes on.
        """
        step = FILL_BYTES // BLOCK_BYTES

        def bring(first: int) -> None:
            last = min(first + step, len(self._filled)) - 1
            if 0 not in self._filled[first : last + 1]:
                return
            self._give_way()
            try:
                with self._locked(first, last):
                    if self._has_copy:
                        self._fill(first, last)
            except CopyError as error:
                self._give_up(error)

        pieces = range(0, len(self._filled), step)
        wanted = itertools.takewhile(lambda _: self._has_copy and not stopping.is_set(), pieces)
        each_in_threads(bring, wanted, FILLERS, "fill")
        if self.given_up:
            self._give_space_back()

    def stop_waiting(self) -> None:
        """Requests that wait for a remote server that is gone fail from now on."""
        self._remote.stop_waiting()

    def close(self) -> None:
        """Let go; the copy stays as it is."""
        self._remote.close()
        if self._copy >= 0:
            os.close(self._copy)

    @contextmanager
    def _client(self) -> Iterator[None]:
        """Around a request for which a client waits."""
        with self._counting:
            self._clients_waiting += 1
        try:
            yield
        finally:
            with self._counting:
                self._clients_waiting -= 1

    @property
    def _has_copy(self) -> bool:
        return self._copy >= 0 and not self.given_up

    def _give_way(self) -> None:
        """Let clients go first that need the remote disk, but not for ever."""
        deadline = time.monotonic() + YIELD_SECONDS
        while self._clients_waiting and time.monotonic() < deadline:
            time.sleep(YIELD_SECONDS / 10)

    def _give_up(self, error: CopyError) -> None:
        """The copy can't be kept."""
        with self._trust:
            self.given_up = self.given_up or str(error)

    def _give_space_back(self) -> None:
        """After the copy was given up, unless somebody may be reading it."""
        with self._locked(0, LOCKS):  # whoever changes the copy holds one, and looks first whether it is still kept
            if self._is_file and not self._is_lent:
                os.ftruncate(self._copy, 0)

    def _change_copy(self, change: Callable[[], None]) -> None:
        """Change the copy as the remote disk was changed, if there is one still.

        Raises:
            CopyError: it can't be, and somebody relies on it.
        """
        if self._has_copy:
            try:
                change()
            except CopyError as error:
                self._give_up(error)
        if self.given_up and self._relied_upon:
            raise CopyError(self.given_up)

    def _fill(self, first: int, last: int) -> None:
        """Bring what is missing of these blocks; their locks are held.

        Raises:
            CopyError: the copy failed. OSError, DrengineError: the remote disk did.
        """
        while (block := self._filled.find(0, first, last + 1)) >= 0:
            run = self._filled.find(1, block, last + 1)
            run = min(last + 1 if run < 0 else run, block + FILL_BYTES // BLOCK_BYTES)
            offset, end = block * BLOCK_BYTES, min(run * BLOCK_BYTES, self.size_bytes)
            data = self._remote.read(offset, end - offset)
            if data == _ZEROS[: len(data)]:
                self._zero_copy(offset, len(data))
            else:
                self._write_copy(offset, data)
            self._mark(block, run, filled=True)

    @contextmanager
    def _changing(self, offset: int, length: int) -> Iterator[None]:
        """Around a change of both. Blocks that it covers whole are filled afterwards; if it fails, what the remote disk
        holds is unknown, and all that it touches count as not filled."""
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        with self._client(), self._locked(first, last):
            try:
                yield
            except BaseException:
                self._mark(first, last + 1, filled=False)
                raise
            whole = range(-(-offset // BLOCK_BYTES), (offset + length) // BLOCK_BYTES)
            if offset + length == self.size_bytes:
                whole = range(whole.start, last + 1)
            if self._filled.find(0, whole.start, whole.stop) >= 0:
                self._mark(whole.start, whole.stop, filled=True)

    def _mark(self, first: int, stop: int, *, filled: bool) -> None:
        """Note of these blocks, whose locks are held, whether they are filled."""
        with self._counting:
            self._filled_blocks -= self._filled.count(1, first, stop)
            self._filled[first:stop] = bytes([filled]) * (stop - first)
            self._filled_blocks += (stop - first) * filled

    @contextmanager
    def _locked(self, first: int, last: int) -> Iterator[None]:
        wanted = range(LOCKS) if last - first >= LOCKS else sorted({block % LOCKS for block in range(first, last + 1)})
        with ExitStack() as held:
            for number in wanted:
                held.enter_context(self._locks[number])
            yield

    def _read_copy(self, offset: int, length: int) -> bytes:
        with _of_copy():
            data = os.pread(self._copy, length, offset)
            while len(data) < length:
                more = os.pread(self._copy, length - len(data), offset + len(data))
                if not more:
                    raise OSError("it was cut short")
                data += more
            return data

    def _write_copy(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        with _of_copy():
            while view:
                written = os.pwrite(self._copy, view, offset)
                offset, view = offset + written, view[written:]

    def _zero_copy(self, offset: int, length: int) -> None:
        if self._is_file and _libc.fallocate(self._copy, _PUNCH_HOLE, offset, length) == 0:
            return
        for at in range(offset, offset + length, len(_ZEROS)):
            self._write_copy(at, _ZEROS[: min(len(_ZEROS), offset + length - at)])


@contextmanager
def _of_copy() -> Iterator[None]:
    """Tells errors of the copy from those of the remote disk."""
    try:
        yield
    except OSError as error:
        raise CopyError(error.strerror or str(error)) from error
