"""One bound on the memory that all connections of a server hold for requests and replies together.

A connection may always hold its share. Beyond that all draw on one pool, each at most half of what the others leave:
so a few fill it soon, many come out alike, and a newcomer finds room. A request that finds none waits. The first that
waits gets all that becomes free, and nobody draws on the pool before it; shares stay for the others.
"""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """See the module. Belongs to one event loop."""

    def __init__(self, bytes_max: int, share_bytes: int, soon: Callable[[Callable[[], None]], object]) -> None:
        """
        Args:
            bytes_max: the pool.
            share_bytes: what each connection may hold beside it.
            soon: calls a function in the loop's next turn.
        """
        self.bytes_max = bytes_max
        self.share_bytes = share_bytes
        self.pooled_bytes = 0
        self.waiting: dict[Holding, None] = {}
        self._soon = soon
        self._is_waking = False

    def wake(self) -> None:
        """Let the first that waits try again in the loop's next turn."""
        if self.waiting and not self._is_waking:
            self._is_waking = True
            self._soon(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        if self.waiting:
            next(iter(self.waiting)).retry()


class Holding:
    """What one connection holds of a budget."""

    def __init__(self, budget: Budget, retry: Callable[[], None]) -> None:
        """`retry` is called when a request that waits may find room now."""
        self.retry = retry
        self._budget = budget
        self._pooled_bytes = 0

    def room(self, held_bytes: int) -> int:
        """How many more bytes may be taken, when it holds so many now."""
        budget = self._budget
        room = budget.share_bytes - held_bytes
        free = budget.bytes_max - budget.pooled_bytes + self._pooled_bytes
        if not budget.waiting:
            return room + free // 2
        return room + free if next(iter(budget.waiting)) is self else room

    def note(self, held_bytes: int, *, waits: bool) -> None:
        """So many bytes are held now, and a request waits for room or none does."""
        budget = self._budget
        pooled = max(0, held_bytes - budget.share_bytes)
        freed = self._pooled_bytes - pooled
        if freed:
            self._pooled_bytes = pooled
            budget.pooled_bytes -= freed
        if waits:
            budget.waiting.setdefault(self)
        elif budget.waiting and self in budget.waiting:
            del budget.waiting[self]
            freed = 1  # the next is first now
        if freed > 0:
            budget.wake()
