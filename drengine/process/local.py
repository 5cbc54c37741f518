"""Local sockets: who is at the other end, and whether somebody else could put a socket in our place."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

_CREDENTIALS = struct.Struct("iII")


def peer_uid(connection: socket.socket) -> int:
    """User at the other end of a unix socket, as of when it connected; the kernel says so (SO_PEERCRED)."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(found)
    return int(uid)


def own_users() -> frozenset[int]:
    """Who may use a socket that is for the service alone: its own user, and root."""
    return frozenset((os.geteuid(), 0))


def require_safe_folder(path: Path) -> None:
    """Nobody else may put a socket of their own where this one is to be.

    Raises:
        PermissionError: everybody may write its folder.
    """
    if stat.S_IMODE(path.absolute().parent.stat().st_mode) & stat.S_IWOTH:
        raise PermissionError("everybody may write its folder, and so take its place: use one that is the service's")
