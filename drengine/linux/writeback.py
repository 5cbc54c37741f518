"""Asking the kernel to write a part of a file out now, and waiting for that part alone."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4


def begin(descriptor: int, offset: int, length: int) -> None:
    """Begin to write a range out, as far as the kernel can: a later sync has less to do. Never fails."""
    _sync_file_range(descriptor, offset, length, _WRITE)


def drop(descriptor: int, offset: int, length: int) -> bool:
    """Write a range out and let the page cache drop it, so that what is read next comes from the device.

    This makes nothing durable: neither what the file system notes of the range, nor what the device caches.

    Returns:
        False where the kernel cannot do that, or where it failed; the next sync tells why.
    """
    if not _sync_file_range(descriptor, offset, length, _WAIT_BEFORE | _WRITE | _WAIT_AFTER):
        return False
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    return True


def _sync_file_range(descriptor: int, offset: int, length: int, flags: int) -> bool:
    call = getattr(_libc, "sync_file_range", None)
    return call is not None and call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), flags) == 0
