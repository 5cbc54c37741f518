"""Being in charge of the volumes, and serving them, change together."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from drengine.model.clock import Clock
from drengine_agent.capture.capture import Capture
from drengine_agent.fencing.account import why_it_stands
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

    async def stand_down(self, capture: Capture, generation: int, reason: str, *, run: str = "", by: str = "") -> None:
        """Stop serving, now; and remember it. What ships is for the caller to stop.

        A source that a run has fenced, and then another, stands because of that one.

        Raises:
            DrengineError: STATE_DAMAGED: it serves nobody, but a restart would not know.
        """
        async with self.changing:
            record = self.fence.record
            if record.standing is not Standing.FENCED:
                self.fence.assume(fenced_record(generation, reason, self._clock, run=run, by=by))
                why = why_it_stands(self.fence.record)
                log.warning("this source is fenced (%s): it serves and ships nothing until it is released", why)
            elif reason == "moved" and record.reason != "moved":
                self.fence.assume(msgspec.structs.replace(record, reason=reason, run="", by=""))
            elif run and record.run not in ("", run):
                self.fence.assume(msgspec.structs.replace(record, run=run, by=by))
            await asyncio.to_thread(capture.stop_serving, cut=True)
            if not self.fence.is_durable:
                await asyncio.to_thread(self.fence.replace, self.fence.record)
