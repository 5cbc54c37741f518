"""Which of the nine replication states holds, and why: a pure function of facts."""

from __future__ import annotations

from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.model.states import ReplicationState

BEHIND_SECONDS = 5.0
"""Up to here a continuous source with a backlog is still called CONTINUOUS: work in flight isn't a condition."""


RESCAN_REASONS = frozenset(
    {
        "operator", "unclean-stop", "rebooted", "journal-full", "journal-damaged", "index-lost", "epoch-changed",
        "geometry-changed", "untracked", "tracking-lost", "tracker-version", "passthrough", "changed-outside",
        "read-error",
    }
)  # fmt: skip
"""Why everything may have to be compared."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the service knows at one moment. Empty texts mean "no".

    Attributes:
        stopped: reason code for being stopped for good (fenced, volume-replaced...) or `operator` when it has ended.
        paused: an operator asked for it.
        connected: a session is established.
        disconnect_reason: why the last attempt failed.
        attempts: failed attempts in a row.
        syncing: the initial copy runs.
        rescan_reason: a comparison of everything runs, for this reason.
        stall_reason: something keeps points from being cut while the session stands (read-error, target-full...).
        backlog_bytes: captured or dirty, not yet durable.
        behind_seconds: age of the oldest of them.
        limited: the bandwidth limit is what holds the sender up.
    """

    stopped: str = ""
    paused: bool = False
    connected: bool = False
    disconnect_reason: str = ""
    attempts: int = 0
    syncing: bool = False
    rescan_reason: str = ""
    stall_reason: str = ""
    backlog_bytes: int = 0
    behind_seconds: float = 0.0
    limited: bool = False


def disconnect_reason(error: Exception) -> str:
    """Why there is no connection with the target: a code of states.REASONS."""
    code = error.kind.id if isinstance(error, DrengineError) else ""
    if code in ("outside-data-network", "plain-refused"):
        return code
    if code in ("tls-failed", "bad-tls-files") or getattr(error, "reason", "") == "tls-unexpected":
        return "tls-failed"
    return "target-unreachable"


def derive_state(facts: Facts) -> tuple[ReplicationState, str]:
    """The state and its reason code. The first that applies wins: what an operator must know first comes first."""
    state = ReplicationState
    if facts.stopped:
        return state.STOPPED, facts.stopped
    if facts.paused:
        return state.PAUSED, "operator"
    if not facts.connected:
        if facts.attempts == 0:
            return state.INITIATING, "none"
        return state.DISCONNECTED, facts.disconnect_reason or "target-unreachable"
    if facts.stall_reason:
        return state.STALLED, facts.stall_reason
    if facts.syncing:
        return state.INITIAL_SYNC, "none"
    if facts.rescan_reason:
        return state.RESCAN, facts.rescan_reason
    if facts.backlog_bytes and facts.behind_seconds > BEHIND_SECONDS:
        return state.BACKLOG, "bandwidth-limit" if facts.limited else "none"
    return state.CONTINUOUS, "none"
