"""The process that freezes file systems and thaws them whatever happens to the agent.

    python -m drengine_agent.cuts.watchdog SOCKET_FD

It is started before anything is frozen, with all its memory locked, and from then on touches no file and no file
system: whatever it needs is in memory, so a frozen root file system can't hold it up. It holds the file systems as
directory descriptors that the agent passes. Its own clock ends a freeze: at the deadline, when the agent's end of the
socket closes (the agent died), or when the agent says so. SIGTERM, SIGHUP and SIGINT do not end it; that the socket
closes does.

Messages, each one datagram: ``F`` + deadline in seconds (double), with the directories' descriptors: freeze in this
order. ``T``: thaw. Answers: ``f`` + seconds that freezing took; ``e`` + number of the file system + errno (nothing is
frozen any more); ``t`` + 1 if all of them were frozen without interruption until now, + seconds frozen.

A freeze that hangs inside the kernel hangs a thread of its own. It can't be called back; when it returns after the
deadline, that thread thaws at once.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

FREEZE, THAW = b"F", b"T"
FROZEN, FAILED, THAWED = b"f", b"e", b"t"
READY, NOT_LOCKED = b"r", b"n"
FILE_SYSTEMS_MAX = 64
SECONDS = struct.Struct("<d")
FAILURE = struct.Struct("<ii")
REPORT = struct.Struct("<?d")
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_STACK_BYTES = 256 << 10


class Frozen:
    """File systems that are being frozen, are frozen, or were. `lock` guards every change."""

    def __init__(self, descriptors: list[int], deadline: float) -> None:
        self.descriptors = descriptors
        self.deadline = deadline
        self.begun = time.monotonic()
        self.lock = threading.Lock()
        self.frozen: list[int] = []
        self.given_up = False
        self.interrupted = False
        self.failure: tuple[int, int] | None = None
        self.done = False
        self.thawed_after = 0.0

    def freeze(self) -> None:
        """Freeze them in order, in a thread that may hang; stops, and thaws its last, when given up meanwhile."""
        for number, descriptor in enumerate(self.descriptors):
            try:
                fcntl.ioctl(descriptor, FIFREEZE, 0)
            except OSError as error:
                with self.lock:
                    self.failure = (number, error.errno or errno.EIO)
                return
            with self.lock:
                if self.given_up:
                    _thaw(descriptor)
                    return
                self.frozen.append(descriptor)
        with self.lock:
            self.done = not self.given_up

    def thaw(self) -> bool:
        """Thaw what is frozen, outermost first; False if anything was thawed by somebody else before."""
        with self.lock:
            self.given_up = True
            held = self.done and not self.interrupted and self.failure is None
            while self.frozen:
                held = _thaw(self.frozen.pop()) and held
            if not self.thawed_after:
                self.thawed_after = time.monotonic() - self.begun
            return held


def _thaw(descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError as error:
        return error.errno != errno.EINVAL  # EINVAL: it was not frozen any more
    return True


class Watchdog:
    """One agent's watchdog."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._current: Frozen | None = None
        self._told = False
        self._go = threading.Semaphore(0)
        self._wake_out, self._wake_in = os.pipe()
        threading.stack_size(_STACK_BYTES)
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        self._busy = False

    def run(self) -> None:
        """Until the agent's end closes; nothing is frozen by us afterwards, as soon as the kernel lets go."""
        poll = select.poll()
        poll.register(self._agent, select.POLLIN)
        poll.register(self._wake_out, select.POLLIN)
        while True:
            ready = poll.poll(self._milliseconds_left())
            current = self._current
            if current is not None and time.monotonic() >= current.deadline:
                current.interrupted = True
                current.thaw()
            for descriptor, _ in ready:
                if descriptor == self._wake_out:
                    os.read(self._wake_out, 64)
                    self._tell_frozen()
                elif not self._obey():
                    self._end()
                    return

    def _milliseconds_left(self) -> int | None:
        current = self._current
        if current is None or current.interrupted:
            return None
        return max(0, int((current.deadline - time.monotonic()) * 1000) + 1)

    def _obey(self) -> bool:
        """Carry out one order; False when the agent is gone."""
        try:
            order, ancillary, _, _ = self._agent.recvmsg(64, socket.CMSG_SPACE(FILE_SYSTEMS_MAX * 4))
        except OSError:
            return False
        if not order:
            return False
        if order[:1] == FREEZE:
            self._freeze(SECONDS.unpack(order[1:])[0], _descriptors(ancillary))
        elif order[:1] == THAW and self._current is not None:
            held = self._current.thaw()
            self._answer(THAWED + REPORT.pack(held, self._current.thawed_after))
            self._forget()
        return True

    def _freeze(self, seconds: float, descriptors: list[int]) -> None:
        self._forget()
        if self._busy:  # an earlier freeze still hangs inside the kernel
            for descriptor in descriptors:
                os.close(descriptor)
            self._answer(FAILED + FAILURE.pack(0, errno.EBUSY))
            return
        self._current = Frozen(descriptors, time.monotonic() + seconds)
        self._told, self._busy = False, True
        self._go.release()

    def _work(self) -> None:
        while True:
            self._go.acquire()
            current = self._current
            if current is not None:
                current.freeze()
            self._busy = False
            os.write(self._wake_in, b"w")

    def _tell_frozen(self) -> None:
        current = self._current
        if current is None or self._told:
            return
        self._told = True
        if current.done and not current.interrupted:
            self._answer(FROZEN + SECONDS.pack(time.monotonic() - current.begun))
            return
        number, code = current.failure or (0, errno.ETIMEDOUT)
        current.thaw()
        self._answer(FAILED + FAILURE.pack(number, code))

    def _forget(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.thaw()
            if not self._busy:
                for descriptor in current.descriptors:
                    os.close(descriptor)

    def _end(self) -> None:
        if self._current is not None:
            self._current.thaw()
        while self._busy:  # what hangs inside the kernel thaws itself when it returns
            select.select([self._wake_out], [], [])
            os.read(self._wake_out, 64)

    def _answer(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the agent is gone or stopped: it will see when it looks
            self._agent.send(message, socket.MSG_DONTWAIT)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def main(descriptor: int) -> int:
    """Lock, say so, watch."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    agent = socket.socket(fileno=descriptor)
    watchdog = Watchdog(agent)
    gc.collect()
    gc.freeze()
    gc.disable()
    if ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        agent.send(NOT_LOCKED)
        return 1
    agent.send(READY)
    watchdog.run()
    return 0


if __name__ == "__main__":
    # Nothing is left to do that could touch a file, so no interpreter is taken down.
    os._exit(main(int(sys.argv[1])))
