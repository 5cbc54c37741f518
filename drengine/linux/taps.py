"""Tap devices: a virtual machine's end of a cable, whose other end is a bridge's port.

They are not persistent: a device ends with the last process that holds it, so nothing has to be cleaned up after
whoever dies, and the machine that has inherited one is who keeps it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

BUSY_SECONDS = 1.0
"""A machine that has just ended may hold its device for a moment."""

_TUN = Path("/dev/net/tun")
_TUNSETIFF, _SIOCGIFINDEX, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x400454CA, 0x8933, 0x8913, 0x8914
_SIOCGIFMTU, _SIOCSIFMTU, _SIOCBRADDIF = 0x8921, 0x8922, 0x89A2
_TAP, _NO_PACKET_INFORMATION, _VIRTIO_HEADER = 0x2, 0x1000, 0x4000
_UP = 0x1
_NAME_BYTES, _REQUEST_BYTES = 16, 40
_LOOK_SECONDS = 0.02


def open_tap(name: str) -> int:
    """A tap device in this thread's network, as a descriptor that a virtual machine is handed.

    Raises:
        OSError: it can't be made, or another process has it.
    """
    tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    wanted = _request(name, struct.pack("H", _TAP | _NO_PACKET_INFORMATION | _VIRTIO_HEADER))
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            fcntl.ioctl(tap, _TUNSETIFF, wanted)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
                continue
            os.close(tap)
            raise
        return tap


def open_port(name: str, bridge: str) -> int:
    """A tap device that is a port of a bridge in this thread's network, up, with the bridge's MTU.

    The host speaks no IPv6 on it: the guests would hear that.

    Raises:
        OSError: there is no such bridge, another process has the device, or we may not.
    """
    tap = open_tap(name)
    try:
        with contextlib.suppress(OSError):  # a kernel without IPv6
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            _set(asking, _SIOCSIFMTU, name, _get(asking, _SIOCGIFMTU, bridge, 4))  # a smaller one would become its own
            _set(asking, _SIOCBRADDIF, bridge, _get(asking, _SIOCGIFINDEX, name, 4))
            (flags,) = struct.unpack("H", _get(asking, _SIOCGIFFLAGS, name, 2))
            _set(asking, _SIOCSIFFLAGS, name, struct.pack("H", flags | _UP))
    except BaseException:
        os.close(tap)
        raise
    return tap


def _get(asking: socket.socket, what: int, name: str, size: int) -> bytes:
    return fcntl.ioctl(asking, what, _request(name))[_NAME_BYTES : _NAME_BYTES + size]


def _set(asking: socket.socket, what: int, name: str, value: bytes) -> None:
    fcntl.ioctl(asking, what, _request(name, value))


def _request(name: str, value: bytes = b"") -> bytes:
    """struct ifreq, see netdevice(7)."""
    return name.encode("ascii").ljust(_NAME_BYTES, b"\0") + value.ljust(_REQUEST_BYTES - _NAME_BYTES, b"\0")
