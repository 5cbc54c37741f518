"""Who has an address on a link (ARP), and telling all there that we have it now; in the calling thread's network."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from ipaddress import IPv6Address, ip_address

ARP, IPV4 = 0x0806, 0x0800
_ASK, _ANSWER = 1, 2
_ALL = b"\xff" * 6
_ALL_NODES = "ff02::1"
_ADVERTISE, _OVERRIDE, _OUR_MAC = 136, 0x20000000, 2
ANNOUNCEMENTS = 2
"""One may be lost (RFC 5227)."""


def who_has(interface: str, address: str, *, seconds: float) -> str:
    """The MAC of whoever answers for an IPv4 address on a link; empty: nobody did in that time.

    Raises:
        OSError: the link can't be asked.
    """
    with _socket(interface) as asking:
        deadline, wanted = time.monotonic() + seconds, socket.inet_aton(address)
        asking.send(_packet(_mac(asking), bytes(4), wanted))
        while (left := deadline - time.monotonic()) > 0:
            asking.settimeout(left)
            with contextlib.suppress(TimeoutError):
                packet = asking.recv(64)
                if len(packet) >= 42 and packet[20:22] == struct.pack("!H", _ANSWER) and packet[28:32] == wanted:
                    return packet[22:28].hex(":")
    return ""


def announce(interface: str, address: str) -> None:
    """Tell all on a link that the address is ours, so that they forget who had it before.

    Raises:
        OSError: the link can't be used.
    """
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        _advertise(interface, parsed)
        return
    with _socket(interface) as telling:
        for _ in range(ANNOUNCEMENTS):
            telling.send(_packet(_mac(telling), parsed.packed, parsed.packed))


def _advertise(interface: str, address: IPv6Address) -> None:
    with _socket(interface) as link:
        mac = _mac(link)
    message = struct.pack("!BBHI", _ADVERTISE, 0, 0, _OVERRIDE) + address.packed + struct.pack("!BB", _OUR_MAC, 1) + mac
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as telling:
        index = socket.if_nametoindex(interface)
        telling.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        telling.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        for _ in range(ANNOUNCEMENTS):
            telling.sendto(message, (_ALL_NODES, 0, 0, index))


def _socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP))
    try:
        made.bind((interface, ARP))
    except OSError:
        made.close()
        raise
    return made


def _mac(bound: socket.socket) -> bytes:
    found: bytes = bound.getsockname()[4]
    return found


def _packet(mac: bytes, ours: bytes, wanted: bytes) -> bytes:
    head = _ALL + mac + struct.pack("!H", ARP) + struct.pack("!HHBBH", 1, IPV4, 6, 4, _ASK)
    return head + mac + ours + bytes(6) + wanted
