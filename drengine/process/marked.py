"""Processes that carry a mark in their environment: found again after any crash of the process that started them.

A file with a process number can be lost between starting and noting, and names another process after a reboot. The mark
is inherited by children too, so ending an instance ends all of it.

Anybody may start a process with any mark in its environment. So one is taken for ours only if root, we, or the owner of
the instance's directory started it, or if it bears the directory's key as well, which nobody else can read. The key is
for programs that run as other users.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from drengine.durable import replace_durably
from drengine.process.environment import as_user, command_environment

KEY_VARIABLE = "DRENGINE_MARK_KEY"
KEY_FILE = "mark.key"
_CLOSING_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_EXEC_SECONDS, _EXEC_LOOK_SECONDS = 1.0, 0.0005
_STEADY = 2
_STATE, _FLAGS, _ENVIRONMENT_END = 0, 6, 48
"""Fields of /proc/PID/stat, see proc(5), counted from the state."""
_KERNEL_THREAD = 0x00200000


def find_marked(name: str, value: str, directory: Path | None = None) -> list[int]:
    """Process numbers of all living processes that were started with NAME=VALUE, this one excepted.

    `directory` is the one in which they were started; without it, those that run as other users are not found.
    """
    look = _Look(name, value, directory)
    processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted(process for process in processes if process != os.getpid() and look.finds(process))


def marked(name: str, value: str, directory: Path) -> dict[str, str]:
    """What has to be in the environment of a process so that it is found by its mark.

    Raises:
        OSError: the directory's key can't be made.
    """
    key = _read_key(directory)
    if key is None:
        key = secrets.token_hex(16)
        replace_durably(directory / KEY_FILE, key.encode())
    return {name: value, KEY_VARIABLE: key}


def start_marked(
    argv: Sequence[str],
    name: str,
    value: str,
    *,
    output: Path,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    user: str = "",
    descriptors: Sequence[int] = (),
) -> None:
    """Start a process that goes on without us, in a session of its own; what it says is added to a file.

    `environment` is added to the little that it inherits; `user` is as whom it runs, "" as we do; `descriptors` are
    open in it under their numbers.

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
            env=command_environment({**variables, **(environment or {}), **marked(name, value, directory)}),
            cwd=directory,
            start_new_session=True,
            pass_fds=descriptors,
            **whose,
        )
    look = _Look(name, value, directory)
    # For a moment in exec(2) a process shows no environment.
    while process.poll() is None and not look.finds(process.pid):
        time.sleep(_LOOK_SECONDS)


def end_marked(name: str, value: str, directory: Path | None = None, *, grace_seconds: float) -> bool:
    """SIGTERM to all of them, SIGKILL to those that are left after the grace; False if SIGKILL was needed.

    Without any grace they get SIGKILL at once. When this returns, their files, sockets and devices are closed.
    """
    deadline = time.monotonic() + grace_seconds
    found = find_marked(name, value, directory)
    gently = grace_seconds > 0 or not found
    with contextlib.ExitStack() as ending:
        _ended_with(ending, found)
        _signal(found, signal.SIGTERM if grace_seconds > 0 else signal.SIGKILL)
        while left := find_marked(name, value, directory):
            if time.monotonic() > deadline:
                gently = False
                _signal(left, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
    return gently


def _ended_with(ending: contextlib.ExitStack, processes: list[int]) -> None:
    """Have it wait at its end until these are gone: who exits shows no mark some time before its files are closed."""
    for process in processes:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process)
            ending.callback(os.close, descriptor)
            exited = select.poll()
            exited.register(descriptor, select.POLLIN)
            ending.callback(exited.poll, _CLOSING_SECONDS * 1e3)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


class _Look:
    """Tells our marked processes from others'."""

    def __init__(self, name: str, value: str, directory: Path | None) -> None:
        self._mark = f"{name}={value}".encode()
        self._trusted = {0, os.geteuid()}
        self._key: bytes | None = None
        if directory is not None:
            key = _read_key(directory)
            self._key = f"{KEY_VARIABLE}={key}".encode() if key else None
            with contextlib.suppress(OSError):
                self._trusted.add(directory.stat().st_uid)

    def finds(self, process: int) -> bool:
        """Whether a living process was started with the mark, by one of us; not if it is gone meanwhile."""
        entry = Path(f"/proc/{process}")
        try:
            borne = _environment(entry)
            if self._mark not in borne or b") Z " in (entry / "stat").read_bytes():
                return False
            return self._key in borne or _real_user(entry) in self._trusted
        except OSError:
            return False


def _environment(entry: Path) -> list[bytes]:
    """What a process was started with. While it changes its program (execve) it shows none: that is waited for."""
    deadline = time.monotonic() + _EXEC_SECONDS
    steady = 0
    while True:
        borne = (entry / "environ").read_bytes()
        if borne or steady == _STEADY or time.monotonic() >= deadline:
            return borne.split(b"\0")
        if _changes_program(entry):
            steady = 0
            time.sleep(_EXEC_LOOK_SECONDS)
        else:
            steady += 1  # it has none, or has just got its new one


def _changes_program(entry: Path) -> bool:
    """Whether a process that shows no environment is between two programs: it has none yet, not an empty one."""
    fields = (entry / "stat").read_bytes().rpartition(b") ")[2].split()
    is_kernels = int(fields[_FLAGS]) & _KERNEL_THREAD
    return fields[_STATE] not in b"ZX" and not is_kernels and int(fields[_ENVIRONMENT_END]) == 0


def _real_user(entry: Path) -> int:
    """Who started a process: a program that is root's by its mode (setuid) is still that user's."""
    for line in (entry / "status").read_bytes().splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return -1


def _read_key(directory: Path) -> str | None:
    """None where none was made, or none of ours."""
    try:
        descriptor = os.open(directory / KEY_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            return None
        return os.read(descriptor, 64).decode("ascii", "replace") or None
    finally:
        os.close(descriptor)
