"""Processes that carry a mark in their environment: found again after any crash of the process that started them.

A file with a process number can be lost between starting and noting, and names another process after a reboot. The mark
is inherited by children too, so ending an instance ends all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from drengine.process.environment import as_user, command_environment

_LOOK_SECONDS = 0.02


def find_marked(name: str, value: str) -> list[int]:
    """Process numbers of all living processes that were started with NAME=VALUE, ours excepted."""
    mark = f"{name}={value}".encode()
    processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted(process for process in processes if process != os.getpid() and _bears(process, mark))


def start_marked(
    argv: Sequence[str],
    name: str,
    value: str,
    *,
    output: Path,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    user: str = "",
) -> None:
    """Start a process that goes on without us, in a session of its own; what it says is added to a file.

    `environment` is added to the little that it inherits; `user` is as whom it runs, "" as we do.

    Raises:
        OSError, ValueError: it can't be started.
    """
    whose, variables = as_user(user)
    with output.open("ab") as said:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=command_environment({**variables, **(environment or {}), name: value}),
            cwd=directory,
            start_new_session=True,
            **whose,
        )
    # For a moment in exec(2) a process shows no environment.
    while process.poll() is None and not _bears(process.pid, f"{name}={value}".encode()):
        time.sleep(_LOOK_SECONDS)


def end_marked(name: str, value: str, *, grace_seconds: float) -> bool:
    """SIGTERM to all of them, SIGKILL to those that are left after the grace; False if SIGKILL was needed.

    Without any grace they get SIGKILL at once.
    """
    deadline = time.monotonic() + grace_seconds
    found = find_marked(name, value)
    gently = grace_seconds > 0 or not found
    _signal(found, signal.SIGTERM if grace_seconds > 0 else signal.SIGKILL)
    while left := find_marked(name, value):
        if time.monotonic() > deadline:
            gently = False
            _signal(left, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
    return gently


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _bears(process: int, mark: bytes) -> bool:
    """Whether a living process was started with this mark; not if it is gone meanwhile, or somebody else's."""
    entry = Path(f"/proc/{process}")
    try:
        return mark in (entry / "environ").read_bytes().split(b"\0") and b") Z " not in (entry / "stat").read_bytes()
    except OSError:
        return False
