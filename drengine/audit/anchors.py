"""Anchors: number and hash of the newest entry, sent to another host, where whoever changes the log can't change them.

Senders read the log's head, whoever wrote it, and have a thread each: nobody who records waits for them, and one that
hangs delays no other.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from drengine.audit.sinks import Message, Sink
from drengine.audit.verify import read_head
from drengine.model.clock import Clock, SystemClock

LOOK_SECONDS = 1.0
RETRY_SECONDS, RETRY_SECONDS_MAX = 1.0, 300.0
WAITING_MAX = 256
"""So many anchors wait for a sink that is away; then the oldest go. Each later one vouches for more."""
CLOSE_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Sender:
    """Sends a log's anchors to one sink. One thread calls `work`.

    Attributes:
        unsent: so many entries are not vouched for at the sink.
    """

    def __init__(
        self, directory: Path, sink: Sink, *, seconds: float, entries: int, clock: Clock | None = None
    ) -> None:
        self.sink = sink
        self._directory = directory
        self._seconds = seconds
        self._entries = entries
        self._clock = clock or SystemClock()
        self._waiting: deque[Message] = deque(maxlen=WAITING_MAX)
        self._taken: Message | None = None
        self._taken_at = 0.0
        self._sent = self._seen = 0
        self._failures = 0
        self._retry_at = 0.0
        self.unsent = 0

    def work(self, *, at_once: bool = False) -> None:
        """Look whether something is to be sent, and send it; `at_once` does not wait for the interval."""
        self._look(at_once)
        while self._waiting and (self._clock.monotonic() >= self._retry_at or (at_once and not self._failures)):
            message = self._waiting[0]
            try:
                self.sink.send(message)
            except (OSError, ValueError) as error:
                if not self._failures:
                    told = {"sink": self.sink.name, "entry": message.number}
                    _log.warning("an anchor of the audit log is not taken: %s", error, extra=told)
                pause = min(RETRY_SECONDS * 2.0 ** min(self._failures, 16), RETRY_SECONDS_MAX)
                self._retry_at = self._clock.monotonic() + pause
                self._failures += 1
                return
            if self._failures:
                _log.info("the %s takes the audit log's anchors again", self.sink.name)
            self._failures = 0
            self._sent = message.number
            self._waiting.popleft()
            self.unsent = max(0, self._seen - self._sent)

    def _look(self, at_once: bool) -> None:
        try:
            head = read_head(self._directory)
        except OSError as error:
            _log.warning("the audit log can't be anchored: %s", error)
            return
        if head is None:
            return
        self._seen = head.number
        self.unsent = max(0, head.number - self._sent)
        now = self._clock.monotonic()
        before = self._taken
        is_new = before is None or (head.log, head.number) != (before.log, before.number)
        many = before is None or head.number - before.number >= self._entries
        if head.number and is_new and (many or at_once or now - self._taken_at >= self._seconds):
            self._taken = Message(head.log, head.number, head.hash, self._clock.now_ns())
            self._taken_at = now
            self._waiting.append(self._taken)


class Anchoring:
    """Sends a log's anchors until it is closed."""

    def __init__(
        self, directory: Path, sinks: Sequence[Sink], *, seconds: float, entries: int, clock: Clock | None = None
    ) -> None:
        self.senders = [Sender(directory, sink, seconds=seconds, entries=entries, clock=clock) for sink in sinks]
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(sender,), name=f"anchor-{sender.sink.name}", daemon=True)
            for sender in self.senders
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Send the newest, if that does not take long, and end."""
        self._closing.set()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)

    def _run(self, sender: Sender) -> None:
        while not self._closing.is_set():
            sender.work()
            self._closing.wait(LOOK_SECONDS)
        sender.work(at_once=True)
