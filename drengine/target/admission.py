"""Who may open a session for a source: a pure decision, and the memory that sessions share.

A source has one session at a time (fault 41). An agent whose TCP connection is half open must get back in at once,
and two agents with one identity must not throw each other out in turns:

- no session of the source is there: admit;
- the same instance of the agent is there: it has lost that connection, so the new one replaces it;
- another instance is there: it is asked whether it lives. If it answers, the newcomer is refused; otherwise replaced.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from drengine.wire.frames import BATCH_FRAME_BYTES_MAX


class Admission(enum.Enum):
    """What to do with a newcomer."""

    ADMIT = enum.auto()
    REPLACE = enum.auto()
    PROBE = enum.auto()


def decide_admission(newcomer: bytes, present: bytes | None) -> Admission:
    """By the instances of the newcomer and of the session that is there, if any."""
    if present is None:
        return Admission.ADMIT
    return Admission.REPLACE if newcomer == present else Admission.PROBE


CUT_BYTES = 256
"""What a recovery point takes of the catalogue beside the geometry that it shows."""


@dataclass
class CutBudget:
    """How much of the catalogue the recovery points of one source may take, whatever few bytes ask for them.

    A point keeps the names and sizes of all volumes. Without this, many volumes and a flood of cuts would make
    gigabytes of a few megabytes sent. It fills with time, and is far more than a source needs that means well.
    """

    bytes_max: int = 32 << 20
    bytes_per_second: int = 256 << 10
    _left: float = 32 << 20
    _at: float = 0.0

    def wait_seconds(self, cost_bytes: int, now: float) -> float:
        """Take the cost of a point; or how long to wait first, and then ask again. `now` is monotonic."""
        cost = min(cost_bytes, self.bytes_max)
        self._left = min(self.bytes_max, self._left + max(0.0, now - self._at) * self.bytes_per_second)
        self._at = now
        if cost > self._left:
            return (cost - self._left) / self.bytes_per_second
        self._left -= cost
        return 0.0


@dataclass
class CreditBudget:
    """Bytes of frames that all sessions together may have in flight.

    Early sessions get much, later ones less, none less than one largest frame. When not even that is left, `grant`
    says 0 and the session is refused rather than the bound exceeded.
    """

    budget_bytes: int
    session_bytes_max: int
    granted_bytes: int = 0

    def grant(self) -> int:
        """Credit for a new session in bytes, or 0."""
        left = self.budget_bytes - self.granted_bytes
        credit = max(BATCH_FRAME_BYTES_MAX, min(self.session_bytes_max, left // 16))
        if credit > left:
            return 0
        self.granted_bytes += credit
        return credit

    def give_back(self, credit: int) -> None:
        """A session that was granted `credit` has ended and holds nothing any more."""
        self.granted_bytes -= credit
