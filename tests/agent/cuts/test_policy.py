"""Which cut is forced when: facts in, decision with its reason out."""

from __future__ import annotations

from typing import Any

import pytest

from drengine.model.points import PointKind
from drengine_agent.cuts.policy import CutDecision, CutFacts, CutPolicy, decide

QUIET, FROZEN, APPLICATION = PointKind.QUIET, PointKind.FROZEN, PointKind.APPLICATION
MIB = 1 << 20
AHEAD = CutPolicy(kinds=(QUIET, FROZEN), ahead_seconds=5.0)
ALL = CutPolicy(kinds=(QUIET, FROZEN, APPLICATION), application_seconds=60.0)

SETTLE = CutDecision(FROZEN, settle=True)


def facts(now: float, **more: Any) -> CutFacts:
    values = {"cut_at": {}, "tried_at": {}, "dirty_bytes": 0, "remainder_bytes": 8 << 20, "can_freeze": True, **more}
    return CutFacts(now=now, began_at=0.0, **values)


@pytest.mark.parametrize(
    ("policy", "known", "expected"),
    [
        (CutPolicy(), facts(1000.0), CutDecision(reason="no-cut")),
        (CutPolicy(), facts(1000.0, cut_at={QUIET: 999.0}), CutDecision()),
        (CutPolicy(kinds=(QUIET, FROZEN)), facts(9.9), CutDecision()),
        (CutPolicy(kinds=(QUIET, FROZEN)), facts(10.0), CutDecision(FROZEN)),
        (CutPolicy(kinds=(QUIET, FROZEN)), facts(100.0, cut_at={QUIET: 95.0}), CutDecision()),
        (CutPolicy(kinds=(QUIET, FROZEN)), facts(100.0, cut_at={QUIET: 90.0}), CutDecision(FROZEN)),
        (
            CutPolicy(kinds=(FROZEN,)),
            facts(100.0, dirty_bytes=9 << 20),
            CutDecision(FROZEN, settle=True, reason="busy"),
        ),
        (CutPolicy(kinds=(FROZEN,)), facts(12.0, dirty_bytes=9 << 20), CutDecision(FROZEN, settle=True)),
        (CutPolicy(kinds=(FROZEN,)), facts(100.0, dirty_bytes=8 << 20), CutDecision(FROZEN)),
        (CutPolicy(kinds=(FROZEN,), remainder_bytes=1 << 20), facts(12.0, dirty_bytes=2 << 20), SETTLE),
        (CutPolicy(kinds=(QUIET, FROZEN), ahead_seconds=5.0), facts(4.9), CutDecision()),
        (CutPolicy(kinds=(QUIET, FROZEN), ahead_seconds=5.0), facts(5.0), SETTLE),
        (CutPolicy(kinds=(QUIET, FROZEN), ahead_seconds=5.0), facts(5.0, can_freeze=False), CutDecision()),
        # Rounds of copying that no longer shrink: a freeze now, while there is time enough in it, and not later.
        (AHEAD, facts(6.0, dirty_bytes=4 * MIB, round_before_bytes=3 * MIB), CutDecision(FROZEN)),
        (AHEAD, facts(6.0, dirty_bytes=4 * MIB, round_before_bytes=5 * MIB), SETTLE),
        (AHEAD, facts(6.0, dirty_bytes=9 * MIB, round_before_bytes=3 * MIB), SETTLE),
        (AHEAD, facts(6.0, dirty_bytes=1 * MIB, round_before_bytes=1 * MIB), SETTLE),
        (AHEAD, facts(6.0, dirty_bytes=4 * MIB, round_before_bytes=3 * MIB, tried_at={FROZEN: 5.0}), SETTLE),
        (AHEAD, facts(4.0, dirty_bytes=4 * MIB, round_before_bytes=3 * MIB), CutDecision()),
        (CutPolicy(kinds=(FROZEN,)), facts(100.0, can_freeze=False), CutDecision(reason="freeze-refused")),
        (CutPolicy(kinds=(FROZEN,)), facts(100.0, tried_at={FROZEN: 98.5}), CutDecision(FROZEN, settle=True)),
        (CutPolicy(kinds=(FROZEN,)), facts(100.0, tried_at={FROZEN: 98.0}), CutDecision(FROZEN)),
        (ALL, facts(59.0, cut_at={QUIET: 58.0}), CutDecision()),
        (ALL, facts(60.0, cut_at={QUIET: 59.0}), CutDecision(APPLICATION)),
        (ALL, facts(100.0, cut_at={APPLICATION: 41.0, QUIET: 99.0}), CutDecision()),
        (ALL, facts(101.0, cut_at={APPLICATION: 41.0, QUIET: 99.0}), CutDecision(APPLICATION)),
        (CutPolicy(kinds=(APPLICATION,)), facts(1e9), CutDecision(reason="no-cut")),
        (CutPolicy(), facts(1.0, requested=True), CutDecision()),
        (CutPolicy(kinds=(QUIET, FROZEN)), facts(1.0, requested=True), CutDecision(FROZEN)),
        (CutPolicy(kinds=(APPLICATION,)), facts(1.0, requested=True), CutDecision(APPLICATION)),
        (ALL, facts(1.0, requested=True), CutDecision(FROZEN)),
        (ALL, facts(1.0, requested=True, dirty_bytes=9 << 20), CutDecision(FROZEN, settle=True)),
        (ALL, facts(1.0, requested=True, tried_at={FROZEN: 0.5}), CutDecision(FROZEN, settle=True)),
    ],
)
def test_decisions(policy: CutPolicy, known: CutFacts, expected: CutDecision) -> None:
    assert decide(policy, known) == expected


def test_a_wish_that_nobody_can_fulfil_is_told_not_invented() -> None:
    decision = decide(CutPolicy(kinds=(FROZEN,)), facts(100.0, can_freeze=False))
    assert decision.kind is None
    assert decision.reason == "freeze-refused"
