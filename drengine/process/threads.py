"""Threads that share one interpreter with an event loop."""

from __future__ import annotations

import sys

TURN_SECONDS = 0.0005
"""Python's own are ten times as long, and longer than a request takes from the first byte to the last."""


def take_short_turns() -> None:
    """Have a thread that computes let others go on sooner: an event loop that would answer, a flush that was synced."""
    sys.setswitchinterval(TURN_SECONDS)
