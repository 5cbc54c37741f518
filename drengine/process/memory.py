"""Memory of daemons that take and free buffers of up to a megabyte all the time."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

KEPT_BYTES = 32 << 20
"""What one heap may hold free; there is one for each few threads."""

MAPPED_BYTES = 8 << 20
"""A longer buffer is given back to the system as soon as it is freed."""


def keep_freed_memory() -> None:
    """Have malloc keep what is freed. A buffer that comes from the system costs a fault for each of its pages, which is
    more than what is done with it. A C library that knows no such setting goes on as it does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
