"""The tap as an NBD export: batches of requests in, replies out, some later (FLUSH, FUA, protocol `sync`).

Runs on the loop of the NBD server. A short READ that the page cache has is answered at once; a long one, or one that
waits for the disk, in a thread, so that no other client waits. FLUSH and FUA wait for fdatasync of volume and journal
in a thread; those that arrive meanwhile share the next one. With protocol `sync` a write is completed when the target
has acknowledged it. While the target can't follow in order (initial sync, resync, rescan) nobody could wait that long:
`sync` then behaves like `async` and says so (`SyncGate.state`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from drengine.nbd.export import (
    FLAG_FUA,
    STATUS_HOLE,
    STATUS_ZERO,
    Command,
    Complete,
    ExportInfo,
    NbdError,
    Reply,
    Request,
)
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.tap.tracker import Tap

_READ, _FLUSH = int(Command.READ), int(Command.FLUSH)
_NOT_WRITING = (_READ, _FLUSH)
_EIO = int(NbdError.EIO)

INLINE_READ_BYTES = 128 << 10
"""A longer READ is worth a thread: it is read while others are sent."""


class SyncGate:
    """Holds completed writes back until the target has acknowledged their position."""

    def __init__(
        self,
        tap: Tap,
        loop: asyncio.AbstractEventLoop,
        *,
        sync: bool = False,
        fallback_seconds: float | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        """A gate for all exports of a tap.

        Args:
            tap: whose acknowledgements open it.
            loop: the server's loop.
            sync: False makes it always open.
            fallback_seconds: when the oldest write has waited so long, everything is let through, and further
                writes do not wait until the target has caught up; None: wait without end.
            now: monotonic seconds; the loop's clock by default.
        """
        self._tap = tap
        self._loop = loop
        self._sync = sync
        self._fallback_seconds = fallback_seconds
        self._now = now or loop.time
        self._waiting: deque[tuple[bytes, int, float, list[Reply], Complete]] = deque()
        self._fallen_back = False
        tap.on_progress = self._progress

    @property
    def state(self) -> str:
        """`async`; `sync`; or `sync-suspended`: writes do not wait, because the target is behind or gone."""
        if not self._sync:
            return "async"
        return "sync-suspended" if self._fallen_back or not self._tap.continuous else "sync"

    @property
    def waiting(self) -> int:
        """Batches of writes that are held back."""
        return len(self._waiting)

    def hold(self, position: int, replies: list[Reply], complete: Complete) -> bool:
        """Keep replies until `position` is acknowledged; False if they need not wait."""
        if not self._sync or self._fallen_back or not self._tap.continuous:
            return False
        if not self._waiting and self._fallback_seconds is not None:
            self._loop.call_later(self._fallback_seconds, self.expire)
        self._waiting.append((self._tap.epoch, position, self._now(), replies, complete))
        return True

    def expire(self) -> None:
        """Fall back to `async` if the oldest write has waited too long."""
        if self._fallback_seconds is None or not self._waiting:
            return
        left = self._waiting[0][2] + self._fallback_seconds - self._now()
        if left > 0:
            self._loop.call_later(left, self.expire)
        else:
            self._fallen_back = True
            self.release()

    def release(self) -> None:
        """Let go of what the target has, or of everything if waiting has lost its sense; on the loop."""
        epoch, acked, follows = self._tap.epoch, self._tap.acknowledged, self._tap.continuous
        if self._fallen_back and follows and acked >= self._tap.position:
            self._fallen_back = False
        open_to_all = self._fallen_back or not follows
        while self._waiting:
            of_epoch, position, _, replies, complete = self._waiting[0]
            if not open_to_all and of_epoch == epoch and position > acked:
                break
            self._waiting.popleft()
            complete(replies)

    def open(self) -> None:
        """Let everything through from now on: the server stops."""
        self._sync = False
        while self._waiting:
            *_, replies, complete = self._waiting.popleft()
            complete(replies)

    def _progress(self) -> None:
        if self._sync:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                self._loop.call_soon_threadsafe(self.release)


class TapExport:
    """One volume of the tap, for all connections to it."""

    inline = True

    def __init__(self, tap: Tap, volume: Volume, gate: SyncGate, executor: Executor, readers: Executor) -> None:
        """An export served on the gate's loop; `executor` runs the syncs, `readers` what is read slowly."""
        self._tap = tap
        self._volume = volume
        self._gate = gate
        self._executor = executor
        self._readers = readers
        self._flushes: list[tuple[list[Reply], Complete]] = []
        self._flushing = False
        self.info = ExportInfo(volume.name, volume.size_bytes, description=f"volume {volume.name}")

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        """See export.Export.submit."""
        ready: list[Reply] = []
        writes: list[Request] = []
        for request in requests:
            command = request.command
            if command in _NOT_WRITING:
                if writes:
                    self._apply(writes, ready, complete)
                    writes = []
                if command == _READ:
                    self._read(request, ready, complete)
                else:
                    self._flush([Reply(request)], complete)
            else:
                writes.append(request)
        if writes:
            self._apply(writes, ready, complete)
        return ready

    async def handle(self, request: Request) -> Reply:
        """Never asked for: this export is inline."""
        raise NotImplementedError

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """See export.Export.block_status."""
        return [
            (size, 0 if is_data else STATUS_HOLE | STATUS_ZERO)
            for _, size, is_data in self._volume.data_extents(offset, length)
        ]

    def close(self) -> None:
        """See export.Export.close: the volume stays open, others may be connected."""

    def _read(self, request: Request, ready: list[Reply], complete: Complete) -> None:
        if request.length <= INLINE_READ_BYTES:
            try:
                data = self._volume.read_cached(request.offset, request.length)
            except OSError as error:
                ready.append(_unread(request, error))
                return
            if data is not None:
                ready.append(Reply(request, data=data))
                return
        loop = asyncio.get_running_loop()

        def work() -> None:
            reply = self._read_slowly(request)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                loop.call_soon_threadsafe(complete, [reply])

        self._readers.submit(work)

    def _read_slowly(self, request: Request) -> Reply:
        try:
            return Reply(request, data=self._volume.read(request.offset, request.length))
        except OSError as error:
            return _unread(request, error)

    def _apply(self, writes: list[Request], ready: list[Reply], complete: Complete) -> None:
        position, failed = self._tap.apply(self._volume, writes)
        replies = list(map(Reply, writes))
        if failed:
            for index in failed:
                replies[index] = Reply(writes[index], _EIO, message="the volume can't be written")
        durable = [reply for reply in replies if reply.request.flags & FLAG_FUA]
        if durable:
            replies = [reply for reply in replies if not reply.request.flags & FLAG_FUA]
            self._flush(durable, lambda done: self._hold(position, list(done), complete))
        if replies and not self._gate.hold(position, replies, complete):
            ready += replies

    def _hold(self, position: int, replies: list[Reply], complete: Complete) -> None:
        if not self._gate.hold(position, replies, complete):
            complete(replies)

    def _flush(self, replies: list[Reply], complete: Complete) -> None:
        self._flushes.append((replies, complete))
        if not self._flushing:
            self._flushing = True
            self._flusher = asyncio.get_running_loop().create_task(self._flush_all())

    async def _flush_all(self) -> None:
        """Sync until nobody waits; who comes during a sync is served by the next one."""
        loop = asyncio.get_running_loop()
        while self._flushes:
            served, self._flushes = self._flushes, []
            done = await loop.run_in_executor(self._executor, self._tap.flush, self._volume)
            for replies, complete in served:
                if not done:
                    for reply in replies:
                        reply.error, reply.message = _EIO, "the volume could not be made durable"
                complete(replies)
        self._flushing = False


def _unread(request: Request, error: OSError) -> Reply:
    return Reply(request, _EIO, message=error.strerror or str(error))
