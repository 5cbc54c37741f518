"""Upgrades in rings, as decisions: who is next, who is sick, and that nobody is ordered after that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.fleet.answers import SourceAnswer
from drengine.fleet.errors import UPGRADE_IMPOSSIBLE
from drengine.fleet.rings import Phase, Progress, Wanted, is_older, judged, rings_of, unfit
from drengine.fleet.rollout import Rollout, State, resumed, step
from drengine.model.errors import DrengineError

OLD, NEW = "a" * 64, "b" * 64
WANTED = Wanted("2.0", NEW)
S = 10**9


def source(name: str, **more: Any) -> SourceAnswer:
    known = dict.fromkeys(("newest_point", "newest_point_age_seconds", "certificate_days", "policy_taken"))
    values: dict[str, Any] = {
        **known, "source": name, "known_by": ["store"], "joined": True, "retired_ns": 0, "state": "CONTINUOUS",
        "reason": "none", "connected": True, "silent_since_ns": 0, "version": "1.0", "platform": "", "tracker": "ebpf",
        "lag_seconds": 0.0, "newest_point_ns": 0, "certificate_ends_ns": 0, "ring": "", "policy": {},
        "target": "", "upgrade": {"sha256": OLD}, **more,
    }  # fmt: skip
    return SourceAnswer(**values)


def names_of(rings: list[Any]) -> list[tuple[str, ...]]:
    return [ring.sources for ring in rings]


def test_rings_are_taken_by_label_pattern_number_share_and_rest() -> None:
    fleet = [source(f"web-{number}") for number in range(6)] + [
        source("shop", ring="canary"),
        source("old", retired_ns=5),
    ]
    fleet += [source("never", joined=False)]
    rings = rings_of(["canary", "web-5", "2", "15%", "rest"], fleet)
    assert names_of(rings) == [("shop",), ("web-5",), ("web-0", "web-1"), ("web-2", "web-3"), ("web-4",)]
    for wrong in (["canary", "canary"], ["nobody"], ["0"], ["200%"], ["rest", "1"]):
        with pytest.raises(DrengineError) as refused:
            rings_of(wrong, fleet)
        assert refused.value.kind is UPGRADE_IMPOSSIBLE


@given(st.lists(st.sampled_from(["1", "2", "50%", "web-*", "*", "rest"]), max_size=5), st.integers(0, 8))
def test_no_source_is_in_two_rings(names: list[str], count: int) -> None:
    try:
        rings = rings_of(names, [source(f"web-{number}") for number in range(count)])
    except DrengineError:
        return
    every = [each for ring in rings for each in ring.sources]
    assert len(every) == len(set(every)) <= count


def test_versions_are_compared_by_their_numbers() -> None:
    assert is_older("1.9.0", "1.10.0")
    assert not is_older("1.10.0", "1.9.0")
    assert not is_older("2.0", "2.0")
    assert not is_older("2.0", ""), "of an agent that never told one nothing is known"


ORDERED = Progress(Phase.ORDERED, "1.0", "ebpf", began_ns=100 * S)
RAN = {"sha256": NEW}
FAILED = {"sha256": OLD, "state": "failed", "message": "no room"}


@pytest.mark.parametrize(
    ("seen", "after_seconds", "phase", "said"),
    [
        (source("shop"), 1, Phase.ORDERED, ""),
        (None, 1, Phase.ORDERED, ""),
        (source("shop", connected=False), 1, Phase.ORDERED, ""),
        (source("shop", connected=False, upgrade=RAN), 1, Phase.ORDERED, ""),
        (source("shop", upgrade=RAN, state="BACKLOG"), 1, Phase.ORDERED, ""),
        (source("shop", upgrade=RAN), 1, Phase.DONE, ""),
        (source("shop", upgrade=RAN, tracker="scan"), 1, Phase.SICK, "tracker was ebpf"),
        (source("shop", upgrade=RAN, state="RESCAN", reason="tracking-lost"), 1, Phase.SICK, "tracking-lost"),
        (source("shop", upgrade={**FAILED, "to": NEW}), 1, Phase.SICK, "no room"),
        (source("shop", upgrade={**FAILED, "to": OLD}), 1, Phase.ORDERED, ""),
        (None, 61, Phase.SICK, "not back within 60 s"),
        (source("shop", connected=False), 61, Phase.SICK, "not back"),
        (source("shop"), 61, Phase.SICK, "did not tell the new version"),
        (source("shop", upgrade=RAN, state="STALLED", reason="busy"), 61, Phase.SICK, "60 s: STALLED (busy)"),
    ],
)  # fmt: skip
def test_what_makes_an_agent_sick(seen: SourceAnswer | None, after_seconds: int, phase: Phase, said: str) -> None:
    found = judged(ORDERED, seen, WANTED, (100 + after_seconds) * S, 60 * S)
    assert found.phase is phase
    assert said in found.message


def test_an_earlier_failure_is_no_word_on_the_order_that_came_after_it() -> None:
    failed = source("shop", upgrade={**FAILED, "to": NEW, "number": "1"})
    begun, orders = step(rollout(("shop",)), {"shop": failed}, 100 * S)
    assert orders == ["shop"], "it is tried again"
    going, _ = step(begun, {"shop": failed}, 101 * S)
    assert going.agents["shop"].phase is Phase.ORDERED, "it has told nothing new yet"
    again = source("shop", upgrade={**FAILED, "to": NEW, "number": "2"})
    assert step(going, {"shop": again}, 102 * S)[0].agents["shop"].phase is Phase.SICK
    assert step(going, {"shop": failed}, 1000 * S)[0].agents["shop"].phase is Phase.SICK, "its time is over"


def test_who_is_not_well_before_is_left_alone() -> None:
    assert not unfit(source("shop"))
    assert "not there" in unfit(source("shop", connected=False))
    assert "not there" in unfit(source("shop", connected=None))
    assert "INITIAL_SYNC" in unfit(source("shop", state="INITIAL_SYNC"))
    assert "on its host" in unfit(source("shop", upgrade=None))
    assert unfit(None)


def rollout(*rings: tuple[str, ...], at_once: int = 10) -> Rollout:
    fleet = [source(name) for ring in rings for name in ring]
    made = [
        msgspec.structs.replace(each, sources=ring)
        for each, ring in zip(rings_of(["rest"], fleet) * len(rings), rings, strict=True)
    ]
    agents = {name: Progress(before="1.0", tracker="ebpf") for ring in rings for name in ring}
    return Rollout("x", "2.0", NEW, 1, tuple(made), agents, "bob", 0, 60.0, at_once)


def test_a_ring_begins_when_the_one_before_is_well_and_never_after_one_is_sick() -> None:
    now, fleet = 0, {name: source(name) for name in "abcd"}
    made, orders = step(rollout(("a",), ("b", "c"), ("d",)), fleet, now)
    assert orders == ["a"]
    made, orders = step(made, fleet, now + S)
    assert orders == []
    fleet["a"] = source("a", upgrade=RAN)
    made, orders = step(made, fleet, now + 2 * S)
    assert orders == ["b", "c"]
    fleet["b"] = source("b", upgrade=RAN, tracker="scan")
    made, orders = step(made, fleet, now + 3 * S)
    assert (orders, made.state) == ([], State.RUNNING), "one is under way still"
    fleet["c"] = source("c", upgrade=RAN)
    made, orders = step(made, fleet, now + 4 * S)
    assert (orders, made.state) == ([], State.STOPPED)
    assert "b: its tracker" in made.message
    assert made.agents["d"].phase is Phase.WAITING
    fleet["b"] = source("b", upgrade=RAN)
    again, orders = resumed(made, now + 5 * S)
    assert orders == []
    again, orders = step(again, fleet, now + 5 * S)
    assert again.agents["b"].phase is Phase.DONE, "it has it already"
    again, orders = step(again, fleet, now + 6 * S)
    assert orders == ["d"]
    fleet["d"] = source("d", upgrade=RAN)
    assert step(again, fleet, now + 7 * S)[0].state is State.DONE


def test_who_was_ordered_when_the_executor_was_killed_is_ordered_again_with_a_new_limit() -> None:
    fleet = {"a": source("a", connected=False)}
    made, _ = step(rollout(("a",)), {"a": source("a")}, 0)
    again, orders = resumed(made, 1000 * S)
    assert orders == ["a"]
    assert step(again, fleet, 1059 * S)[0].state is State.RUNNING
    assert step(again, fleet, 1061 * S)[0].state is State.STOPPED


@given(st.data())
def test_whatever_agents_do_no_more_are_under_way_than_allowed_and_none_is_ordered_twice(data: st.DataObject) -> None:
    rings = tuple(tuple(f"s{ring}{number}" for number in range(data.draw(st.integers(1, 4)))) for ring in range(3))
    made = rollout(*rings, at_once=data.draw(st.integers(1, 3)))
    names, ordered, now = [name for ring in rings for name in ring], set[str](), 0
    kinds = st.sampled_from([
        {}, {"connected": False}, {"upgrade": RAN}, {"upgrade": RAN, "state": "RESCAN"}, {"state": "STALLED"},
    ])  # fmt: skip
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.sampled_from([1, 30, 61])) * S
        was_sick = any(each.phase is Phase.SICK for each in made.agents.values())
        made, orders = step(made, {name: source(name, **data.draw(kinds)) for name in names}, now)
        assert not (was_sick and orders)
        assert not ordered & set(orders)
        ordered |= set(orders)
        assert sum(each.phase is Phase.ORDERED for each in made.agents.values()) <= made.at_once
        begun = [any(made.agents[name].phase is not Phase.WAITING for name in ring) for ring in rings]
        over = [all(made.agents[name].phase in (Phase.DONE, Phase.SKIPPED) for name in ring) for ring in rings]
        assert all(over[at - 1] for at in range(1, 3) if begun[at]), "a ring waits for the one before"
