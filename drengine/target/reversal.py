"""A session that reads a point: a fenced source makes its disks equal to it. Nothing is written here.

Answers are made in the shared pool, a few at a time, and each holds its place until it is sent: so what is in memory is
bounded whatever the agent asks for. Damage ends the session: bytes that can't be read are never made up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np

from drengine.model.errors import DrengineError
from drengine.model.extents import Batch, Extent, ExtentKind
from drengine.model.points import Mark, RecoveryPoint
from drengine.store.errors import DAMAGED, OUT_OF_RANGE
from drengine.store.log.changes import Spans
from drengine.store.store import Store
from drengine.store.views.view import View
from drengine.target.peer import AdmittedAgent
from drengine.target.queries import answer
from drengine.transport.framed import FramedStream
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
    Span,
)
from drengine.wire.fields import SPANS_MAX
from drengine.wire.payload import cut_blocks, data_extent, make_batch

log = logging.getLogger("drengine.target")

ANSWERS_MAX = 4
LEVEL = 1
_T = TypeVar("_T")


class Reversal(AdmittedAgent):
    """An admitted session, from WELCOME to its end."""

    def __init__(self, stream: FramedStream, hello: Hello, *, probe_seconds: float) -> None:
        super().__init__(stream, hello, probe_seconds=probe_seconds)
        self._places = asyncio.Semaphore(ANSWERS_MAX)
        self._changes: dict[int, dict[int, Spans] | None] = {}

    async def run(self, store: Store, point: RecoveryPoint, pool: Executor, *, credit_bytes: int) -> None:
        """Serve the agent until the session ends.

        Raises:
            DrengineError: why it ended, unless in peace; the agent has not been told yet.
        """
        view = await asyncio.to_thread(store.view, point)
        try:
            await self._welcome(
                generation=(await asyncio.to_thread(store.source, self.source)).generation,
                sequence=point.sequence,
                mark=Mark(),
                geometry=point.geometry,
                credit_bytes=credit_bytes,
            )
            await self._serve(store, view, pool)
        finally:
            await asyncio.shield(asyncio.to_thread(view.close))

    async def _serve(self, store: Store, view: View, pool: Executor) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                receiving = tasks.create_task(self._receive(tasks, store, view, pool))
                await asyncio.wait({receiving, self._ending}, return_when=asyncio.FIRST_COMPLETED)
                receiving.cancel()
                if self._ending.done():
                    self._ending.result()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if self._ending.done():
            await self._stream.send(Goodbye())
        log.info("the source has read what it wanted", extra={"source": self.source})

    async def _receive(self, tasks: asyncio.TaskGroup, store: Store, view: View, pool: Executor) -> None:
        while event := await self._next_work():
            match event:
                case HashQuery():
                    await self._answer(tasks, pool, lambda query: Hashes(query.query, answer(view, query)), event)
                case Fetch():
                    await self._answer(tasks, pool, lambda query: Fetched(query.query, batch_of(view, query)), event)
                case ChangeQuery():
                    await self._answer(tasks, pool, lambda query: self._changed(store, view, query), event)

    async def _answer(self, tasks: asyncio.TaskGroup, pool: Executor, make: Callable[[_T], Event], query: _T) -> None:
        await self._places.acquire()

        async def work() -> None:
            try:
                await self._stream.send(await self._loop.run_in_executor(pool, make, query))
            finally:
                self._places.release()

        tasks.create_task(work())

    def _changed(self, store: Store, view: View, query: ChangeQuery) -> Changed:
        """Where the two can't be compared by the log, all of the volume may differ."""
        volume = view.geometry.get(query.volume)
        size = volume.size_bytes if volume else 0
        if query.offset >= size:
            return Changed(query.query, size, ())
        changes = self._all_changes(store, view, query.since)
        if changes is None:
            return Changed(query.query, size, (Span(query.volume, query.offset, size - query.offset),))
        if query.volume not in changes:
            return Changed(query.query, size, ())
        starts, ends = changes[query.volume]
        first = int(np.searchsorted(ends, np.uint64(query.offset), "right"))
        spans: list[Span] = []
        for start, end in zip(starts[first:].tolist(), ends[first:].tolist(), strict=True):
            if len(spans) == SPANS_MAX:
                return Changed(query.query, spans[-1].offset + spans[-1].length, tuple(spans))
            begin = max(start, query.offset)
            spans.append(Span(query.volume, begin, min(end, size) - begin))
        return Changed(query.query, size, tuple(spans))

    def _all_changes(self, store: Store, view: View, since: int) -> dict[int, Spans] | None:
        assert view.point is not None
        if since not in self._changes:
            try:
                self._changes = {since: store.changed_since(view.point, since)}
            except DrengineError as error:
                if error.kind not in (OUT_OF_RANGE, DAMAGED):
                    raise
                self._changes = {since: None}
        return self._changes[since]


def batch_of(view: View, query: Fetch) -> Batch:
    """The ranges asked for as extents with their hashes, and one payload.

    Raises:
        DrengineError: OUT_OF_RANGE, UNKNOWN_VOLUME, DAMAGED.
    """
    extents: list[Extent] = []
    plain = bytearray()
    for volume, offset, length in query.ranges:
        for at, part, is_zero in cut_blocks(offset, view.read(volume, offset, length)):
            if is_zero:
                extents.append(Extent(volume, ExtentKind.ZERO, at, len(part)))
            else:
                extents.append(data_extent(volume, at, part))
                plain += part
    return make_batch(extents, plain, LEVEL)
