"""Which user of this host holds the other end of a loopback connection, by the kernel's own table.

Loopback is shared by all users of a machine, so an address there says nothing about who answers or asks. Only
established connections count: a socket that its owner has closed has no user any more, and the kernel shows root's.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

ESTABLISHED = "01"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The user id that owns the client's socket, or None when there is no such connection."""
    wanted = {(f"{mine}:{client[1]:04X}", f"{theirs}:{server[1]:04X}") for mine, theirs in _forms(client[0], server[0])}
    for table in TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if (fields[1], fields[2]) in wanted and fields[3] == ESTABLISHED and fields[9] != "0":
                return int(fields[7])
    return None


def local_user_ids(users: Sequence[str]) -> set[int]:
    """Root's, our own, and those of these users that there are."""
    ids = {0, os.geteuid()}
    for name in users:
        try:
            ids.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue
    return ids


def _forms(client: str, server: str) -> list[tuple[str, str]]:
    """As the tables write a pair of addresses; IPv4 may be held by a socket for IPv6."""
    pair = ipaddress.ip_address(client), ipaddress.ip_address(server)
    forms = [(_words(pair[0].packed), _words(pair[1].packed))]
    if pair[0].version == 4:
        mapped = bytes(10) + b"\xff\xff"
        forms.append((_words(mapped + pair[0].packed), _words(mapped + pair[1].packed)))
    return forms


def _words(address: bytes) -> str:
    return "".join(address[at : at + 4][::-1].hex().upper() for at in range(0, len(address), 4))
