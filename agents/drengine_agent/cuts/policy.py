"""Which cut now, and why none: a pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drengine.model.points import PointKind

NEAR_SHARE = 0.25
"""Of what a freeze has time for; less than that can wait for the cut that is due."""


@dataclass(frozen=True, slots=True)
class CutPolicy:
    """What an operator wants.

    Attributes:
        kinds: which cuts may be made.
        frozen_after_seconds: without any cut for so long, one is forced by freezing.
        application_seconds: an application cut is forced so often; 0: never.
        ahead_seconds: so long before a forced cut is due, copying hurries and file systems begin to write out.
        remainder_bytes: a freeze begins when at most so much is left to copy; 0: what can be read in time, as measured.
        set_aside_bytes: so much may be read into memory during a freeze; more ends it without a cut.
        retry_seconds: after a failed attempt.
        overdue_seconds: without a cut for so long the state says why.
    """

    kinds: tuple[PointKind, ...] = (PointKind.QUIET,)
    frozen_after_seconds: float = 10.0
    application_seconds: float = 0.0
    ahead_seconds: float = 0.0
    remainder_bytes: int = 0
    set_aside_bytes: int = 512 << 20
    retry_seconds: float = 2.0
    overdue_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class CutFacts:
    """What the decision depends on.

    Attributes:
        now, began_at: monotonic seconds: this moment, and when tracking was opened.
        cut_at: when a cut of each kind was last possible or made.
        tried_at: when one of each kind was last tried in vain.
        dirty_bytes: changed and not handed out, or not even written out by file systems.
        remainder_bytes: with at most so much left a freeze can be over in time.
        round_before_bytes: `dirty_bytes` a round of copying ago.
        can_freeze: there is somebody who freezes.
        requested: somebody waits for a point, so a cut is forced before its time.
    """

    now: float
    began_at: float
    cut_at: Mapping[PointKind, float]
    tried_at: Mapping[PointKind, float]
    dirty_bytes: int
    remainder_bytes: int
    can_freeze: bool
    round_before_bytes: float = float("inf")
    requested: bool = False


@dataclass(frozen=True, slots=True)
class CutDecision:
    """What to do: force a cut of `kind`, at once or (`settle`) after another round of copying; or nothing.

    Attributes:
        reason: a code of states.REASONS for why there is no cut; `none` if there is no need of one.
    """

    kind: PointKind | None = None
    settle: bool = False
    reason: str = "none"


def decide(policy: CutPolicy, facts: CutFacts) -> CutDecision:
    """Application cuts by their schedule; frozen ones when there was no other for too long, or somebody waits."""
    kind = _wanted(policy, facts, facts.now)
    late = facts.now - _last_cut(facts) >= policy.overdue_seconds
    if kind is None:
        soon = _wanted(policy, facts, facts.now + policy.ahead_seconds) if facts.can_freeze else None
        settle = not (soon is PointKind.FROZEN and _is_now_or_never(policy, facts))
        return CutDecision(soon, settle=soon is not None and settle, reason="no-cut" if late else "none")
    if not facts.can_freeze:
        return CutDecision(reason="freeze-refused")
    if _was_just_tried(policy, facts, kind):
        return CutDecision(kind, settle=True)
    if facts.dirty_bytes > _remainder(policy, facts):
        # What an attempt failed of remains the reason.
        tried = facts.tried_at.get(kind, float("-inf")) > _last_cut(facts)
        return CutDecision(kind, settle=True, reason="busy" if late and not tried else "none")
    return CutDecision(kind)


def _is_now_or_never(policy: CutPolicy, facts: CutFacts) -> bool:
    """Changes come as fast as they are copied, and soon there may be more than a freeze has time for."""
    if _was_just_tried(policy, facts, PointKind.FROZEN):
        return False
    remainder = _remainder(policy, facts)
    return max(NEAR_SHARE * remainder, facts.round_before_bytes) <= facts.dirty_bytes <= remainder


def _was_just_tried(policy: CutPolicy, facts: CutFacts, kind: PointKind) -> bool:
    return facts.now - facts.tried_at.get(kind, float("-inf")) < policy.retry_seconds


def _remainder(policy: CutPolicy, facts: CutFacts) -> int:
    return policy.remainder_bytes or facts.remainder_bytes


def _wanted(policy: CutPolicy, facts: CutFacts, moment: float) -> PointKind | None:
    """Which forced cut is due at a moment, if none of any kind comes before."""
    scheduled = PointKind.APPLICATION in policy.kinds and policy.application_seconds > 0
    last = facts.cut_at.get(PointKind.APPLICATION, facts.began_at)
    if scheduled and moment - last >= policy.application_seconds:
        return PointKind.APPLICATION
    if PointKind.FROZEN in policy.kinds and moment - _last_cut(facts) >= policy.frozen_after_seconds:
        return PointKind.FROZEN
    if facts.requested:
        return next((kind for kind in (PointKind.FROZEN, PointKind.APPLICATION) if kind in policy.kinds), None)
    return None


def _last_cut(facts: CutFacts) -> float:
    return max(facts.cut_at.values(), default=facts.began_at)
