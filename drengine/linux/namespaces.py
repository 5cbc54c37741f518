"""Network namespaces by name, as `ip netns` keeps them: a name is a file on which the namespace is mounted."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

NAMED = Path("/run/netns")
_NEW_NET = 0x40000000
_BIND, _RECURSIVE, _SHARED, _DETACH = 0x1000, 0x4000, 0x100000, 2
T = TypeVar("T")


def is_network(name: str) -> bool:
    """Whether there is such a namespace; a name on which nothing is mounted is what a crash left."""
    try:
        return (NAMED / name).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def make_network(name: str) -> None:
    """A new network with a name, if there is none of that name: only loopback is in it, and it is down.

    Raises:
        OSError: we may not, or the kernel has no such thing.
    """
    _check(name)
    if is_network(name):
        return
    NAMED.mkdir(exist_ok=True, mode=0o755)
    _share()
    (NAMED / name).touch()
    in_new_network(lambda: _call("mount", b"/proc/thread-self/ns/net", bytes(NAMED / name), None, _BIND, None))


def remove_network(name: str) -> None:
    """Take the name away; the network ends with the last process in it. No error if there is none.

    Raises:
        OSError: we may not.
    """
    _check(name)
    with contextlib.suppress(OSError):  # nothing is mounted there; what matters shows when the file is removed
        _call("umount2", bytes(NAMED / name), _DETACH)
    (NAMED / name).unlink(missing_ok=True)


def in_new_network(work: Callable[[], T]) -> T:
    """Do something inside a network that is made for it, and ends with it unless it is given a name.

    Raises:
        OSError: we may not, or the kernel has no such thing; whatever `work` raises.
    """

    def run() -> T:
        _call("unshare", _NEW_NET)
        return work()

    return in_network("", run)


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
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", descriptor, _NEW_NET, about=f"{place} can't be entered")
    finally:
        os.close(descriptor)


def _check(name: str) -> None:
    """Names are made of checked ones; one that leads elsewhere would unmount something else."""
    if not name or name.startswith(".") or "/" in name:
        raise OSError(errno.EINVAL, f"{name!r} can't name a network")


def _share() -> None:
    """Names are seen by all mount namespaces, as `ip netns` does it."""
    try:
        _call("mount", b"", bytes(NAMED), b"none", _SHARED | _RECURSIVE, None)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _call("mount", bytes(NAMED), bytes(NAMED), b"none", _BIND | _RECURSIVE, None)
        _call("mount", b"", bytes(NAMED), b"none", _SHARED | _RECURSIVE, None)


def _call(name: str, *arguments: Any, about: str = "") -> None:
    """A function of libc that gives 0, or -1 and an error.

    Raises:
        OSError: what it says.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*(ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments)):
        error = ctypes.get_errno()
        raise OSError(error, f"{about or name}: {os.strerror(error)}")
