"""How long to wait before the next attempt: capped, doubling, fully jittered; randomness is handed in."""

from __future__ import annotations

from random import Random

FIRST_SECONDS = 0.1
CAP_SECONDS = 15.0


def backoff_seconds(attempt: int, random: Random, *, first: float = FIRST_SECONDS, cap: float = CAP_SECONDS) -> float:
    """Seconds to wait after `attempt` failures in a row (1 is the first).

    Half is fixed and half is random, so that many agents that lost one target together don't come back together,
    and none comes back at once.
    """
    ceiling = min(cap, first * 2.0 ** min(attempt - 1, 32))
    return ceiling * (0.5 + 0.5 * random.random())
