"""Plans: what comes after what in each mode, drawn from runbooks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from drengine.failover.plan import plan, plan_rollback, predicted_seconds
from drengine.failover.run import Event, JournalEntry
from drengine.failover.runbook.values import (
    Launch,
    Mode,
    OnFailure,
    Runbook,
    Source,
    Step,
    Wave,
)
from drengine.failover.snapshot import plan_payload, steps_of
from drengine.failover.steps.approval import Approval
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.notify import Notification
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.tcp import TcpCheck
from tests.failover.engine.world import runbook

KINDS = step_kinds()

CHECK = Step(actions={"tcp": TcpCheck(host="${db.address}", port=5432)})
ASK = Step(actions={"approval": Approval(prompt="really?", by=["ann"])})
HOME = Step(actions={"notify": Notification(command=["tell"])}, modes=(Mode.FAILBACK,))

SHOP = Runbook(
    version=1,
    name="shop",
    sources={
        name: Source(launch=Launch(driver="simulated", drill={"isolated": True})) for name in ("db", "web", "mail")
    },
    waves=[
        Wave(name="data", sources=["db"], before_steps=[ASK], after_steps=[CHECK, HOME]),
        Wave(name="front", sources=["web"], before_steps=[Step(actions={"command": ["warm-up"]})]),
        Wave(name="post", sources=["mail"], after=["data"]),
    ],
)


def needs(steps: tuple[PlannedStep[Any], ...]) -> dict[str, set[str]]:
    return {step.id: set(step.needs) for step in steps}


def before(steps: tuple[PlannedStep[Any], ...], id: str) -> set[str]:
    """Everything that must be through before a step."""
    direct = needs(steps)
    found: set[str] = set()
    left = list(direct[id])
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += direct[each]
    return found


def test_a_failover_asks_first_fences_all_promotes_all_and_launches_in_waves() -> None:
    steps = plan(Mode.FAILOVER, SHOP, {})
    asked = {"declare", "preflight", "data.before.1"}
    assert before(steps, "fence:db") == {*asked, "preflight.again"}, "an answer may take hours"
    assert before(steps, "data.before.1") == asked - {"data.before.1"}, "nobody is asked about what can't be done"
    assert "preflight.again" not in needs(plan(Mode.FAILOVER, runbook(), {})), "nobody is asked"
    everything_fenced = {f"fence:{source}" for source in SHOP.sources}
    assert everything_fenced <= before(steps, "choose-point:mail")
    everything_promoted = {f"promote:{source}" for source in SHOP.sources}
    assert everything_promoted <= before(steps, "launch:db")
    assert {"launch:db", "data.then.1", "front.before.1"} <= before(steps, "launch:web")
    assert "data.then.1" in before(steps, "launch:mail")
    assert not {"launch:web", "front.before.1"} & before(steps, "launch:mail"), "waves run side by side where they may"
    assert "data.then.2" not in needs(steps), "steps of the way home are left out"


def test_a_drill_touches_no_source_and_always_cleans_up() -> None:
    steps = plan(Mode.DRILL, SHOP, {})
    kinds = {step.kind for step in steps}
    assert not kinds & {KINDS["fence"], KINDS["promote"], KINDS["quiesce-source"], KINDS["release"]}
    cleanup = {step.id for step in steps if step.cleanup}
    assert cleanup == {f"{kind}:{source}" for kind in ("stop-workload", "drop-branch") for source in SHOP.sources}
    launch = next(step for step in steps if step.id == "launch:db")
    assert launch.settings.isolated is True
    assert launch.settings.settings == {"isolated": True}


def test_a_migration_stops_dependents_first_and_takes_the_last_point() -> None:
    steps = plan(Mode.MIGRATION, SHOP, {})
    assert {"quiesce-source:web", "quiesce-source:mail"} <= before(steps, "quiesce-source:db")
    assert {f"quiesce-source:{source}" for source in SHOP.sources} <= before(steps, "fence:web")
    chosen = next(step for step in steps if step.id == "choose-point:db")
    assert chosen.kind.settings_json(chosen.settings) == {"from": "quiesce-source:db"}


def test_a_failback_ships_everything_before_anything_stops_and_hands_back_all_at_once() -> None:
    steps = plan(Mode.FAILBACK, SHOP, {})
    assert {f"reverse:{source}" for source in SHOP.sources} <= before(steps, "quiesce-recovered:web")
    assert {"quiesce-recovered:web", "quiesce-recovered:mail"} <= before(steps, "quiesce-recovered:db")
    assert {f"reverse-last:{source}" for source in SHOP.sources} <= before(steps, "hand-back:web")
    assert {"release:db", "data.then.2"} <= before(steps, "release:web")
    assert {f"release:{source}" for source in SHOP.sources} <= before(steps, "stop-workload:db")
    assert "data.before.1" not in needs(steps), "an approval of other modes is not asked for"
    assert before(steps, "reverse:db") == {"declare", "preflight", "fence:db", "preserve:db"}


def test_reprotect_stops_nobody() -> None:
    kinds = [step.kind for step in plan(Mode.REPROTECT, runbook(), {})]
    assert kinds == [KINDS["declare"], KINDS["preflight"], KINDS["fence"], KINDS["preserve"], KINDS["reverse"]]


def test_a_rollback_undoes_only_what_was_begun_in_reverse() -> None:
    begun = ["declare", "data.before.1", "fence:db", "fence:web", "fence:mail", "promote:db", "launch:db"]
    steps = plan_rollback(Mode.FAILOVER, SHOP, {}, begun)
    assert set(needs(steps)) == {
        "undo.stop-workload:db",
        "undo.hand-back:db",
        "undo.release:db",
        "undo.release:web",
        "undo.release:mail",
        "undo.data.then.2",
    }
    assert "undo.stop-workload:db" in before(steps, "undo.hand-back:db")
    assert "undo.hand-back:db" in before(steps, "undo.release:db")
    assert "undo.release:db" in before(steps, "undo.release:web")


def test_a_failback_that_is_rolled_back_starts_the_recovered_side_again() -> None:
    launches = {"db": {"instance": "i-db", "branch": 2, "driver": "simulated", "settings": {}, "run": "r", "host": ""}}
    steps = plan_rollback(Mode.FAILBACK, SHOP, {"launches": launches}, ["quiesce-recovered:db"])
    assert [step.id for step in steps] == ["undo.launch:db"]
    assert steps[0].settings.instance == "i-db"


@pytest.mark.parametrize("mode", list(Mode))
def test_plans_are_the_same_every_time_ordered_and_survive_the_journal(mode: Mode) -> None:
    steps = plan(mode, SHOP, {})
    assert steps == plan(mode, SHOP, {})
    seen: set[str] = set()
    for step in steps:
        assert seen.issuperset(step.needs), step.id
        assert step.id not in seen
        seen.add(step.id)
    payload = msgspec.json.decode(msgspec.json.encode(plan_payload(steps, "planned")))
    assert steps_of(JournalEntry("", Event.DECISION, 0, 0, payload)) == steps


def test_optional_steps_never_stop_a_run() -> None:
    optional = Step(actions={"command": ["x"]}, critical=False, on_failure=OnFailure.ROLLBACK)
    steps = plan(Mode.FAILOVER, runbook(then=[optional]), {})
    assert steps[-1].on_failure is OnFailure.CONTINUE


def test_the_predicted_time_is_that_of_the_longest_way_and_cleanup_does_not_count() -> None:
    steps = plan(Mode.DRILL, SHOP, {})
    seconds = {"launch:db": 10.0, "launch:web": 5.0, "launch:mail": 7.0, "drop-branch:db": 100.0}
    assert predicted_seconds(steps, seconds) == 17.0
