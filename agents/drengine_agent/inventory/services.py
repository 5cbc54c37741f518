"""Ports on which programs listen, and whose they are: the kernel's tables of sockets, and who holds each socket open.

Which process holds a socket is told only to those who may trace it. Where the agent may not, a socket's owner tells the
unit, if that user's processes all belong to one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from drengine.model.inventory import Listener
from drengine_agent.inventory.texts import printable, text_of

PROCESSES_MAX = 8192
DESCRIPTORS_MAX = 65536
"""Links that are looked at, of all processes together."""
_LISTENING, _UNCONNECTED = "0A", "07"
_SOCKET = "socket:["


class _Socket(NamedTuple):
    protocol: str
    address: str
    port: int
    user: int
    inode: str


class _Process(NamedTuple):
    number: int
    user: int


class _Service(NamedTuple):
    program: str = ""
    unit: str = ""


class Services:
    """Finds who listens. While the same sockets listen, it is not looked up again whose they are."""

    def __init__(self) -> None:
        self._sockets: list[_Socket] = []
        self._found: tuple[Listener, ...] = ()

    def facts(self, root: Path) -> dict[str, Any]:
        """The attribute of Inventory that concerns services."""
        sockets = list(_sockets(root))
        if sockets != self._sockets:
            self._found = _listeners(root, sockets)
            self._sockets = sockets
        return {"listeners": self._found}


def _listeners(root: Path, sockets: list[_Socket]) -> tuple[Listener, ...]:
    processes = list(_processes(root))
    holders = _holders(root, processes, {each.inode for each in sockets})
    owners = _owners(root, processes, {each.user for each in sockets if each.inode not in holders})
    services = {number: _service(root, number) for number in {*holders.values(), *owners.values()}}
    found = set()
    for each in sockets:
        holder = holders.get(each.inode) or owners.get(each.user)
        service = services[holder] if holder else _Service()
        found.add(
            Listener(
                protocol=each.protocol,
                address=each.address,
                port=each.port,
                program=service.program,
                unit=service.unit,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.protocol, one.port, one.address, one.unit)))


def _sockets(root: Path) -> Iterator[_Socket]:
    low, high = _passing_ports(root)
    for protocol, state in (("tcp", _LISTENING), ("udp", _UNCONNECTED)):
        for table in (protocol, f"{protocol}6"):
            for line in text_of(root / "proc/net" / table).splitlines()[1:]:
                match line.split():
                    case [_, local, _, now, _, _, _, user, _, inode, *_] if now == state:
                        address, _, port = local.partition(":")
                        number = int(port, 16)
                        # A client's socket of UDP looks like a server's, but for its port; so does a program's own
                        # of TCP, to which only its parts connect.
                        passes = protocol == "udp" or ipaddress.ip_address(_address(address)).is_loopback
                        if number and not (passes and low <= number <= high):
                            yield _Socket(protocol, _address(address), number, int(user), inode)


def _passing_ports(root: Path) -> tuple[int, int]:
    words = text_of(root / "proc/sys/net/ipv4/ip_local_port_range").split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else (32768, 60999)


def _address(text: str) -> str:
    words = [struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _processes(root: Path) -> Iterator[_Process]:
    """All of them, by number; systemd itself comes last."""
    with contextlib.suppress(OSError):
        numbers = [int(each) for each in os.listdir(root / "proc") if each.isdigit()]  # noqa: PTH208
        for number in sorted(numbers, key=lambda each: (each == 1, each))[:PROCESSES_MAX]:
            with contextlib.suppress(OSError):
                yield _Process(number, (root / "proc" / str(number)).stat().st_uid)


def _service(root: Path, number: int) -> _Service:
    """The program of a process, and the systemd unit to which it belongs."""
    at = root / "proc" / str(number)
    unit = ""
    for line in text_of(at / "cgroup").splitlines():
        unit = unit or next((part for part in reversed(line.split("/")) if part.endswith(".service")), "")
    return _Service(printable(text_of(at / "comm")), printable(unit))


def _holders(root: Path, processes: list[_Process], wanted: set[str]) -> Mapping[str, int]:
    """By socket the first process that holds it; systemd itself only if nobody else does."""
    found: dict[str, int] = {}
    looked_at = 0
    for process in processes:
        at = f"{root}/proc/{process.number}/fd"
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(at):  # noqa: PTH208
                looked_at += 1
                if looked_at > DESCRIPTORS_MAX:
                    return found
                with contextlib.suppress(OSError):
                    link = os.readlink(f"{at}/{descriptor}")  # noqa: PTH115 - a name of the kernel's, no path
                    if link.startswith(_SOCKET) and (inode := link[len(_SOCKET) : -1]) in wanted:
                        found.setdefault(inode, process.number)
    return found


def _owners(root: Path, processes: list[_Process], users: set[int]) -> Mapping[int, int]:
    """By user, root excepted, the first process of the only unit that runs as it."""
    found: dict[int, dict[str, int]] = {}
    for each in processes:
        if each.user and each.user in users and (unit := _service(root, each.number).unit):
            found.setdefault(each.user, {}).setdefault(unit, each.number)
    return {user: next(iter(units.values())) for user, units in found.items() if len(units) == 1}
