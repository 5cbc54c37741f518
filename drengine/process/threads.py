"""Blocking work of a task, in a thread that is never left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread; a task that is cancelled meanwhile waits for it, so that nothing acts behind its back."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


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
