"""Telling the target what this server is made of: with each session, and when it has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.wire.events import InventoryReport
from drengine_agent.ship.sender import Sender

log = logging.getLogger("drengine.agent")

FIRST_LOOK_SECONDS = 3.0
"""After the start: replication goes first."""
LOOK_SECONDS = 60.0
RETELL_SECONDS = 3600.0
"""So old may be what was told of things that change all the time, such as free space."""


class InventoryTeller:
    """Looks now and then, and tells. Belongs to one event loop."""

    def __init__(self, look: Callable[[], Inventory], clock: Clock) -> None:
        """`look` is called in a thread of its own: a disk that hangs holds up nothing but it."""
        self._look = look
        self._clock = clock
        self._newest: Inventory | None = None
        self._newest_at = 0.0
        self._told: tuple[Sender, Inventory] | None = None

    async def run(self) -> None:
        """Look, until cancelled."""
        await self._clock.sleep(FIRST_LOOK_SECONDS)
        while True:
            found, now = await self._looked(), self._clock.monotonic()
            is_old = now - self._newest_at >= RETELL_SECONDS
            if found and (self._newest is None or is_old or found.lasting != self._newest.lasting):
                self._newest, self._newest_at = found, now
            await self._clock.sleep(LOOK_SECONDS)

    async def tell(self, sender: Sender | None) -> None:
        """Tell over this session, if it has not been told."""
        newest = self._newest
        if sender is None or newest is None or not sender.tells_inventory:
            return
        if self._told is not None and self._told[0] is sender and self._told[1] is newest:
            return
        self._told = sender, newest
        with contextlib.suppress(DrengineError, OSError, EOFError):
            await sender.send_inventory(InventoryReport(newest))

    async def _looked(self) -> Inventory | None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Inventory | None] = loop.create_future()

        def answer(found: Inventory | None) -> None:
            if not done.done():
                done.set_result(found)

        def work() -> None:
            found = None
            try:
                found = self._look()
            except Exception:
                log.exception("the inventory was not found")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(answer, found)

        threading.Thread(target=work, name="inventory", daemon=True).start()
        return await done
