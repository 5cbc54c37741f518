"""The process that freezes file systems and thaws them whatever happens to the agent.

    python -m drengine_agent.cuts.watchdog SOCKET_FD STATES_FD

It is started before anything is frozen, with all its memory locked, and from then on touches no file and no file
system: whatever it needs is in memory, so a frozen root file system can't hold it up. It holds the file systems as
directory descriptors that the agent passes. Its own clock ends a freeze: at the deadline, when the agent's end of the
socket closes (the agent died), or when the agent says so. SIGTERM, SIGHUP and SIGINT do not end it; that the socket
closes does.

Messages, each one datagram: ``F`` + deadline in seconds (double), with the directories' descriptors: freeze in this
order. ``T``: thaw. Answers: ``f`` + seconds that freezing took; ``e`` + number of the file system + errno (nothing is
frozen by us any more, but perhaps one that still hangs); ``t`` + 1 if all of them were frozen without interruption
until now, + seconds frozen.

A freeze that hangs inside the kernel hangs a thread of its own. It can't be called back; when it returns after the
deadline, that thread thaws at once.

STATES is a page of memory shared with the agent: a byte for each file system, set before and after each act. If this
process is killed, the agent sees there what it may have left frozen, and what was never its own.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import gc
import mmap
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
NOT_OURS, FREEZING, IS_FROZEN = 0, 1, 2
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_IO_FLUSHER = 57
_STACK_BYTES = 256 << 10


class Frozen:
    """File systems that are being frozen, are frozen, or were. `lock` guards every change."""

    def __init__(self, descriptors: list[int], deadline: float, states: mmap.mmap) -> None:
        self.descriptors = descriptors
        self.deadline = deadline
        self.begun = time.monotonic()
        self.lock = threading.Lock()
        self.states = states
        self.frozen: list[int] = []
        self.given_up = False
        self.interrupted = False
        self.failure: tuple[int, int] | None = None
        self.done = False
        self.thawed_after = 0.0

    def freeze(self) -> None:
        """Freeze them in order, in a thread that may hang; stops, and thaws its last, when given up meanwhile."""
        for number, descriptor in enumerate(self.descriptors):
            with self.lock:
                if self.given_up:
                    return
                self.states[number] = FREEZING
            try:
                fcntl.ioctl(descriptor, FIFREEZE, 0)
            except OSError as error:
                with self.lock:
                    self.states[number] = NOT_OURS
                    self.failure = (number, error.errno or errno.EIO)
                return
            with self.lock:
                self.states[number] = IS_FROZEN
                if self.given_up:
                    self._thaw(number)
                    return
                self.frozen.append(number)
        with self.lock:
            self.done = not self.given_up

    def thaw(self) -> bool:
        """Thaw what is frozen, outermost first; False if anything was thawed by somebody else before."""
        with self.lock:
            self.given_up = True
            held = self.done and not self.interrupted and self.failure is None
            while self.frozen:
                held = self._thaw(self.frozen.pop()) and held
            if not self.thawed_after:
                self.thawed_after = time.monotonic() - self.begun
            return held

    def _thaw(self, number: int) -> bool:
        held = True
        try:
            fcntl.ioctl(self.descriptors[number], FITHAW, 0)
        except OSError as error:
            held = error.errno != errno.EINVAL  # EINVAL: it was not frozen any more
        self.states[number] = NOT_OURS
        return held

    def close(self) -> None:
        """Let go of the file systems: whoever wants to unmount them may."""
        with self.lock:
            descriptors, self.descriptors = self.descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


class Watchdog:
    """One agent's watchdog."""

    def __init__(self, agent: socket.socket, states: mmap.mmap) -> None:
        self._agent = agent
        self._states = states
        self._current: Frozen | None = None
        self._working: Frozen | None = None
        self._told = False
        self._go = threading.Semaphore(0)
        self._wake_out, self._wake_in = os.pipe()
        threading.stack_size(_STACK_BYTES)
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def run(self) -> None:
        """Until the agent's end closes; nothing is frozen by us afterwards, as soon as the kernel lets go."""
        try:
            self._watch()
        finally:
            self._end()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._agent, select.POLLIN)
        poll.register(self._wake_out, select.POLLIN)
        while True:
            ready = poll.poll(self._milliseconds_left())
            current = self._current
            if current is not None and not current.interrupted and time.monotonic() >= current.deadline:
                current.interrupted = True
                current.thaw()
                self._tell()  # also when a freeze hangs: the agent must not wait for the kernel
            for descriptor, _ in ready:
                if descriptor == self._wake_out:
                    os.read(self._wake_out, 64)
                    self._tell()
                elif not self._obey():
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
        wanted = Frozen(descriptors, time.monotonic() + seconds, self._states)
        if self._working is not None:  # an earlier freeze still hangs inside the kernel
            wanted.close()
            self._answer(FAILED + FAILURE.pack(0, errno.EALREADY))
            return
        self._current = self._working = wanted
        self._told = False
        self._go.release()

    def _work(self) -> None:
        while True:
            self._go.acquire()
            current = self._working
            if current is not None:
                current.freeze()
                self._working = None
                if current is not self._current:  # given up and forgotten meanwhile
                    current.close()
            os.write(self._wake_in, b"w")

    def _tell(self) -> None:
        """How the freeze that was ordered ended, once: all frozen, failed, or out of time."""
        current = self._current
        if current is None or self._told:
            return
        if current.done and not current.interrupted:
            self._told = True
            self._answer(FROZEN + SECONDS.pack(time.monotonic() - current.begun))
        elif current.failure is not None or current.interrupted:
            self._told = True
            number, code = current.failure or (0, errno.ETIMEDOUT)
            self._forget()
            self._answer(FAILED + FAILURE.pack(number, code))

    def _forget(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.thaw()
            if current is not self._working:
                current.close()

    def _end(self) -> None:
        if self._current is not None:
            self._current.thaw()
        while self._working is not None:  # what hangs inside the kernel thaws itself when it returns
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


def _prefer() -> None:
    """What helps to thaw in time where it is allowed: not killed for want of memory, no waiting for memory that only a
    frozen file system could give, and a turn on the processor at once."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, b"-1000")
        finally:
            os.close(descriptor)
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main(agent_descriptor: int, states_descriptor: int) -> int:
    """Lock, say so, watch."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    agent = socket.socket(fileno=agent_descriptor)
    watchdog = Watchdog(agent, mmap.mmap(states_descriptor, FILE_SYSTEMS_MAX))
    _prefer()
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
    os._exit(main(int(sys.argv[1]), int(sys.argv[2])))
