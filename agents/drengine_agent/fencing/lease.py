"""Self-fencing, for those who chose it: an agent that the broker has not heard for so long stops serving its volumes.

What is promised: when the broker has carried no report of this agent for `lease_seconds`, the agent serves nobody.
An orchestrator at the same broker can observe exactly that silence, and take it as evidence that the source is fenced.
That is why contact with the broker counts and contact with the target does not: who decides about a failover must be
able to see what keeps the lease alive.

Invariants:
- The lease counts from the moment at which a report was *sent* that has come back from the broker: at that moment
  nobody could have seen a silence yet.
- Time is monotonic: no jump of the wall clock prolongs or ends a lease.
- Once over, it stays over: contact that comes back does not unfence, because somebody may have acted upon the silence.
- A new process serves nothing before its own first report has come back, so a restart prolongs nothing either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from drengine.model.clock import Clock

log = logging.getLogger("drengine.agent")

LOOK_SECONDS = 0.1
REPORTS_PER_LEASE = 4


class SelfFencing:
    """One process's lease; not alive before the first confirmation."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        """`seconds`: how long it lasts; 0: for ever, from the beginning."""
        self.seconds = seconds
        self._clock = clock
        self._renewed_at: float | None = None
        self._over = False
        self._first = asyncio.Event()
        if not seconds:
            self._first.set()

    def confirm(self, sent_at: float) -> None:
        """A report that was sent at this (monotonic) moment has come back from the broker."""
        if not self.is_over and (self._renewed_at is None or sent_at > self._renewed_at):
            self._renewed_at = sent_at
        self._first.set()

    async def begun(self) -> None:
        """Wait for the first confirmation; at once where there is no lease."""
        await self._first.wait()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the newest confirmed report was sent; 0 before the first."""
        return 0.0 if self._renewed_at is None else self._clock.monotonic() - self._renewed_at

    @property
    def is_over(self) -> bool:
        """Whether it has run out, now or ever; whoever is stopped for longer finds it so before anything renews it."""
        self._over = self._over or (bool(self.seconds) and self.silent_seconds >= self.seconds)
        return self._over

    async def watch(self, fence: Callable[[], Awaitable[None]], why: Callable[[], str]) -> None:
        """Call `fence` when it runs out, again and again until that succeeds; then return.

        Args:
            fence: stops serving, durably.
            why: what is known of the broken contact, for the log.
        """
        if not self.seconds:
            return
        while not self.is_over:
            await self._clock.sleep(min(LOOK_SECONDS, self.seconds / 20))
        log.error(
            "the lease is over: no word from the broker for %.1f s (%s); this source fences itself",
            self.silent_seconds,
            why() or "connected, but nothing comes back",
        )
        while True:
            try:
                await fence()
            except Exception:
                log.exception("fencing failed; trying again")
                await self._clock.sleep(LOOK_SECONDS)
            else:
                return
