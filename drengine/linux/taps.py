"""Tap devices: a virtual machine's end of a cable into a bridge.

They are not persistent: a device lives as long as somebody has it open, so nothing has to be cleaned up after whoever
dies, and the machine that has inherited it is the one that keeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

from drengine.linux.namespaces import in_network

_TUN = "/dev/net/tun"
_TUNSETIFF, _SIOCGIFINDEX, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x400454CA, 0x8933, 0x8913, 0x8914
_SIOCGIFMTU, _SIOCSIFMTU, _SIOCBRADDIF = 0x8921, 0x8922, 0x89A2
_TAP, _NO_PACKET_INFORMATION, _VIRTIO_HEADER = 0x2, 0x1000, 0x4000
_UP = 0x1
_REQUEST_BYTES = 40
_NAMES = "drtap%d"


def open_tap(bridge: str, network: str = "") -> int:
    """A new tap device on a bridge of the named network ("": our own); the descriptor is its life.

    Raises:
        OSError: there is no such bridge, or we may not.
    """
    return in_network(network, lambda: _open(bridge))


def _open(bridge: str) -> int:
    tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _TAP | _NO_PACKET_INFORMATION | _VIRTIO_HEADER
        made = fcntl.ioctl(tap, _TUNSETIFF, _request(_NAMES, struct.pack("H", flags)))
        name = made[:16].rstrip(b"\0").decode()
        with contextlib.suppress(OSError):  # a kernel without IPv6; else the host would speak to the guests
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            mtu = fcntl.ioctl(asking, _SIOCGIFMTU, _request(bridge))[16:20]
            fcntl.ioctl(asking, _SIOCSIFMTU, _request(name, mtu))  # a smaller one would become the bridge's
            index = fcntl.ioctl(asking, _SIOCGIFINDEX, _request(name))[16:20]
            fcntl.ioctl(asking, _SIOCBRADDIF, _request(bridge, index))
            (now,) = struct.unpack_from("H", fcntl.ioctl(asking, _SIOCGIFFLAGS, _request(name)), 16)
            fcntl.ioctl(asking, _SIOCSIFFLAGS, _request(name, struct.pack("H", now | _UP)))
    except BaseException:
        os.close(tap)
        raise
    return tap


def _request(name: str, value: bytes = b"") -> bytes:
    """struct ifreq, see netdevice(7)."""
    return name.encode("ascii").ljust(16, b"\0") + value.ljust(_REQUEST_BYTES - 16, b"\0")
