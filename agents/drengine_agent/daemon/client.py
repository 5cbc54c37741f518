"""Asking a running agent over its socket. See operator.py for the language."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drengine.model.errors import DrengineError, error_kinds
from drengine_agent.errors import AGENT_NOT_RUNNING, COMMAND_REFUSED

ANSWER_SECONDS = 10.0


def ask(path: Path, command: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Any:
    """Ask a running agent; returns the result.

    Raises:
        DrengineError: AGENT_NOT_RUNNING, or what the agent answered.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, short_name(path) as name:
            asking.settimeout(seconds + 1.0)
            asking.connect(name)
            asking.sendall(json.dumps({"command": command, "seconds": seconds, **arguments}).encode() + b"\n")
            with asking.makefile("rb") as answers:
                answer = json.loads(answers.readline())
    except (OSError, ValueError) as error:
        raise DrengineError(AGENT_NOT_RUNNING, f"{path}: {error}") from error
    if not answer["ok"]:
        kind = next((kind for kind in error_kinds() if kind.id == answer["error"]), COMMAND_REFUSED)
        raise DrengineError(kind, answer["message"], hint=answer["hint"])
    return answer["result"]


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for a socket however deep its directory lies: addresses are limited to 107 bytes."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
