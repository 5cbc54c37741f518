"""A session that reads a point of the target: hashes, bytes, and where it may differ from an earlier one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.extents import Batch, ExtentKind, block_ranges, check_table, iter_table
from drengine.wire.events import (
    Changed,
    ChangeQuery,
    Event,
    Fetch,
    Fetched,
    Goodbye,
    Hashes,
    HashQuery,
    Hello,
    Ping,
    Pong,
    Refuse,
    Span,
    Welcome,
)
from drengine.wire.terms import FETCHES_OPEN_MAX, QUERIES_OPEN_MAX
from drengine_agent.errors import SESSION_REFUSED
from drengine_agent.ship.session import PING_SECONDS, SILENCE_SECONDS, SessionEnded, Stream, refused

_E = TypeVar("_E", bound=Event)


class PointReader:
    """An open session. Its methods belong to the event loop, except `ask`."""

    def __init__(self, stream: Stream, welcome: Welcome, clock: Clock) -> None:
        self.welcome = welcome
        self._stream = stream
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Event]] = {}
        self._questions = asyncio.Semaphore(QUERIES_OPEN_MAX - FETCHES_OPEN_MAX)
        self._fetches = asyncio.Semaphore(FETCHES_OPEN_MAX)
        self._heard_at = clock.monotonic()
        self._ended: Exception | None = None

    @staticmethod
    @contextlib.asynccontextmanager
    async def opened(
        connect: Callable[[], Awaitable[Stream]], hello: Hello, clock: Clock
    ) -> AsyncIterator[PointReader]:
        """Connect, and read until the block is left; it is ended when the session is.

        Raises:
            SessionEnded: refused, or it ended; DrengineError, OSError, EOFError: the stream's.
        """
        stream = await connect()
        try:
            await stream.send(hello)
            answer = await stream.receive()
            if isinstance(answer, Refuse):
                raise refused(answer)
            if not isinstance(answer, Welcome):
                raise DrengineError(SESSION_REFUSED, f"the target answered HELLO with {type(answer).__name__}")
            reader = PointReader(stream, answer, clock)
            tasks = [asyncio.create_task(task) for task in (reader._receive(), reader._watch())]
            for task in tasks:
                task.add_done_callback(reader._note_ended)
            try:
                yield reader
                with contextlib.suppress(DrengineError, OSError, EOFError):
                    await stream.send(Goodbye())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await stream.close()

    async def digests(self, volume: int, offset: int, chunk_bytes: int, count: int) -> bytes:
        """The point's hashes of `count` chunks."""
        async with self._questions:
            answer = await self._ask(lambda number: HashQuery(number, volume, offset, chunk_bytes, count), Hashes)
        return answer.digests

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
            answer = await self._ask(lambda number: Fetch(number, tuple(spans)), Fetched)
        batch = answer.batch
        rows = list(iter_table(batch.table))
        asked = [(volume, *part) for volume, offset, length in spans for part in block_ranges(offset, length)]
        if [(row.volume, row.offset, row.length) for row in rows] != asked or any(
            row.kind == ExtentKind.DISCARD for row in rows
        ):
            raise SessionEnded("target-refused", "the target sent other ranges than those asked for")
        sizes = {volume.volume: volume.size_bytes for volume in self.welcome.geometry}
        check_table(batch.table, batch.plain_length, sizes)
        return batch

    async def changed(self, volume: int, since: int, size_bytes: int) -> AsyncIterator[Span]:
        """Where the volume may differ from position `since` of the point's branch, ascending."""
        offset = 0
        while offset < size_bytes:
            at = offset
            answer = await self._ask(lambda number, at=at: ChangeQuery(number, volume, since, at), Changed)  # type: ignore[misc]
            for span in answer.ranges:
                if span.volume != volume or span.offset < offset or span.offset + span.length > size_bytes:
                    raise SessionEnded("target-refused", f"{span} is not what was asked for")
                offset = span.offset + span.length
                yield span
            if not at < answer.end <= size_bytes or answer.end < offset:
                raise SessionEnded("target-refused", f"the target looked up to {answer.end} of {size_bytes}")
            offset = answer.end

    async def _ask(self, question: Callable[[int], Event], kind: type[_E]) -> _E:
        if self._ended is not None:
            raise self._ended
        number = next(self._numbers)
        waiting: asyncio.Future[Event] = self._loop.create_future()
        self._open[number] = waiting
        try:
            await self._stream.send(question(number))
            answer = await waiting
        finally:
            self._open.pop(number, None)
        if not isinstance(answer, kind):
            raise SessionEnded("target-refused", f"{type(answer).__name__} came as {kind.__name__}")
        return answer

    async def _receive(self) -> None:
        while True:
            event = await self._stream.receive()
            self._heard_at = self._clock.monotonic()
            match event:
                case Hashes() | Fetched() | Changed():
                    if (waiting := self._open.get(event.query)) and not waiting.done():
                        waiting.set_result(event)
                case Ping(token=token):
                    await self._stream.send(Pong(token))
                case Refuse():
                    raise refused(event)
                case Goodbye():
                    raise SessionEnded("target-unreachable", "the target ended the session")

    async def _watch(self) -> None:
        for token in itertools.count():
            await self._clock.sleep(PING_SECONDS)
            silence = self._clock.monotonic() - self._heard_at
            if silence > SILENCE_SECONDS:
                raise SessionEnded("target-unreachable", f"nothing was heard for {silence:.0f} s")
            await self._stream.send(Ping(token))

    def _note_ended(self, task: asyncio.Task[None]) -> None:
        """Whoever waits for an answer learns why none will come."""
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            self._ended = self._ended or error
            for waiting in self._open.values():
                if not waiting.done():
                    waiting.set_exception(self._ended)
