"""Reading a point of the target over a session: hashes, bytes, and where it may differ from an earlier one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future

from drengine.model.errors import DrengineError
from drengine.model.extents import Batch, ExtentKind, block_ranges, check_table, iter_table
from drengine.wire.events import Changed, ChangeQuery, Fetch, Fetched, Hello, Span
from drengine.wire.terms import FETCHES_OPEN_MAX, QUERIES_OPEN_MAX
from drengine_agent.errors import COMMAND_REFUSED, REVERSE_REFUSED
from drengine_agent.ship.session import Session, SessionEnded
from drengine_agent.ship.uplink import Uplink


class PointReader:
    """Reads over one session. Its methods belong to the session's event loop, except `ask`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._loop = asyncio.get_running_loop()
        self._questions = asyncio.Semaphore(QUERIES_OPEN_MAX - FETCHES_OPEN_MAX)
        self._fetches = asyncio.Semaphore(FETCHES_OPEN_MAX)

    @staticmethod
    @contextlib.asynccontextmanager
    async def opened(uplink: Uplink, hello: Hello) -> AsyncIterator[PointReader]:
        """Connect, and read until the block is left.

        Raises:
            SessionEnded: refused, or it ended; DrengineError, OSError, EOFError: the stream's.
        """
        session = await uplink.open(hello)
        try:
            running = asyncio.create_task(session.run(lambda _: None))
            try:
                yield PointReader(session)
                await session.say_goodbye()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        finally:
            await session.close()

    async def digests(self, volume: int, offset: int, chunk_bytes: int, count: int) -> bytes:
        """The point's hashes of `count` chunks."""
        async with self._questions:
            return await self.session.digests(volume, offset, chunk_bytes, count)

    def ask(self, volume: int, offset: int, chunk_bytes: int, count: int) -> Future[bytes]:
        """`digests`, from any thread."""
        return asyncio.run_coroutine_threadsafe(self.digests(volume, offset, chunk_bytes, count), self._loop)

    async def fetch(self, spans: Sequence[Span]) -> Batch:
        """Bytes of the point; that their hashes hold is for `verify_batch` to say.

        Raises:
            DrengineError: BAD_EXTENTS.
            SessionEnded: the answer is not exactly what was asked for; or the session ended.
        """
        async with self._fetches:
            answer = await self.session.ask(lambda number: Fetch(number, tuple(spans)), Fetched)
        batch = answer.batch
        rows = list(iter_table(batch.table))
        asked = [(volume, *part) for volume, offset, length in spans for part in block_ranges(offset, length)]
        if [(row.volume, row.offset, row.length) for row in rows] != asked or any(
            row.kind == ExtentKind.DISCARD for row in rows
        ):
            raise SessionEnded("target-refused", "the target sent other ranges than those asked for")
        sizes = {volume.volume: volume.size_bytes for volume in self.session.welcome.geometry}
        check_table(batch.table, batch.frames, sizes)
        return batch

    async def changed(self, volume: int, since: int, size_bytes: int) -> AsyncIterator[Span]:
        """Where the volume may differ from position `since` of the point's branch, ascending."""
        offset = 0
        while offset < size_bytes:
            at = offset
            answer = await self.session.ask(lambda number, at=at: ChangeQuery(number, volume, since, at), Changed)  # type: ignore[misc]
            for span in answer.ranges:
                if span.volume != volume or span.offset < offset or span.offset + span.length > size_bytes:
                    raise SessionEnded("target-refused", f"{span} is not what was asked for")
                offset = span.offset + span.length
                yield span
            if not at < answer.end <= size_bytes or answer.end < offset:
                raise SessionEnded("target-refused", f"the target looked up to {answer.end} of {size_bytes}")
            offset = answer.end


@contextlib.asynccontextmanager
async def session_errors() -> AsyncIterator[None]:
    """What ends a session, as an error that says whether to try again."""
    try:
        yield
    except SessionEnded as ended:
        kind = COMMAND_REFUSED if ended.retryable else REVERSE_REFUSED
        raise DrengineError(kind, f"{ended.reason}: {ended}") from ended
    except (OSError, EOFError) as error:
        raise DrengineError(COMMAND_REFUSED, f"the session with the target broke: {error}") from error
