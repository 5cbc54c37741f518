"""The agent's side of a freeze: starts the watchdog, hands it the file systems, and asks it what was held.

The agent itself never freezes anything, so there is nothing that it could leave frozen. Only when the watchdog is
killed or stopped does its guard thaw what the watchdog had frozen.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine_agent.cuts import watchdog as dog
from drengine_agent.cuts.errors import FREEZE_REFUSED, FREEZE_TOO_LONG
from drengine_agent.cuts.guard import GRACE_SECONDS, Guard

START_SECONDS = 15.0
ANSWER_SECONDS = 5.0
"""Beyond the deadline, and beyond the guard's help: the watchdog is gone, or the kernel hangs."""

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
        self._guard: Guard | None = None
        self._left: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the watchdog; it must be there before the first freeze, for starting reads files.

        Raises:
            DrengineError: FREEZE_REFUSED, its memory can't be locked, or it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._leave()
        self._left = [each for each in self._left if each.poll() is None]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        states = os.memfd_create("drengine-frozen")  # anew, for the guard of another watchdog may still look at the old
        os.ftruncate(states, dog.FILE_SYSTEMS_MAX)
        self._states = mmap.mmap(states, dog.FILE_SYSTEMS_MAX)
        with theirs, os.fdopen(states, "rb"):
            self._process = subprocess.Popen(
                [sys.executable, "-m", dog.__name__, str(theirs.fileno()), str(states)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # ours may be a file on what is frozen
                pass_fds=[theirs.fileno(), states],
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
        """Freeze these file systems (at least one) in this order; they are when this returns. Nothing may be logged
        until `thaw`.

        Raises:
            DrengineError: FREEZE_REFUSED, FREEZE_TOO_LONG; then none of them stays frozen by us.
        """
        self.start()
        assert self._socket is not None
        descriptors = _opened(places)
        self._states[:] = bytes(dog.FILE_SYSTEMS_MAX)
        try:
            guard = Guard(self.watchdog, self._states, descriptors, seconds=self._longest_seconds)
        except OSError as error:
            _close(descriptors)
            raise DrengineError(FREEZE_REFUSED, f"the freeze watchdog can't be watched: {error.strerror}") from error
        self._guard = guard
        guard.start()
        order = dog.FREEZE + dog.SECONDS.pack(self._longest_seconds)
        passed = array.array("i", descriptors)
        said = self._ask(order, self._longest_seconds, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        if said[:1] == dog.FROZEN:
            return
        if said[:1] != dog.FAILED:
            self._leave()
            raise DrengineError(FREEZE_REFUSED, "the freeze watchdog died or does not answer; what it froze is thawed")
        self._end_guard()
        number, code = dog.FAILURE.unpack(said[1:])
        if code == errno.ETIMEDOUT:
            raise DrengineError(FREEZE_TOO_LONG, f"freezing took longer than {self._longest_seconds:g} s")
        if code == errno.EALREADY:
            raise DrengineError(FREEZE_REFUSED, "an earlier freeze still hangs inside the kernel")
        raise DrengineError(FREEZE_REFUSED, f"{places[number]}: {os.strerror(code)}")

    def thaw(self) -> FreezeReport:
        """Thaw; the report says whether the freeze held until now."""
        said = self._ask(dog.THAW, self._longest_seconds)
        if said[:1] != dog.THAWED:
            self._leave()
            return FreezeReport(False, self._longest_seconds)
        guarded = self._end_guard()
        held, seconds = dog.REPORT.unpack(said[1:])
        return FreezeReport(held and not guarded, seconds)

    def close(self) -> None:
        """End the watchdog; it thaws whatever is frozen."""
        process = self._process
        self._leave()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a freeze hangs: it must outlive us to thaw
                process.wait(ANSWER_SECONDS)

    def _ask(
        self, order: bytes, patience_seconds: float, passed: Sequence[tuple[int, int, array.array[int]]] = ()
    ) -> bytes:
        """Send an order and wait for its answer; empty if there is none."""
        if self._socket is None:
            return b""
        self._socket.settimeout(patience_seconds + GRACE_SECONDS + ANSWER_SECONDS)
        try:
            self._socket.sendmsg([order], passed)
        except OSError:
            return b""
        return self._receive()

    def _receive(self) -> bytes:
        assert self._socket is not None
        try:
            return self._socket.recv(64)
        except OSError:
            return b""

    def _end_guard(self) -> bool:
        guard, self._guard = self._guard, None
        return guard is not None and guard.end()

    def _leave(self) -> None:
        """Have nothing more to do with this watchdog. It thaws and ends because its socket closes; it is never killed:
        it may be the only one who thaws what hangs inside the kernel now."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.abandon()
            guard.join(GRACE_SECONDS)
        if self._process is not None:
            self._left.append(self._process)
            self._process = None


def _opened(places: Sequence[Path]) -> list[int]:
    """Directories, held open: nobody can unmount them while they are frozen."""
    if len(places) > dog.FILE_SYSTEMS_MAX:
        raise DrengineError(
            FREEZE_REFUSED, f"at most {dog.FILE_SYSTEMS_MAX} file systems can be frozen together, not {len(places)}"
        )
    descriptors: list[int] = []
    try:
        for place in places:
            descriptors.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        _close(descriptors)
        raise DrengineError(FREEZE_REFUSED, f"{error.filename}: {error.strerror}") from error
    return descriptors


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
