"""The orchestrator's unix socket for commands of this host: the kernel says who is at its other end."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from drengine.console.errors import BAD_REQUEST
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory

_CREDENTIALS = struct.Struct("3i")
PEER = "unix:"
"""Begins what stands for a client's address; the user id follows."""


def listen_unix(path: Path, backlog: int) -> socket.socket:
    """A listening socket that any user may connect to who reaches its folder; what a dead one left is replaced.

    Raises:
        DrengineError: BAD_REQUEST when it can't listen there, or another orchestrator does.
    """
    made, folder = socket.socket(socket.AF_UNIX), -1
    try:
        make_directory(path.parent)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        place = f"/proc/self/fd/{folder}/{path.name}"  # a path of any length
        _check_free(place, path)
        Path(place).unlink(missing_ok=True)
        made.bind(place)
        os.chmod(place, 0o666)  # noqa: PTH101 - of the socket, by the open folder
        made.listen(backlog)
    except OSError as error:
        made.close()
        raise DrengineError(BAD_REQUEST, f"can't listen on {path}: {error.strerror or error}") from error
    except BaseException:
        made.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return made


def peer_of(connection: socket.socket) -> str:
    """Who is at the other end, as the client's address: `unix:UID`."""
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"{PEER}{user}"


def _check_free(place: str, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        if other.connect_ex(place) == 0:
            hint = "Stop it, or use another `state`."
            raise DrengineError(BAD_REQUEST, f"another orchestrator serves {path}", hint=hint)
