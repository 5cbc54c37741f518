"""Who watches the watchdog: a thread of the agent that thaws in its place when it is killed or stopped."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Sequence

from drengine.process.descriptors import readable
from drengine_agent.cuts.watchdog import FITHAW, IS_FROZEN, NOT_OURS

GRACE_SECONDS = 0.25
"""How much later than the watchdog's own deadline."""
JOIN_SECONDS = 5.0


class Guard(threading.Thread):
    """For one freeze. Only what the watchdog noted as its own is thawed: others may have frozen file systems, too."""

    def __init__(self, watchdog: int, states: mmap.mmap, descriptors: Sequence[int], *, seconds: float) -> None:
        """
        Args:
            watchdog: its process.
            states: the page that it shares with us.
            descriptors: of the file systems, in the order of freezing; ours from now on.
            seconds: the freeze's limit.
        """
        super().__init__(name="freeze-guard", daemon=True)
        self._states = states
        self._descriptors = list(descriptors)
        self._seconds = seconds
        self._watchdog = os.pidfd_open(watchdog)
        self._ended, self._end = os.pipe()
        self._lock = threading.Lock()
        self._holders = 2  # the thread and who made it: the last one closes
        self.acted = False

    def run(self) -> None:
        """Wait for the end, the watchdog's death, or a deadline that it missed. No log: it may be frozen, too."""
        try:
            ready = readable((self._watchdog, self._ended), self._seconds + GRACE_SECONDS)
            if self._ended in ready:
                return
            self.acted = True
            if self._watchdog not in ready:
                self._thaw(only=IS_FROZEN)
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._watchdog, signal.SIGCONT)
                ready = readable((self._watchdog, self._ended))
            if self._watchdog in ready:
                # A freeze that was under way when it was killed has ended by now, one way or the other: the kernel
                # lets no process go before its system calls have ended.
                self._thaw()
        finally:
            self._release()

    def end(self) -> bool:
        """The watchdog answered, so nothing is frozen by it any more; True if we had to act before."""
        os.write(self._end, b"e")
        self.join(JOIN_SECONDS)
        self._release()
        return self.acted

    def abandon(self) -> None:
        """The watchdog does not answer: the thread goes on alone until it is gone."""
        self._release()

    def _release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        for descriptor in (*self._descriptors, self._watchdog, self._ended, self._end):
            os.close(descriptor)

    def _thaw(self, *, only: int | None = None) -> None:
        """Outermost first."""
        for number in reversed(range(len(self._descriptors))):
            state = self._states[number]
            if state != NOT_OURS and (only is None or state == only):
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._descriptors[number], FITHAW, 0)
