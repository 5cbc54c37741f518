"""What the target knows about each source: its state, its lag, who is connected. Read by metrics and by people.

Lag (see `SourceState.lag_seconds`) is asked for, never ticked, so it grows while an agent is gone. The agent's clock
can make it larger than it is, never smaller than what the target itself saw allows (fault 61).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.model.states import REASONS, ReplicationState
from drengine.store.errors import (
    FENCED,
    RESOURCES_EXHAUSTED,
    STORE_AWAY,
    STORE_FULL,
    STORE_IO,
    STORE_READ_ONLY,
    UNKNOWN_SOURCE,
)
from drengine.store.store import Store
from drengine.target.errors import SOURCE_ELSEWHERE
from drengine.wire.events import MetricSample, Status

_NS = 1_000_000_000
_STATES = frozenset(state.value for state in ReplicationState)
STALLED_BY = {
    STORE_FULL: "target-full",
    STORE_IO: "target-failed",
    STORE_READ_ONLY: "target-read-only",
    STORE_AWAY: "target-away",
    RESOURCES_EXHAUSTED: "target-exhausted",
}
"""What keeps the target itself from taking anything in, by the code of states.REASONS that tells it."""


@dataclass
class SourceState:
    """One source, as last observed.

    Attributes:
        connected: a session is open.
        state, reason: one of the nine states and a code of states.REASONS.
        backlog_bytes: as the agent last said.
        newest_point: newest recovery point that is durable.
        represented_ns: target's clock at the latest moment at which a durable point held all of the source.
        samples: the agent's metrics, as it last told them in this session.
    """

    name: str
    connected: bool = False
    peer: str = ""
    state: ReplicationState = ReplicationState.DISCONNECTED
    reason: str = "none"
    backlog_bytes: int = 0
    newest_point: RecoveryPoint | None = None
    represented_ns: int = 0
    durable_sequence: int = 0
    is_behind: bool = False
    samples: tuple[MetricSample, ...] = ()

    def lag_seconds(self, now_ns: int) -> float | None:
        """Seconds since a durable point last held all of the source; None before the first point."""
        if self.newest_point is None:
            return None
        if self.connected and not self.is_behind:
            return 0.0
        return max(0.0, (now_ns - self.represented_ns) / _NS)

    def point_age_seconds(self, now_ns: int) -> float | None:
        """Age of the newest point; None without one."""
        if self.newest_point is None:
            return None
        point = self.newest_point
        return max(0.0, (now_ns - min(point.time_ns, point.received_ns)) / _NS)


@dataclass
class Sources:
    """All sources. Changed on the loop, read by scrapes in other threads."""

    _states: dict[str, SourceState] = field(default_factory=dict)
    _hidden: frozenset[str] = frozenset()
    """Of those that another target shows."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, store: Store) -> None:
        """Take up what the store knows."""
        for info in store.sources():
            self.take_up(store, info.name)

    def take_up(self, store: Store, name: str) -> None:
        """Take up what the store knows of one source; nothing where it does not know it."""
        try:
            newest = store.newest_point(name)
        except DrengineError as error:
            if error.kind is not UNKNOWN_SOURCE:
                raise
            return
        state = self.get(name)
        self.note_points(state, [newest] if newest else [])
        state.is_behind = newest is not None

    def all(self) -> list[SourceState]:
        """Every source that this target shows, by name."""
        with self._lock:
            shown = (self._states[name] for name in sorted(self._states))
            return [state for state in shown if state.connected or state.name not in self._hidden]

    def share(self, names: Iterable[str], elsewhere: frozenset[str]) -> set[str]:
        """Of these sources another target shows some; here they are shown only while connected.

        Returns those that are to be shown here and are not known well: `take_up` them.
        """
        with self._lock:
            before, self._hidden = self._hidden, elsewhere
            return {name for name in names if name not in elsewhere and (name in before or name not in self._states)}

    def get(self, name: str) -> SourceState:
        """A source's state, made when it is new."""
        with self._lock:
            return self._states.setdefault(name, SourceState(name))

    def is_known(self, name: str) -> bool:
        """Whether the store has it, or it is being taken in."""
        with self._lock:
            return name in self._states or name in self._hidden

    def is_shown(self, name: str) -> bool:
        """Whether this target shows it."""
        with self._lock:
            state = self._states.get(name)
            return state is not None and (state.connected or name not in self._hidden)

    def forget(self, name: str) -> None:
        """The source is gone from the store, and so from all that is shown."""
        with self._lock:
            self._states.pop(name, None)

    @staticmethod
    def note_points(state: SourceState, points: Iterable[RecoveryPoint]) -> None:
        """Points became durable."""
        for point in points:
            state.newest_point = point
            state.represented_ns = max(state.represented_ns, min(point.time_ns, point.received_ns))

    @staticmethod
    def note_opened(state: SourceState, peer: str) -> None:
        """A session was opened; until the agent speaks it may be behind."""
        state.connected, state.peer, state.is_behind = True, peer, True
        state.state, state.reason = ReplicationState.INITIATING, "none"

    @staticmethod
    def note_status(state: SourceState, status: Status, now_ns: int) -> None:
        """Note the state that the agent reported; unknown words are not repeated, so labels stay bounded."""
        state.state = ReplicationState(status.state) if status.state in _STATES else ReplicationState.STALLED
        state.reason = status.reason if status.reason in REASONS else "internal"
        state.backlog_bytes = status.backlog_bytes
        state.is_behind = bool(status.behind_since_ns or status.backlog_bytes)
        if not state.is_behind and state.newest_point is not None:
            state.represented_ns = now_ns

    @staticmethod
    def note_broken(state: SourceState) -> None:
        """The session ended in no order: unless its end has been noted already, the agent is gone."""
        if state.connected:
            Sources.note_closed(state, goodbye=False, error=None)

    def note_refused(self, name: str, error: DrengineError) -> None:
        """An agent was not let in. Where that is the target's own fault, a source that is known shows it."""
        with self._lock:
            state = self._states.get(name)
        if state is not None and not state.connected and error.kind in STALLED_BY:
            state.state, state.reason = ReplicationState.STALLED, STALLED_BY[error.kind]

    @staticmethod
    def note_closed(state: SourceState, *, goodbye: bool, error: DrengineError | None) -> None:
        """The session ended."""
        state.connected, state.is_behind, state.samples = False, True, ()
        if goodbye:
            state.state, state.reason = ReplicationState.STOPPED, "operator"
        elif error and error.kind is FENCED:
            state.state, state.reason = ReplicationState.STOPPED, "fenced"
        elif error and error.kind in STALLED_BY:
            state.state, state.reason = ReplicationState.STALLED, STALLED_BY[error.kind]
        elif error and error.kind is SOURCE_ELSEWHERE:
            state.state, state.reason = ReplicationState.DISCONNECTED, "source-elsewhere"
        else:
            state.state, state.reason = ReplicationState.DISCONNECTED, "agent-unreachable"
