"""Keeping what an agent tells of its server: the newest of it, at its own pace, and never at the cost of the stream."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from functools import partial

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.store.log.writer import BranchWriter
from drengine.store.store import Store

log = logging.getLogger("drengine.target")

PAUSE_SECONDS = 30.0
"""Between two that are kept of one session, however often its agent tells."""


class InventoryKeeper:
    """Of one session. Belongs to its event loop."""

    def __init__(self, store: Store, writer: BranchWriter, pool: Executor, clock: Clock) -> None:
        """`writer` says whose it is, and under which generation: one that was superseded keeps nothing."""
        self._keep = partial(store.keep_inventory, writer.source, generation=writer.generation)
        self._source = writer.source
        self._pool = pool
        self._clock = clock
        self._newest: Inventory | None = None
        self._told = asyncio.Event()

    def put(self, inventory: Inventory) -> None:
        """Keep this one soon, and none that came before it."""
        self._newest = inventory
        self._told.set()

    async def run(self) -> None:
        """Keep what was put, until cancelled. What can't be kept now is told again with the next session."""
        while True:
            await self._told.wait()
            self._told.clear()
            assert self._newest is not None
            try:
                await asyncio.get_running_loop().run_in_executor(self._pool, self._keep, self._newest)
            except DrengineError as error:
                log.warning("an inventory was not kept: %s", error, extra={"source": self._source})
            await self._clock.sleep(PAUSE_SECONDS)
