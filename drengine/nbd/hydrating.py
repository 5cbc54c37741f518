"""A hydration as an NBD export."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from drengine.model.errors import DrengineError
from drengine.nbd.errors import HYDRATION_FAILED
from drengine.nbd.export import FLAG_FUA, Command, Complete, Export, ExportInfo, NbdError, Peer, Reply, Request
from drengine.nbd.hydration import BLOCK_BYTES, CopyError, Hydration

log = logging.getLogger("drengine.hydration")

COMPLETE = "complete"
"""Name under which the disk is opened by a client that reads the copy itself: refused unless that is complete. From
then on no change succeeds that did not reach the copy."""

ALONE = "alone"
"""Name that ends this: nobody reads the copy any more."""

_READ = int(Command.READ)


class HydratingExport:
    """Reads of what is local and in memory are answered at once; all else by threads."""

    inline = True

    def __init__(self, name: str, hydration: Hydration, pool: ThreadPoolExecutor) -> None:
        self._hydration = hydration
        self._pool = pool
        self._told = ""
        self.info = ExportInfo(
            name,
            hydration.size_bytes,
            description="hydrating",
            block_bytes_preferred=BLOCK_BYTES,
            sector_bytes=hydration.sector_bytes,
            can_block_status=False,
        )

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        """See Export."""
        replies: list[Reply] = []
        read_at_once = self._hydration.read_at_once
        for request in requests:
            if request.command == _READ and (data := read_at_once(request.offset, request.length)) is not None:
                replies.append(Reply(request, 0, data))
                continue
            if request.data is not None:
                request.data = memoryview(bytes(request.data))  # the server's buffer is ours only now
            self._serve_later(request, complete)
        return replies

    async def handle(self, request: Request) -> Reply:
        """Not used: the export is inline."""
        raise NotImplementedError

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Not offered."""
        raise NotImplementedError

    def close(self) -> None:
        """Others may use it still."""

    def _serve_later(self, request: Request, complete: Complete) -> None:
        loop = asyncio.get_running_loop()

        def work() -> None:
            reply = self._serve(request)
            loop.call_soon_threadsafe(complete, [reply])

        self._pool.submit(work)

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
        except (OSError, DrengineError, CopyError) as error:
            if str(error) != self._told:  # not each of thousands
                self._told = str(error)
                log.warning("request %d at %d failed: %s", request.command, request.offset, error)
            return Reply(request, NbdError.EIO, message=str(error))
        return Reply(request)


class HydratingProvider:
    """Serves one hydration under every name: a socket of its own has only one disk. See COMPLETE and ALONE."""

    def __init__(self, export: HydratingExport, hydration: Hydration) -> None:
        self._export = export
        self._hydration = hydration

    async def names(self, peer: Peer) -> list[str]:
        """See ExportProvider."""
        return [self._export.info.name]

    async def open(self, name: str, peer: Peer) -> Export:
        """See ExportProvider."""
        if name == COMPLETE and not self._hydration.rely():
            raise DrengineError(HYDRATION_FAILED, "the copy is not complete")
        if name == ALONE:
            self._hydration.relinquish()
        return self._export
