"""What an export answers on the loop's thread, how long it may take there, and what it leaves to the pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from drengine.model.errors import DrengineError
from drengine.nbd.export import FLAG_FUA, Command, NbdError, Reply, Request
from drengine.store.errors import STORE_FULL
from drengine.store.log.writable import WritableView
from drengine.store.views.records import Address, Records
from drengine.store.views.view import View
from drengine.target.exports import TURN_SECONDS_MAX, ViewExport
from tests.store.harness import Source, scratch, tiny_store

SIZE = 1 << 20
pytestmark = pytest.mark.timeout(60)


@dataclass
class ColdRecords:
    """The store's records, on storage that answers only when it is let."""

    records: Records
    may_answer: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)

    def parts(self, address: Address, start: int, length: int) -> list[memoryview]:
        self.asked.set()
        assert self.may_answer.wait(30)
        return self.records.parts(address, start, length)

    def read_now(self, address: Address, start: int, length: int) -> memoryview | None:
        return None

    def content(self, window: Hashable) -> None:
        return None


@dataclass
class Answers:
    """Takes late replies."""

    replies: list[Reply] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def complete(self, replies: Sequence[Reply]) -> None:
        self.replies += replies
        self.came.set()

    async def wait_for(self, count: int) -> None:
        while len(self.replies) < count:
            self.came.clear()
            await self.came.wait()


@contextmanager
def disk(*, writable: bool = False) -> Iterator[tuple[View, bytes]]:
    """A volume whose first 128 KiB hold data, and that data."""
    with scratch() as path:
        source = Source(tiny_store(path), disk=SIZE)
        data = source.random.randbytes(131072)
        source.write(1, 0, data)
        name = source.cut()
        source.commit()
        point = source.point(name)
        if writable:
            drill = source.store.create_branch(point, role="drill", label="")
            view: View = source.store.writable("web1", drill.number, generation=drill.generation)
        else:
            view = source.store.view(point)
        with view:
            yield view, data
        source.writer.close()
        source.store.close()


def export_of(view: View, pool: ThreadPoolExecutor, clock: Callable[[], float] = lambda: 0.0) -> ViewExport:
    """An export whose turns never end, unless the clock says so."""
    return ViewExport("web1/disk", view, view.geometry[1], pool, lambda: None, 512, clock=clock)


def content(reply: Reply) -> bytes:
    """A READ's bytes."""
    pieces = reply.pieces if reply.pieces is not None else [(len(reply.data), reply.data)]
    return b"".join(bytes(length) if data is None else data for length, data in pieces)


def read(offset: int, length: int = 4096) -> Request:
    return Request(Command.READ, 0, offset, offset, length)


