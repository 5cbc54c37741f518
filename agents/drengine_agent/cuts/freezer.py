"""The agent's side of a freeze: starts the watchdog, hands it the file systems, and asks it what was held.

The agent never freezes anything itself, so there is nothing that it could leave frozen. Only if the watchdog is gone
does it thaw, with the directories that it still holds open.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine_agent.cuts import watchdog as dog
from drengine_agent.cuts.errors import FREEZE_REFUSED, FREEZE_TOO_LONG

START_SECONDS = 15.0
ANSWER_SECONDS = 5.0
"""Beyond the deadline: an answer that takes longer means that the watchdog is stopped or that the kernel hangs."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class FreezeReport:
    """What a freeze was.

    Attributes:
        held: every file system was frozen from the return of `freeze` until the thaw that we asked for.
        seconds: from the order to freeze until the thaw.
    """

    held: bool
    seconds: float


class Freezer:
    """Freezes file systems for at most a given time. One freeze at a time."""

    def __init__(self, *, longest_seconds: float) -> None:
        """`longest_seconds`: the watchdog thaws after that."""
        self._longest_seconds = longest_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._held: list[int] = []

    def start(self) -> None:
        """Start the watchdog; it must be there before the first freeze, for starting reads files.

        Raises:
            DrengineError: FREEZE_REFUSED, its memory can't be locked, or it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._let_go()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "drengine_agent.cuts.watchdog", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))},
            )
        self._socket = ours
        ours.settimeout(START_SECONDS)
        said = self._receive()
        if said != dog.READY:
            self.close()
            why = "its memory can't be locked (CAP_IPC_LOCK, RLIMIT_MEMLOCK)" if said == dog.NOT_LOCKED else "no answer"
            raise DrengineError(FREEZE_REFUSED, f"the freeze watchdog does not start: {why}")

    @property
    def watchdog(self) -> int:
        """Process number of the watchdog; 0 without one."""
        return self._process.pid if self._process is not None else 0

    def settle(self, places: Sequence[Path]) -> None:
        """Have the file systems write out what they hold, so that little is left for the freeze.

        Raises:
            OSError: one can't.
        """
        for place in places:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _libc.syncfs(descriptor) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code), str(place))
            finally:
                os.close(descriptor)

    def freeze(self, places: Sequence[Path]) -> None:
        """Freeze these file systems in this order; they are when this returns.

        Raises:
            DrengineError: FREEZE_REFUSED, FREEZE_TOO_LONG; then none of them is frozen by us.
        """
        self.start()
        assert self._socket is not None
        self._held = [os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for place in places]
        passed = array.array("i", self._held)
        try:
            self._socket.settimeout(self._longest_seconds + ANSWER_SECONDS)
            order = dog.FREEZE + dog.SECONDS.pack(self._longest_seconds)
            self._socket.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            said = self._receive()
        except BaseException:
            self._thaw_ourselves()
            raise
        if said[:1] == dog.FROZEN:
            return
        if said[:1] != dog.FAILED:
            self._thaw_ourselves()
            raise DrengineError(FREEZE_REFUSED, "the freeze watchdog died or does not answer; everything was thawed")
        self._close_held()
        number, code = dog.FAILURE.unpack(said[1:])
        if code == errno.ETIMEDOUT:
            raise DrengineError(FREEZE_TOO_LONG, f"freezing took longer than {self._longest_seconds:g} s")
        raise DrengineError(FREEZE_REFUSED, f"{places[number]}: {os.strerror(code)}")

    def thaw(self) -> FreezeReport:
        """Thaw; the report says whether the freeze held until now."""
        assert self._socket is not None
        begun = time.monotonic()
        try:
            self._socket.settimeout(ANSWER_SECONDS)
            self._socket.send(dog.THAW)
            said = self._receive()
            while said and said[:1] != dog.THAWED:  # an answer to a freeze that was given up
                said = self._receive()
        except OSError:
            said = b""
        if not said:
            self._thaw_ourselves()
            return FreezeReport(False, time.monotonic() - begun)
        self._close_held()
        held, seconds = dog.REPORT.unpack(said[1:])
        return FreezeReport(held, seconds)

    def close(self) -> None:
        """End the watchdog; it thaws whatever is frozen."""
        self._let_go()
        if self._process is not None:
            try:
                self._process.wait(ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _receive(self) -> bytes:
        assert self._socket is not None
        try:
            return self._socket.recv(64)
        except TimeoutError:
            return b""

    def _thaw_ourselves(self) -> None:
        """The watchdog can't be relied upon any more: thaw what it may have frozen, innermost last, and forget it."""
        for descriptor in reversed(self._held):
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, dog.FITHAW, 0)
        self._close_held()
        self._let_go()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _close_held(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)
        self._held = []

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
