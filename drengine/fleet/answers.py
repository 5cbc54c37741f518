"""What people and programs are told of the fleet: `drengine fleet --json` and REST give the same JSON.

Times are nanoseconds since the epoch; 0 means: has not happened. null: it can't be known now, and `unknown` says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAnswer:
    """One source.

    Attributes:
        known_by: what speaks of it: `store`, `broker`, `identity`, `token`, `inventory`.
        joined: it was heard of, at the broker or by shipping something.
        retired_ns: since when it is retired.
        state, reason: as its agent last said; a state that is empty was never told.
        connected: whether it is there now, at the broker or with a session; null where nobody can tell.
        target: of those that share the store, the one that has it or had it last; empty where there is one target.
        silent_since_ns: when it was last heard of, if it joined and is not there.
        version, platform, tracker: of its agent, as it last said.
        lag_seconds: as its agent says; where that is silent, the age of the newest point.
        newest_point, newest_point_ns, newest_point_age_seconds: the newest whole recovery point.
        certificate_ends_ns, certificate_days: until when its certificate is valid.
        ring: that an upgrade reaches it in, as the policy says.
        policy: each setting with `value`, `by` (the pattern that gives it) and, where the agent has told it, `in_use`
            and `from` (`policy`, `file` or `default`).
        upgrade: which file its agent runs (`sha256`), and how its newest upgrade is; null where it can't be upgraded
            from here.
        policy_taken: whether the agent has taken what holds now; null where it never told.
        host: the agent of the host where it lives, if that is not its namesake.
        former_hosts: agents of hosts where it lived before, and how each stands: `gone`, `refused`, or `back, and not
            told yet`.
    """

    source: str
    known_by: list[str]
    joined: bool
    retired_ns: int
    state: str
    reason: str
    connected: bool | None
    target: str
    silent_since_ns: int
    version: str
    platform: str
    tracker: str
    lag_seconds: float | None
    newest_point: str | None
    newest_point_ns: int
    newest_point_age_seconds: float | None
    certificate_ends_ns: int
    certificate_days: float | None
    ring: str
    policy: dict[str, dict[str, Any]]
    policy_taken: bool | None
    upgrade: dict[str, str] | None
    host: str = ""
    former_hosts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAnswer:
    """All of them.

    Attributes:
        expected: how many there are that are not retired; of them `joined` were heard of, and `silent` are no more.
        unknown: what can't be asked now (`store`, `target`, `broker`, `registry`, `identities`, `inventory`, `policy`),
            with the reason.
        open_tokens: tokens of agents for a pattern of names that still count: how often each may be used.
    """

    at_ns: int
    sources: list[SourceAnswer]
    expected: int
    joined: int
    silent: int
    retired: int
    open_tokens: dict[str, int]
    unknown: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAnswer:
    """What was decided: values by setting, by name or pattern of sources; `version` counts the changes."""

    version: int
    rules: dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredAnswer:
    """What became of retiring a source.

    Attributes:
        retired: it is; otherwise it only could be.
        has_certificate: it has one that some CA would have to revoke.
        serials: of its certificates, as far as the orchestrator sees the CA.
    """

    source: str
    retired: bool
    has_certificate: bool
    serials: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """One agent's upgrade.

    Attributes:
        phase: `waiting`, `ordered`, `done`, `skipped` or `sick`.
        before, tracker: what it had.
        seconds: from the order to its end.
        message: why it is skipped or sick.
    """

    source: str
    phase: str
    before: str
    tracker: str
    seconds: float | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RingAnswer:
    """A part of the fleet."""

    name: str
    agents: list[AgentAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutAnswer:
    """An upgrade of the fleet.

    Attributes:
        rollout: its id; empty where nothing was begun.
        state: `running`, `stopped` or `done`.
        is_left: it is running, but nobody carries it out: whoever did was killed.
    """

    rollout: str
    version: str
    sha256: str
    state: str
    message: str
    by: str
    created_ns: int
    limit_seconds: float
    is_left: bool
    rings: list[RingAnswer]