async def test_a_read_that_waits_for_storage_holds_up_no_other() -> None:
    with disk() as (view, data), ThreadPoolExecutor(1) as pool:
        view.read(1, 0, SIZE)
        cold = ColdRecords(view._records)
        view._records = cold  # type: ignore[assignment]
        export, answers = export_of(view, pool), Answers()
        first = export.submit([read(0), read(SIZE - 4096)], answers.complete)
        assert [(reply.request.offset, content(reply)) for reply in first] == [(SIZE - 4096, bytes(4096))]
        assert await asyncio.to_thread(cold.asked.wait, 30)
        # The pool's only thread is held by the storage; the loop goes on and answers what needs none.
        for at in range(SIZE // 2, SIZE, 65536):
            assert len(export.submit([read(at)], answers.complete)) == 1
        assert answers.replies == []
        cold.may_answer.set()
        await answers.wait_for(1)
        assert content(answers.replies[0]) == data[:4096]


async def test_a_long_turn_ends_and_the_rest_is_answered_in_the_next_ones() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += TURN_SECONDS_MAX / 8
        return now

    with disk() as (view, data), ThreadPoolExecutor(1) as pool:
        view.read(1, 0, SIZE)
        export, answers = export_of(view, pool, clock), Answers()
        loop = asyncio.get_running_loop()
        others: list[int] = []

        def other() -> None:
            others.append(len(answers.replies))
            if len(answers.replies) + len(first) < 30:
                loop.call_soon(other)

        first = export.submit([read(at * 4096) for at in range(30)], answers.complete)
        assert len(first) <= 8
        loop.call_soon(other)
        await answers.wait_for(30 - len(first))
        assert len(others) >= 3, "others had turns between"
        assert all(after - before <= 8 for before, after in pairwise([0, *others]))
        for reply in [*first, *answers.replies]:
            assert content(reply) == data[reply.request.offset : reply.request.offset + 4096]


async def test_writes_that_wait_for_the_next_turn_keep_their_data() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += TURN_SECONDS_MAX
        return now

    with disk(writable=True) as (view, _), ThreadPoolExecutor(1) as pool:
        export, answers = export_of(view, pool, clock), Answers()
        buffer = bytearray(b"\x01" * 4096 + b"\x02" * 4096 + b"\x03" * 4096)
        parts = [memoryview(buffer)[at : at + 4096] for at in range(0, 12288, 4096)]
        requests = [Request(Command.WRITE, 0, i, i * 4096, 4096, part) for i, part in enumerate(parts)]
        requests[2].flags = FLAG_FUA
        ready = export.submit(requests, answers.complete)
        buffer[:] = bytes(len(buffer))
        await answers.wait_for(3 - len(ready))
        assert all(reply.error == 0 for reply in [*ready, *answers.replies])
        assert view.read(1, 0, 12288) == b"\x01" * 4096 + b"\x02" * 4096 + b"\x03" * 4096


async def test_whatever_a_late_request_raises_is_answered() -> None:
    with disk() as (view, _), ThreadPoolExecutor(1) as pool:
        view._records = object()  # type: ignore[assignment]
        export, answers = export_of(view, pool), Answers()
        assert export.submit([read(0, 128 << 10)], answers.complete) == []
        await answers.wait_for(1)
        assert answers.replies[0].error == 5


async def test_a_reader_in_order_finds_what_follows_near() -> None:
    with disk() as (view, data), ThreadPoolExecutor(1) as pool:
        export, answers = export_of(view, pool), Answers()
        got = 0
        replies: list[Reply] = []
        for at in range(0, 131072, 8192):
            ready = export.submit([read(at, 8192)], answers.complete)
            replies += ready
            await answers.wait_for((at // 8192 + 1) - len(replies))
            got += len(ready)
            await asyncio.get_running_loop().run_in_executor(pool, lambda: None)  # what was begun before is done
        assert got >= 12
        for reply in [*replies, *answers.replies]:
            assert content(reply) == data[reply.request.offset : reply.request.offset + 8192]


async def test_flushes_that_wait_share_the_next_one_and_hold_one_thread() -> None:
    with disk(writable=True) as (view, _), ThreadPoolExecutor(2) as pool:
        assert isinstance(view, WritableView)
        export, answers = export_of(view, pool), Answers()
        may_end, begun, written = threading.Event(), asyncio.Event(), [0]
        durable: list[int] = []
        flush, loop = view.flush, asyncio.get_running_loop()

        def slow() -> None:
            covered = written[0]
            loop.call_soon_threadsafe(begun.set)
            assert may_end.wait(30)
            flush()
            durable.append(covered)

        view.flush = slow  # type: ignore[method-assign]
        for number in range(1, 41):
            data = memoryview(bytes([number]) * 256)  # so little that the buffer has room for all
            fua = Request(Command.WRITE, FLAG_FUA, number, number * 256, 256, data)
            plain = Request(Command.WRITE, 0, 100 + number, number * 256, 256, data)
            asked = [plain, Request(Command.FLUSH, 0, 200 + number, 0, 0)] if number % 2 else [fua]
            written[0] = number
            ready = export.submit(asked, answers.complete)
            assert [reply.request.cookie for reply in ready] == ([100 + number] if number % 2 else [])
            await begun.wait()
        # The other thread is free, though forty requests wait.
        assert await asyncio.wait_for(loop.run_in_executor(pool, lambda: 5), 30) == 5
        assert answers.replies == []
        may_end.set()
        await answers.wait_for(40)
        assert durable == [1, 40], "the first one, and one for all others"
        assert sorted(reply.request.cookie % 200 for reply in answers.replies) == list(range(1, 41))
        assert all(reply.error == 0 for reply in answers.replies)
        assert all(view.read(1, number * 256, 256) == bytes([number]) * 256 for number in range(1, 41))


async def test_a_flush_that_fails_fails_all_that_wait_for_it_and_the_next_tries_again() -> None:
    with disk(writable=True) as (view, _), ThreadPoolExecutor(2) as pool:
        assert isinstance(view, WritableView)
        export, answers = export_of(view, pool), Answers()
        may_end, flush, fails = threading.Event(), view.flush, [True]

        def failing() -> None:
            assert may_end.wait(30)
            if fails[0]:
                raise DrengineError(STORE_FULL, "no room")
            flush()

        view.flush = failing  # type: ignore[method-assign]
        requests = [Request(Command.FLUSH, 0, number, 0, 0) for number in range(5)]
        assert export.submit(requests, answers.complete) == []
        may_end.set()
        await answers.wait_for(5)
        assert [reply.error for reply in answers.replies] == [NbdError.ENOSPC] * 5
        fails[0] = False
        export.submit([Request(Command.FLUSH, 0, 9, 0, 0)], answers.complete)
        await answers.wait_for(6)
        assert answers.replies[-1].error == 0
