"""QMP: orders to a running QEMU, over its socket, one at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SECONDS_MAX = 5.0


class QmpError(Exception):
    """QEMU refused an order, in its own words."""


def connect_unix(path: Path, seconds: float) -> socket.socket:
    """Connect to a socket in a folder, whose path may be of any length; nothing takes longer than `seconds`.

    Raises:
        OSError: nobody listens there.
    """
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(seconds)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
    except BaseException:
        made.close()
        raise
    return made


class Qmp:
    """A connection; QEMU takes one at a time on each of its sockets.

    Attributes:
        events: what QEMU told meanwhile, oldest first; whoever reads them clears them.
    """

    def __init__(self, path: Path, *, seconds_max: float = SECONDS_MAX) -> None:
        """Connect; no answer may take longer than `seconds_max`.

        Raises:
            OSError, ValueError: nobody answers there as QEMU does.
        """
        self.events: list[dict[str, Any]] = []
        self._socket = connect_unix(path, seconds_max)
        try:
            self._stream = self._socket.makefile("rwb")
            self._read()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """One order, and what it returns. An argument's name has `-` where Python wants `_`.

        Raises:
            QmpError: it is refused. OSError, ValueError: QEMU is gone; whether it was done is unknown.
        """
        told = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._stream.write(json.dumps({"execute": command, "arguments": told}).encode() + b"\n")
        self._stream.flush()
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            else:
                return answer["return"]

    def close(self) -> None:
        """Let go: QEMU takes the next one."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the stream holds on to the socket as well
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise ConnectionResetError("QEMU closed the connection")
        answer: dict[str, Any] = json.loads(line)
        return answer
