"""Running one command. Never through a shell: a name with metacharacters is just an argument (fault 54)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.process.environment import as_user, command_environment
from drengine.process.threads import in_cancellable_thread

OUTPUT_BYTES_MAX = 16 << 10
TERMINATE_SECONDS = 2.0
_LAST_WORDS_SECONDS = 0.2
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended.

    Attributes:
        code: its exit status; negative for a signal; 127 when it could not be started.
        output: the last lines of both its outputs, bounded.
        timed_out: it had to be ended, because its time was up or it was cancelled.
    """

    code: int
    output: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Ended by itself, with 0."""
        return self.code == 0 and not self.timed_out


def run_command(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    given: bytes = b"",
    user: str = "",
    cancelled: threading.Event | None = None,
) -> Finished:
    """Run it to its end, or to ours; blocks, so call it in a thread.

    Args:
        argv: the program and its arguments.
        timeout_seconds: after this its whole process group gets SIGTERM, and soon SIGKILL.
        environment: added to the little that it inherits (see `command_environment`).
        directory: where it runs.
        given: its standard input.
        user: as whom it runs; "": as we do.
        cancelled: when set by somebody else, it is ended as if its time were up.
    """
    try:
        whose, variables = as_user(user)
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=command_environment({**variables, **(environment or {})}),
            cwd=directory,
            start_new_session=True,
            **whose,
        )
    except (OSError, ValueError) as error:  # not there, not executable; a NUL in an argument; no such user
        return Finished(127, f"{argv[0] if argv else 'nothing'} can't be started: {error}")
    tail = _Tail(process)
    if given:
        threading.Thread(target=_give, args=(process, given), daemon=True).start()
    timed_out = not _wait(process, timeout_seconds, cancelled or threading.Event())
    if timed_out:
        _end_group(process)
    return Finished(process.wait(), tail.text(), timed_out)


async def run_cancellable(
    argv: Sequence[str], *, timeout_seconds: float, environment: Mapping[str, str], given: bytes = b""
) -> Finished:
    """`run_command` in a thread; when the task is cancelled, the command is ended too, and waited for."""
    return await in_cancellable_thread(
        lambda cancelled: run_command(
            argv, timeout_seconds=timeout_seconds, environment=environment, given=given, cancelled=cancelled
        )
    )


class _Tail:
    """Reads what a process says and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was said last. A child that was left behind may keep the pipe open: it isn't waited for."""
        self._thread.join(_LAST_WORDS_SECONDS)
        return bytes(self._kept[-OUTPUT_BYTES_MAX:]).decode(errors="replace").strip()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._stream:
            while part := os.read(self._stream.fileno(), 1 << 16):
                self._kept += part
                del self._kept[:-OUTPUT_BYTES_MAX]


def _give(process: subprocess.Popen[bytes], given: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as stream:
        stream.write(given)


def _wait(process: subprocess.Popen[bytes], timeout_seconds: float, cancelled: threading.Event) -> bool:
    """Whether it ended by itself."""
    left = timeout_seconds
    while left > 0 and not cancelled.is_set():
        try:
            process.wait(min(_LOOK_SECONDS, left))
        except subprocess.TimeoutExpired:
            left -= _LOOK_SECONDS
        else:
            return True
    return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a moment, SIGKILL; to the group, so that what it started goes with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATE_SECONDS)
            if number is signal.SIGKILL:
                return
