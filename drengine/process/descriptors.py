"""Descriptors: how many this process may still open, and which of some can be read."""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Sequence

_OPEN = "/proc/self/fd"


def descriptors_free() -> int:
    """Descriptors that can still be had, at this moment; other threads take some, too."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return max(0, limit - (len(os.listdir(_OPEN)) - 1))  # noqa: PTH208 - one descriptor, not two
    except FileNotFoundError:  # no /proc: it cannot be known, and is found out by running out
        return limit
    except OSError:
        return 0


def raise_descriptor_limit() -> None:
    """Use what the system allows: the soft limit is low for the sake of old programs that call select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def readable(descriptors: Sequence[int], seconds: float | None = None) -> set[int]:
    """Those that can be read, or whose other end is gone, after at most so many seconds; none when the time is over.

    Unlike `select.select` it takes descriptors above 1023, which a daemon with a raised limit has.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)}
