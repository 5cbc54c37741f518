"""Whether the store can take anything in: looked at each second, so that idle sessions learn of it as well.

A store that was moved away or remounted read-only ends the sessions: their agents show it, back off and come back. One
that is full, or a target that is out of descriptors, ends none: what is open may go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.process import descriptors_free
from drengine.store.errors import RESOURCES_EXHAUSTED, STORE_FULL
from drengine.store.store import Store
from drengine.target.sources import STALLED_BY

log = logging.getLogger("drengine.target")

LOOK_SECONDS = 1.0
DESCRIPTORS_KEPT = 24
"""What the sessions that are open need now and then for a commit or a question: a newcomer must leave so many."""
_SESSIONS_GO_ON = (STORE_FULL, RESOURCES_EXHAUSTED)


@dataclass
class StoreWatch:
    """Looks at one store. Belongs to one event loop; `trouble` and `reason` may be read from any thread.

    Attributes:
        free_bytes_min: below so much free space nothing is taken in.
        on_lost: told when no session can go on, and why.
        trouble: why nothing can be taken in now; None when it can.
    """

    store: Store
    clock: Clock
    free_bytes_min: int
    on_lost: Callable[[DrengineError], None]
    trouble: DrengineError | None = None

    @property
    def reason(self) -> str:
        """A code of states.REASONS, `none` when all is well."""
        trouble = self.trouble
        return STALLED_BY.get(trouble.kind, "target-failed") if trouble else "none"

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._note(await asyncio.to_thread(self._look))
            await self.clock.sleep(LOOK_SECONDS)

    def _look(self) -> DrengineError | None:
        try:
            self.store.require_usable(free_bytes_min=self.free_bytes_min)
            require_descriptors(1)
        except DrengineError as error:
            return error
        return None

    def _note(self, trouble: DrengineError | None) -> None:
        before, self.trouble = self.trouble, trouble
        if trouble is None:
            if before is not None:
                log.info("the store can be used again")
            return
        if before is None or before.kind is not trouble.kind:
            log.error("the store can't be used (%s): %s; %s", self.reason, trouble.message, trouble.hint)
        if trouble.kind not in _SESSIONS_GO_ON:
            self.on_lost(trouble)


def require_descriptors(count: int) -> None:
    """Return when the process may open so many files and sockets more.

    Raises:
        DrengineError: RESOURCES_EXHAUSTED.
    """
    free = descriptors_free()
    if free < count:
        raise DrengineError(RESOURCES_EXHAUSTED, f"{free} file descriptors are free, {count} are needed")
