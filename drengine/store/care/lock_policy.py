"""The policy of the retention lock, apart from what applies it: whoever reads a configuration needs no catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.store.errors import BAD_LOCK

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SECONDS_MAX = 100 * 366 * 86400
"""No lock is longer."""
_POLICY = re.compile(r"(?:every\s+(\d{1,10})\s*([smhdw])\s+for\s+)?(\d{1,10})\s*([smhdw])", re.ASCII)


@dataclass(frozen=True, slots=True)
class LockPolicy:
    """Which points are locked: one in each `every_seconds` (0: all), for `for_seconds` (0: none)."""

    every_seconds: int = 0
    for_seconds: int = 0

    @staticmethod
    def parse(text: str) -> LockPolicy:
        """``7d``: every point; ``every 1h for 7d``: one an hour; empty: none.

        Raises:
            DrengineError: BAD_LOCK.
        """
        if not text.strip():
            return LockPolicy()
        match = _POLICY.fullmatch(text.strip().lower())
        every = int(match[1]) * _UNITS[match[2]] if match and match[1] else 0
        seconds = int(match[3]) * _UNITS[match[4]] if match else 0
        if not match or not 0 < seconds <= SECONDS_MAX or every > seconds:
            raise DrengineError(BAD_LOCK, f"{text[:80]!r} is no lock policy")
        return LockPolicy(every, seconds)
