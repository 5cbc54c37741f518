"""Network interfaces with their addresses, and routes: from /proc, /sys and two old ioctls.

Netlink would tell more, but the agent's unit lets it have no such socket, and older units stay as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drengine.model.inventory import Interface, Route
from drengine_agent.inventory.texts import number_of, text_of

INTERFACES_MAX = 64
_SIOCGIFCONF, _SIOCGIFNETMASK = 0x8912, 0x891B
_IFREQ_BYTES = 40
_ADDRESSES_MAX = 1024
_UP = 1
_LINK_SCOPE, _TEMPORARY = 0x20, 0x01
_ROUTE_REJECTS = 0x200
_ROUTE6_OURS = 0x80000000 | 0x00100000 | 0x01000000 | _ROUTE_REJECTS
"""Routes that the kernel makes for its own addresses, caches, and those that refuse."""
_LEASES = (
    "run/systemd/netif/leases/{index}",
    "run/NetworkManager/devices/{index}",
    "var/lib/NetworkManager/internal-*-{name}.lease",
    "var/lib/dhcp/dhclient*{name}*.lease*",
    "var/lib/dhclient/dhclient*{name}*.lease*",
    "var/lib/dhcpcd/{name}*.lease",
    "run/dhclient*{name}*.lease*",
)
"""Where clients of DHCP keep what they were given."""


def network_facts(root: Path) -> dict[str, Any]:
    """Attributes of Inventory that concern the network."""
    addresses = _all_addresses(root)
    found = [
        each
        for name in _names(root)
        if (each := _interface(root, name, addresses.get(name, ()))).kind != "virtual" or each.addresses
    ]
    found.sort(key=lambda each: (each.kind != "physical", not each.addresses))
    kept = found[:INTERFACES_MAX]
    routes = (*_routes(root), *_routes6(root))
    return {"interfaces": tuple(kept), "routes": tuple(each for each in routes if each.interface != "lo")}


def _names(root: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(each for each in os.listdir(root / "sys/class/net") if each != "lo")  # noqa: PTH208
    return []


def _interface(root: Path, name: str, addresses: tuple[str, ...]) -> Interface:
    at = root / "sys/class/net" / name
    mac, driver = text_of(at / "address").lower(), ""
    with contextlib.suppress(OSError):
        driver = os.readlink(at / "device/driver").rpartition("/")[2]  # noqa: PTH115
    flags = text_of(at / "flags")
    return Interface(
        name=name,
        mac=mac if len(mac) == 17 and mac != "00:00:00:00:00:00" else "",
        mtu=number_of(at / "mtu"),
        kind=_kind(at),
        is_up=bool(int(flags, 16) & _UP) if flags else False,
        addresses=addresses,
        dhcp=has_lease(root, at, name, addresses),
        driver=driver,
    )


def _kind(at: Path) -> str:
    told = next((line[8:] for line in text_of(at / "uevent").splitlines() if line.startswith("DEVTYPE=")), "")
    if told in ("bond", "bridge", "vlan"):
        return told
    return "physical" if (at / "device").exists() else "virtual"


def has_lease(root: Path, at: Path, name: str, addresses: tuple[str, ...]) -> bool:
    """Whether a client of DHCP keeps a lease of one of the addresses for this interface."""
    plain = [address.partition("/")[0] for address in addresses if ":" not in address]
    for pattern in _LEASES:
        for path in root.glob(pattern.format(index=number_of(at / "ifindex"), name=name)):
            text = text_of(path)
            if "NetworkManager/devices" in pattern and "dhcp" not in text:
                continue
            if any(re.search(rf"(?<![\d.]){re.escape(address)}(?![\d.])", text) for address in plain):
                return True
    return False


def _all_addresses(root: Path) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, address in (*_addresses4(), *_addresses6(root)):
        found.setdefault(name, []).append(address)
    return {name: tuple(dict.fromkeys(each)) for name, each in found.items()}


def _addresses4() -> Iterator[tuple[str, str]]:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for entry in _configured(asked):
                label, address = entry[:16].split(b"\0")[0], entry[20:24]
                answer = fcntl.ioctl(asked, _SIOCGIFNETMASK, entry)
                bits = bin(int.from_bytes(answer[20:24], "big")).count("1")
                name = label.decode("utf-8", "replace").partition(":")[0]
                yield name, f"{ipaddress.IPv4Address(address)}/{bits}"
    except OSError:
        return


def _configured(asked: socket.socket) -> Iterator[bytes]:
    """A struct ifreq for each address of each interface."""
    room = ctypes.create_string_buffer(_IFREQ_BYTES * _ADDRESSES_MAX)
    told = fcntl.ioctl(asked, _SIOCGIFCONF, struct.pack("iP", len(room), ctypes.addressof(room)))
    length, _ = struct.unpack("iP", told)
    for begin in range(0, length, _IFREQ_BYTES):
        yield room.raw[begin : begin + _IFREQ_BYTES]


def _addresses6(root: Path) -> Iterator[tuple[str, str]]:
    for line in text_of(root / "proc/net/if_inet6").splitlines():
        match line.split():
            case [address, _, bits, scope, flags, name] if not int(flags, 16) & _TEMPORARY:
                if int(scope, 16) != _LINK_SCOPE:
                    yield name, f"{ipaddress.IPv6Address(bytes.fromhex(address))}/{int(bits, 16)}"


def _routes(root: Path) -> Iterator[Route]:
    for line in text_of(root / "proc/net/route").splitlines()[1:]:
        match line.split():
            case [name, to, via, flags, _, _, metric, mask, *_] if not int(flags, 16) & _ROUTE_REJECTS:
                bits = bin(int(mask, 16)).count("1")
                yield Route(
                    to=f"{_address4(to)}/{bits}" if bits else "default",
                    via=str(_address4(via)) if int(via, 16) else "",
                    interface=name,
                    metric=int(metric),
                )


def _address4(text: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(struct.pack("=I", int(text, 16)))


def _routes6(root: Path) -> Iterator[Route]:
    for line in text_of(root / "proc/net/ipv6_route").splitlines():
        match line.split():
            case [to, bits, _, _, via, metric, _, _, flags, name] if not int(flags, 16) & _ROUTE6_OURS:
                network = ipaddress.IPv6Network((bytes.fromhex(to), int(bits, 16)))
                if network.is_link_local or network.is_multicast:
                    continue
                yield Route(
                    to=str(network) if network.prefixlen else "default",
                    via=str(ipaddress.IPv6Address(bytes.fromhex(via))) if int(via, 16) else "",
                    interface=name,
                    metric=int(metric, 16),
                )
