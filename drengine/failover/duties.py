"""What one of a site's orchestrators does for all of them: each duty is a lease of the registry.

Whoever has it keeps it while he renews it, and by his own clock stops before another may begin; so a duty is done by
nobody for a while after its holder died, and never by two.
"""

from __future__ import annotations

import asyncio
import logging

from drengine.failover.executor import HELD_SHARE, RENEWALS
from drengine.failover.registry import Registry
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST
from drengine.failover.run import Lease
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError

log = logging.getLogger("drengine.orchestrator")


class Duty:
    """One of them, as one process sees it; belongs to one event loop.

    Attributes:
        name: for people, and of its lease.
    """

    def __init__(self, registry: Registry, clock: Clock, name: str, *, owner: str, seconds: float) -> None:
        """`seconds`: how long its holder may be silent before another takes it."""
        self.name = name
        self._registry, self._clock, self._owner, self._seconds = registry, clock, owner, seconds
        self._lease: Lease | None = None
        self._held_at = 0.0

    @property
    def is_ours(self) -> bool:
        """Whether it is certainly ours at this moment."""
        held = self._lease is not None
        return held and self._clock.monotonic() < self._held_at + HELD_SHARE * self._seconds

    async def take(self) -> bool:
        """Whether it is ours now; taken or renewed as is needed, so to be asked again and again while it is done."""
        now = self._clock.monotonic()
        if self._lease is None or now >= self._held_at + self._seconds / RENEWALS:
            await self._ask(now)
        return self.is_ours

    async def leave(self) -> None:
        """Let another have it at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await asyncio.to_thread(self._registry.release_lease, lease)
            except DrengineError as error:
                log.info("%s: its lease ends by itself: %s", self.name, error.message)

    async def _ask(self, now: float) -> None:
        registry, lease = self._registry, self._lease
        try:
            if lease is None:
                name = duty_lease(self.name)
                self._lease = await asyncio.to_thread(registry.acquire_lease, name, self._owner, self._seconds)
                log.info("this orchestrator has the duty %r now", self.name)
            else:
                self._lease = await asyncio.to_thread(registry.renew_lease, lease, self._seconds)
            self._held_at = now
        except DrengineError as error:
            if error.kind is LEASE_LOST:
                self._lease = None
            elif error.kind is not LEASE_HELD:
                log.warning("the duty %r: %s", self.name, error.message)


def duty_lease(name: str) -> str:
    """Of a duty."""
    return f"duty:{name}"
