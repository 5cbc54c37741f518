"""Which target to try next: all of them in turn, and where the one that was asked sends us.

A `Route` lasts as long as the agent. The target that served last comes first, the ones that failed last; at first, and
among those that were never reached, chance decides, so that agents that lost one target do not all go to the same
other one.

A `Tour` is one attempt. It asks each address once. Who answers that another target has the source is believed: that
one comes next. Where that leads nowhere (it does not answer, or sends us round in a circle), those who sent us away are
asked once more, without the offer to be sent on: then each of them either takes the source or refuses. So an attempt
ends, and two targets that disagree can't play ping-pong with an agent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random

from drengine.config import Address

HOPS_MAX = 8
"""Addresses that targets may add to one attempt."""


class Tour:
    """One attempt."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.may_move = True
        """Whether to offer to be sent on."""
        self._left = deque(addresses)
        self._asked: list[Address] = []
        self._sent_away_by: list[Address] = []
        self._hops = 0

    def next(self) -> Address | None:
        """Whom to ask now; None when the attempt has failed."""
        if not self._left and self.may_move:
            self.may_move = False
            self._left.extend(dict.fromkeys(self._sent_away_by))
        if not self._left:
            return None
        address = self._left.popleft()
        self._asked.append(address)
        return address

    def sent_on(self, to: Sequence[Address]) -> None:
        """The one that was asked last has named the owner's addresses."""
        self._sent_away_by.append(self._asked[-1])
        for address in reversed([each for each in to if each not in self._asked]):
            if address in self._left:
                self._left.remove(address)
            elif self._hops < HOPS_MAX:
                self._hops += 1
            else:
                continue
            self._left.appendleft(address)


class Route:
    """The addresses of a source's targets, best first."""

    def __init__(self, addresses: Sequence[Address], random: Random) -> None:
        self._configured = tuple(addresses)
        self._order = random.sample(self._configured, len(self._configured))

    @property
    def best(self) -> Address:
        """The one that is tried first."""
        return self._order[0]

    def tour(self) -> Tour:
        """An attempt."""
        return Tour(self._order)

    def served(self, address: Address) -> None:
        """It has opened a session."""
        self._order = [address, *(each for each in self._order if each in self._configured and each != address)]

    def sent_on(self, to: Sequence[Address]) -> None:
        """The target that served has ended the session, and names the one that shall have the source."""
        for address in reversed(to):
            self.served(address)

    def failed(self, address: Address) -> None:
        """It did not answer, or refused."""
        left = [each for each in self._order if each != address]
        self._order = [*left, address] if address in self._configured else left
