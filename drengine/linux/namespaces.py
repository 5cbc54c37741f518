"""Network namespaces by name, as `ip netns` keeps them."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

NAMED = Path("/run/netns")
_NEW_NET = 0x40000000
T = TypeVar("T")


def in_network(network: str, work: Callable[[], T]) -> T:
    """Do something inside a named network, in a thread of its own that ends with it; "" is our own network.

    Raises:
        OSError: there is no such network, or we may not enter it; whatever `work` raises.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if network:
                _enter(NAMED / network)
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="in-network")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _enter(place: Path) -> None:
    """This thread's network from now on, and no other thread's: setns(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _NEW_NET):
            error = ctypes.get_errno()
            raise OSError(error, f"{place} can't be entered: {os.strerror(error)}")
    finally:
        os.close(descriptor)
