"""Recovery points of promoted branches: the recovered side is protected from its first write.

A client that writes a promoted branch over NBD knows nothing of points, so they are cut here: of everything that
was written when the cut is made, in the order in which it was taken in, hence of kind write-order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import PointKind, RecoveryPoint
from drengine.store.log.writable import WritableView

log = logging.getLogger("drengine.target")


@dataclass
class Protection:
    """Cuts points on the branches that it watches. Belongs to one event loop.

    Attributes:
        interval_seconds: least time between two points of a branch.
        pool: where cuts are made.
        on_point: told of each point, on the loop.
    """

    interval_seconds: float
    pool: Executor
    clock: Clock
    on_point: Callable[[RecoveryPoint], None] = lambda _: None
    _views: list[WritableView] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    def watch(self, view: WritableView) -> None:
        """Cut points of this branch from now on, whenever it was written."""
        self._views.append(view)
        if self._task is None:
            self._task = asyncio.create_task(self._keep_cutting())

    def forget(self, view: WritableView) -> None:
        """It is about to be closed."""
        self._views = [each for each in self._views if each is not view]

    async def close(self) -> None:
        """Cut no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_cutting(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.clock.sleep(self.interval_seconds)
            for view in list(self._views):
                point = await loop.run_in_executor(self.pool, cut_if_written, view)
                if point is not None:
                    self.on_point(point)


def cut_if_written(view: WritableView) -> RecoveryPoint | None:
    """A point of what was written since the newest one; None when nothing was, or it could not be had."""
    try:
        return view.cut(PointKind.WRITE_ORDER) if view.is_uncut else None
    except DrengineError as error:
        why = {"source": view.position.source, "branch": view.branch, "detail": error.message}
        log.warning("no recovery point of a promoted branch (%s)", error.kind.id, extra=why)
        return None
