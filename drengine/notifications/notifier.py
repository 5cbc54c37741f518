"""Sends notices in a thread of its own, over Apprise. Nothing waits for it: whoever tells goes on at once.

Each place is tried a few times, then the notice is given up there, counted and logged. What can't be queued is dropped
and counted. At the end of a process what is queued has a few seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from drengine.config import BAD_CONFIG
from drengine.model.errors import DrengineError, error_kind
from drengine.notifications.notice import Notice, Topic
from drengine.notifications.options import NotificationOptions
from drengine.process.given import with_given

log = logging.getLogger("drengine.notifications")

NOT_DELIVERED = error_kind(
    "notice-not-delivered",
    208,
    "A place of [notifications] did not take a notice.",
    "Check its URL and the network to it; https://github.com/caronc/apprise/wiki says how each service's is written.",
)
QUEUED_MAX = 100
AGAIN_SECONDS = 2.0
"""Before the second try; each further wait is twice as long."""
END_SECONDS = 15.0


class Memory(Protocol):
    """Knows what people were told."""

    def told(self, about: str) -> str:
        """What they were told last about a thing."""
        ...

    def note_told(self, about: str, state: str) -> None:
        """Note what they were told."""
        ...


Send = Callable[[Notice], bool]
"""Sends a notice to one place; whether it was taken."""


class Notifier:
    """Where notices go. Threads may share it."""

    def __init__(
        self,
        places: Mapping[str, Send],
        about: frozenset[str],
        tries: int,
        *,
        again_seconds: float = AGAIN_SECONDS,
        memory: Memory | None = None,
    ) -> None:
        """`places` by what they may be called in a log; `memory` is shared by all who tell of the same things."""
        self._memory = memory
        self.counts: Counter[str] = Counter()
        """Notices by what became of them: sent, failed, dropped; one at each place."""
        self._places = dict(places)
        self._about = about | {Topic.TEST}
        self._tries = tries
        self._again_seconds = again_seconds
        self._queue: queue.Queue[Notice | None] = queue.Queue(QUEUED_MAX)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def notify(self, notice: Notice) -> None:
        """Tell people, soon. Returns at once and raises nothing."""
        if not self._places or notice.topic not in self._about:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="notifications", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            self.counts["dropped"] += 1
            log.warning("a notice is dropped, %d are waiting: %s", QUEUED_MAX, notice.title)

    def close(self, seconds: float = END_SECONDS) -> None:
        """Give what is queued so long, then give it up."""
        thread = self._thread
        if thread is None:
            return
        self._ending.set()  # what fails now is not tried again
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            pass
        else:
            thread.join(seconds)
        if thread.is_alive():
            log.warning("notices were not sent in time and are given up")

    def _work(self) -> None:
        while (notice := self._queue.get()) is not None:
            if self._was_told(notice):
                continue
            for name, send in self._places.items():
                self._deliver(name, send, notice)
            self._note_told(notice)

    def _was_told(self, notice: Notice) -> bool:
        """Where nobody can say, people are rather told twice than never."""
        if self._memory is None or not notice.about:
            return False
        try:
            return self._memory.told(notice.about) == notice.state
        except DrengineError as error:
            log.warning("whether people were told already is not known: %s", error.message)
            return False

    def _note_told(self, notice: Notice) -> None:
        if self._memory is None or not notice.about:
            return
        try:
            self._memory.note_told(notice.about, notice.state)
        except DrengineError as error:
            log.warning("another orchestrator may tell it again: %s", error.message, extra={"notice": notice.title})

    def _deliver(self, name: str, send: Send, notice: Notice) -> None:
        for number in range(1, self._tries + 1):
            if _sent(send, notice):
                self.counts["sent"] += 1
                return
            if number == self._tries or self._ending.wait(self._again_seconds * 2 ** (number - 1)):
                break
        self.counts["failed"] += 1
        log.warning("a notice was not taken by %s: %s", name, notice.title)


def _sent(send: Send, notice: Notice) -> bool:
    try:
        return send(notice)
    except Exception:  # whatever a service's client raises
        log.exception("sending a notice failed")
        return False


SILENT = Notifier({}, frozenset(), 1)
"""Tells nobody."""


def open_notifier(options: NotificationOptions, *, strict: bool = False, memory: Memory | None = None) -> Notifier:
    """The notifier that the options ask for. What can't be used of them is logged and left out: nobody's failover may
    stand still for it.

    Raises:
        DrengineError: BAD_CONFIG, only when `strict`.
    """
    places: dict[str, Send] = {}
    for number, url in enumerate(options.to, start=1):
        try:
            name, send = _place(url, options.timeout)
        except DrengineError as error:
            if strict:
                raise
            log.warning("notifications: %s; %s", error.message, error.hint)
        else:
            places[f"{name} ({number})"] = send
    return Notifier(places, frozenset(options.about), options.tries, memory=memory)


def _place(url: str, timeout_seconds: float) -> tuple[str, Send]:
    if importlib.util.find_spec("apprise") is None:
        message, hint = "[notifications] needs the extra `notifications`", "Install drengine[notifications]."
        raise DrengineError(BAD_CONFIG, message, hint=hint)
    try:
        full = with_given(url).strip()
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"[notifications] to: {error}") from error
    apprise: Any = importlib.import_module("apprise")
    # It logs URLs, and warns of each failure in words of its own.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    scheme = full.partition("://")[0][:20]
    service = apprise.Apprise.instantiate(full)
    if service is None:
        hint = "https://github.com/caronc/apprise/wiki lists how each service's URL is written."
        raise DrengineError(BAD_CONFIG, f"[notifications] to: {scheme}://... is no Apprise URL", hint=hint)
    service.socket_connect_timeout = service.socket_read_timeout = timeout_seconds

    def send(notice: Notice) -> bool:
        return bool(service.notify(title=notice.title, body=notice.text or notice.title, notify_type=_type(notice)))

    return scheme, send


def _type(notice: Notice) -> str:
    """As services colour it."""
    if notice.topic in (Topic.BLOCKED, Topic.FAILED):
        return "failure"
    return "warning" if notice.topic in (Topic.WAITING, Topic.READINESS) else "info"
