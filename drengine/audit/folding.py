"""Refusals in the audit log: a flood of them takes little space there, and no time of whoever refuses."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drengine.audit.entry import Outcome, bounded
from drengine.audit.log import AuditLog
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError

WINDOW_SECONDS, WINDOW_SECONDS_MAX = 60.0, 3600.0
"""So long repeats are counted before an entry tells of them; then twice as long, and so on."""
KINDS_MAX = 256
BURST, ENTRIES_A_SECOND = 60, 1 / 60
"""A day's flood makes some 1500 entries: whoever is refused can't push what others did out of the log."""
DETAILS_BYTES_MAX = 512
ANYBODY = "(many)"
_log = logging.getLogger(__name__)
_Kind = tuple[str, str, str, str, str]


@dataclass(slots=True)
class _Folded:
    """Refusals that are alike, since the newest entry about them."""

    due: float
    window: float
    is_first: bool = True
    times: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Refusals:
    """Records the first refusal of a kind, and later how many more there were.

    A kind is who was refused what, on what, and why. Where there are too many kinds, only what and why are told apart.
    A thread of its own writes, so that `note` never waits for a disk: an event loop may call it. It writes what is left
    when it is closed, or the process ends.
    """

    def __init__(self, log: AuditLog, *, clock: Clock | None = None) -> None:
        self._log = log
        self._clock = clock or SystemClock()
        self._kinds: dict[_Kind, _Folded] = {}
        self._tokens = float(BURST)
        self._counted_at = self._clock.monotonic()
        self._changed = threading.Condition()
        self._is_fresh = self._closing = False
        self._thread: threading.Thread | None = None

    def note(
        self,
        *,
        who: str,
        did: str,
        error: str,
        on: str = "",
        proved: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Note that somebody was refused; the arguments are those of `AuditLog.record`."""
        kind = (who[:1024], proved[:64], did, on[:1024], error)
        with self._changed:
            self._begin()
            if kind not in self._kinds and (len(self._kinds) >= KINDS_MAX or self._tokens < 1):
                kind = (ANYBODY, "", did, "", error)
            if kind not in self._kinds:
                self._kinds[kind] = _Folded(self._clock.monotonic(), WINDOW_SECONDS)
                self._tokens -= 1
                self._is_fresh = True
                self._changed.notify()
            self._kinds[kind].times += 1
            self._kinds[kind].details = dict(details or {})

    def write_due(self, *, all_: bool = False) -> None:
        """Write what is new, and how often what was written before was repeated, where that is due."""
        for (who, proved, did, on, error), (times, details) in self._take(all_).items():
            facts = bounded(details, bytes_max=DETAILS_BYTES_MAX)
            try:
                self._log.record(
                    who=who,
                    proved=proved,
                    did=did,
                    on=on,
                    outcome=Outcome.REFUSED,
                    error=error,
                    times=times,
                    details=facts,
                )
            except DrengineError as failure:
                _log.error("not in the audit log: %s was refused %s (%s): %s", who, did, error, failure)

    def _take(self, all_: bool) -> dict[_Kind, tuple[int, dict[str, Any]]]:
        """What is to be written now; from then on it is counted anew."""
        taken: dict[_Kind, tuple[int, dict[str, Any]]] = {}
        with self._changed:
            now = self._clock.monotonic()
            self._tokens = min(BURST, self._tokens + (now - self._counted_at) * ENTRIES_A_SECOND)
            self._counted_at = now
            self._is_fresh = False
            for kind, folded in list(self._kinds.items()):
                if now < folded.due and not all_:
                    continue
                if not folded.times:
                    del self._kinds[kind]
                elif folded.is_first or self._tokens >= 1 or all_:
                    self._tokens -= not folded.is_first
                    taken[kind] = folded.times, folded.details
                    longer = min(2 * folded.window, WINDOW_SECONDS_MAX)
                    self._kinds[kind] = _Folded(now + folded.window, longer, is_first=False)
        return taken

    def close(self) -> None:
        """Write what is left, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)
        self.write_due(all_=True)

    def _begin(self) -> None:
        """Start the thread, with the first refusal; a process that ends writes what is left."""
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while not self._closing:
            with self._changed:
                if not self._is_fresh and not self._closing:
                    self._changed.wait(WINDOW_SECONDS / 6)
            self.write_due()
