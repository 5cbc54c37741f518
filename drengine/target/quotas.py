"""What one source may take of a target that others share: volumes, their size, recovery points, sessions.

Points and sessions fill up with time, so that a burst is possible and a flood is not. Sources that nobody knows yet
share one allowance of sessions. Past a quota the source is refused, and nobody else notices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from drengine.config import COUNT, SIZE, TEXT, option
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.model.points import VolumeGeometry
from drengine.target.errors import QUOTA_EXCEEDED

UNKNOWN = ""
"""Whose allowance of sessions sources share of which the store has nothing yet."""


@dataclass(frozen=True)
class QuotaOptions:
    """[quotas]; 0: no bound."""

    volumes: int = option(COUNT, default=256, help="Volumes that one source may declare; 0: any number.")
    volume_bytes: int = option(SIZE, default=0, help="Size of all its volumes together; 0: any.")
    points_an_hour: int = option(
        COUNT, default=7200, help="Recovery points that it may make in an hour, all at once if it likes; 0: any number."
    )
    sessions_a_minute: int = option(
        COUNT,
        default=60,
        help="Sessions that it may open in a minute; 0: any number. Sources of which the store has nothing yet share "
        "so many.",
    )


@dataclass(frozen=True)
class SourceQuotaOptions:
    """[[quota]]; what is absent is as in [quotas]."""

    source: str = option(
        TEXT,
        help="The source for which these count.",
        example="shop",
        check=lambda name: check_name(name, what="source"),
    )
    volumes: int | None = option(COUNT, default=None, help="As in [quotas].")
    volume_bytes: int | None = option(SIZE, default=None, help="As in [quotas].")
    points_an_hour: int | None = option(COUNT, default=None, help="As in [quotas].")
    sessions_a_minute: int | None = option(COUNT, default=None, help="As in [quotas].")

    def over(self, general: QuotaOptions) -> QuotaOptions:
        """This source's own quotas."""

        def either(own: int | None, other: int) -> int:
            return other if own is None else own

        return QuotaOptions(
            volumes=either(self.volumes, general.volumes),
            volume_bytes=either(self.volume_bytes, general.volume_bytes),
            points_an_hour=either(self.points_an_hour, general.points_an_hour),
            sessions_a_minute=either(self.sessions_a_minute, general.sessions_a_minute),
        )


@dataclass
class Allowance:
    """So many in a period, any time of it; full at first. Threads may share it."""

    count: int
    period_seconds: float
    _left: float = field(init=False)
    _at: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left = float(self.count)

    def take(self, now: float) -> float:
        """Take one, and return 0; or how many seconds until there is one. `now` is monotonic."""
        if not self.count:
            return 0.0
        with self._lock:
            passed = 0.0 if self._at is None else max(0.0, now - self._at)
            self._left = min(self.count, self._left + passed * self.count / self.period_seconds)
            self._at = now
            if self._left < 1:
                return (1 - self._left) * self.period_seconds / self.count
            self._left -= 1
            return 0.0


class Quota:
    """What is left to one source."""

    def __init__(self, source: str, options: QuotaOptions) -> None:
        self.options = options
        self._source = source
        self._points = Allowance(options.points_an_hour, 3600.0)
        self._sessions = Allowance(options.sessions_a_minute, 60.0)

    def take_session(self, now: float) -> None:
        """A session begins.

        Raises:
            DrengineError: QUOTA_EXCEEDED.
        """
        if seconds := self._sessions.take(now):
            who = repr(self._source) if self._source else "sources that are new here together"
            allowed = f"{self.options.sessions_a_minute} sessions a minute"
            raise DrengineError(QUOTA_EXCEEDED, f"{who} may open {allowed}; the next one in {seconds:.1f} s")

    def take_point(self, now: float) -> None:
        """A recovery point is made.

        Raises:
            DrengineError: QUOTA_EXCEEDED.
        """
        if seconds := self._points.take(now):
            allowed = f"{self.options.points_an_hour} points an hour"
            raise DrengineError(QUOTA_EXCEEDED, f"{self._source!r} may make {allowed}; the next one in {seconds:.1f} s")

    def require_volumes(self, volumes: Iterable[VolumeGeometry]) -> None:
        """Whether the source may declare these.

        Raises:
            DrengineError: QUOTA_EXCEEDED.
        """
        sizes = [volume.size_bytes for volume in volumes]
        allowed = self.options
        if allowed.volumes and len(sizes) > allowed.volumes:
            message = f"{self._source!r} declares {len(sizes)} volumes, and may have {allowed.volumes}"
        elif allowed.volume_bytes and sum(sizes) > allowed.volume_bytes:
            message = f"{self._source!r} declares {sum(sizes)} bytes, and may have {allowed.volume_bytes}"
        else:
            return
        raise DrengineError(QUOTA_EXCEEDED, message)


class Quotas:
    """Of all sources. `of` belongs to one event loop."""

    def __init__(self, general: QuotaOptions, own: Iterable[SourceQuotaOptions] = ()) -> None:
        self._general = general
        self._own: Mapping[str, QuotaOptions] = {each.source: each.over(general) for each in own}
        self._kept: dict[str, Quota] = {}

    def options(self, source: str) -> QuotaOptions:
        """What a source may take."""
        return self._own.get(source, self._general)

    def of(self, source: str, *, known: bool) -> Quota:
        """The quota of a source; of one that is not `known` nothing is kept, and its sessions are those of all such."""
        if known or source in self._own:
            return self._kept.setdefault(source, Quota(source, self.options(source)))
        return self._kept.setdefault(UNKNOWN, Quota(UNKNOWN, self._general))

    def forget(self, source: str) -> None:
        """The store has nothing of it any more."""
        self._kept.pop(source, None)
