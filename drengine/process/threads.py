"""Blocking work of a task, in a thread that is never left behind."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread; a task that is cancelled meanwhile waits for it, so that nothing acts behind its back."""
    return await in_cancellable_thread(lambda _: work())


async def in_cancellable_thread(work: Callable[[threading.Event], T]) -> T:
    """The same for work that ends soon after the event is set that it is given."""
    cancelled = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, cancelled))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait({running})
        raise


def each_in_threads(work: Callable[[T], None], pieces: Iterable[T], threads: int, name: str) -> None:
    """Do work for each piece, several at a time, taken in order; returns when all is done.

    Raises:
        whatever work, or taking a piece, raises first; no piece is begun after that.
    """
    left, taking, failed = iter(pieces), threading.Lock(), threading.Event()

    def run() -> None:
        try:
            while not failed.is_set():
                with taking:
                    taken = list(itertools.islice(left, 1))
                if not taken:
                    return
                work(taken[0])
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        for done in [pool.submit(run) for _ in range(threads)]:
            done.result()
