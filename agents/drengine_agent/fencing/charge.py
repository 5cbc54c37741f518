"""Being in charge of the volumes, and serving them, change together."""

from __future__ import annotations

import asyncio
import logging

from drengine.model.clock import Clock
from drengine_agent.capture.capture import Capture
from drengine_agent.fencing.fence import Fence, Standing, fenced_record

log = logging.getLogger("drengine.agent")


class Charge:
    """One source's standing.

    Attributes:
        fence: what is remembered of it.
        changing: held while standing and serving change together.
    """

    def __init__(self, fence: Fence, clock: Clock) -> None:
        self.fence = fence
        self.changing = asyncio.Lock()
        self._clock = clock

    async def stand_down(self, capture: Capture, generation: int, reason: str) -> None:
        """Stop serving, now; and remember it. What ships is for the caller to stop.

        Raises:
            DrengineError: STATE_DAMAGED: it serves nobody, but a restart would not know.
        """
        async with self.changing:
            if self.fence.record.standing is not Standing.FENCED:
                self.fence.assume(fenced_record(generation, reason, self._clock))
                log.warning("this source is fenced (%s): it serves and ships nothing until it is released", reason)
            await asyncio.to_thread(capture.stop_serving, cut=True)
            if not self.fence.is_durable:
                await asyncio.to_thread(self.fence.replace, self.fence.record)
