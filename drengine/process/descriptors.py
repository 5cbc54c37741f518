"""How many files and sockets this process may still open."""

from __future__ import annotations

import os
import resource

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
