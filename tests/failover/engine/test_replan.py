"""A changed runbook for a run that stopped: what is done stays done, what does not fit is refused in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.audit import FOLDER
from drengine.failover.plan import plan
from drengine.failover.replan import replan
from drengine.failover.run import RunRecord, RunState, Status
from drengine.failover.runbook.values import Fence, Launch, Mode, Runbook, Source, Step, Wave
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.steps.kinds import step_json
from drengine.model.errors import DrengineError
from drengine.process import find_marked
from tests.failover.engine.prompt import Typed
from tests.failover.engine.world import runbook

WRONG, RIGHT = "then: [{command: ['false']}]", "then: [{command: ['true']}]"


def steps_of(told: Any) -> dict[str, Any]:
    return {step["id"]: step for step in told["steps"]}


def test_a_mended_runbook_goes_on_where_the_run_stopped_and_that_is_recorded(typed: Typed) -> None:
    code, told = typed.json("failover", typed.book(before=WRONG))
    run, first = told["run"], told["version"]
    assert (code, told["state"]) == (106, "stopped")
    (workload,) = find_marked("WHOSE", str(typed.directory))
    code, told = typed.json("run", "resume", run, "--runbook", typed.book(before=RIGHT))
    assert (code, told["outcome"]) == (0, "completed")
    assert told["version"] != first
    assert steps_of(told)["promote:shop"]["attempt"] == 1, "what was done is not done again"
    assert steps_of(told)["all.then.1"]["attempt"] == 2, "tries are counted on"
    assert find_marked("WHOSE", str(typed.directory)) == [workload]
    report = json.loads((typed.directory / f"state/reports/{run}.json").read_text())
    assert "replanned" in [each["id"] for each in report["warnings"]]
    assert "replan" in [each["did"] for each in report["people"]]
    assert RIGHT.split(":", 1)[1].strip() in report["runbook_text"]
    log = "".join(path.read_text() for path in (typed.directory / "state" / FOLDER).rglob("*") if path.is_file())
    assert "run.replan" in log


def test_what_earlier_settings_launched_is_stopped_before_it_is_launched_by_others(typed: Typed) -> None:
    book = Path(typed.book(run="[sleep, '601'], health: ['false']"))
    book.write_text(book.read_text().replace("driver: command", "driver: command\n      timeout: 1s"))
    code, told = typed.json("failover", str(book))
    assert (code, told["state"]) == (106, "stopped"), told
    (old,) = find_marked("WHOSE", str(typed.directory))
    code, told = typed.json("run", "resume", told["run"], "--runbook", typed.book(run="[sleep, '602']"))
    assert (code, told["outcome"]) == (0, "completed"), told
    (new,) = find_marked("WHOSE", str(typed.directory))
    assert new != old, "the program of the earlier runbook went on"
    assert steps_of(told)["again1.stop-workload:shop"]["status"] == "done"


@pytest.mark.parametrize(
    ("change", "exit_code", "said"),
    [
        (("sleep, '600'", "sleep, '700'"), 222, "step launch:shop is done, and would have another settings"),
        (("name: shop", "name: bank"), 222, "the run is of runbook 'shop', this one is 'bank'"),
        (("waves:", "wavess:"), 103, "'waves' is missing"),
        (("driver: command", "driver: nothing"), 103, "unknown-driver"),
        (("then:", "before: [{command: ['true']}]\n    then:"), 222, "all.before.1 would come before fence:shop"),
    ],
    ids=["a launch that is done", "another runbook", "no runbook", "no driver", "a gate behind the fence"],
)
def test_a_runbook_that_does_not_fit_is_refused_and_nothing_is_changed(
    typed: Typed, change: tuple[str, str], exit_code: int, said: str
) -> None:
    place = typed.book(before=WRONG)
    run = typed.json("failover", place)[1]["run"]
    before = typed.json("run", "show", run)[1]
    book = Path(place)
    book.write_text(book.read_text().replace(*change, 1))
    code, _, err = typed("run", "resume", run, "--runbook", place)
    assert (code, said in err) == (exit_code, True), err
    assert typed.json("run", "show", run)[1] == before
    assert typed.json("run", "resume", run)[0] == 106, "it still goes on by its own"


def test_only_a_run_that_stopped_takes_another_runbook(typed: Typed) -> None:
    run = typed.json("failover", typed.book())[1]["run"]
    code, told = typed.json("run", "resume", run, "--runbook", typed.book(before=RIGHT))
    assert (code, told["error"]) == (110, "run-state")


def test_who_may_not_change_runbooks_may_not_give_a_changed_one(typed: Typed) -> None:
    run = typed.json("failover", typed.book(before=WRONG))[1]["run"]
    with typed.acting_as("vic"):
        assert typed("run", "resume", run, "--runbook", typed.book(before=RIGHT))[0] == 181


# ---- purely --------------------------------------------------------------------------------------------------------

STEPS = ("true", "false")


def record(book: Runbook, mode: Mode) -> RunRecord:
    return RunRecord("r", mode, book.name, "v", tuple(book.sources), "ann", 1, state=RunState.STOPPED)


def stopped_at(book: Runbook, mode: Mode, done: int) -> Snapshot:
    steps = plan(mode, book, {})
    states = [
        StepState(
            step, Status.DONE if n < done else Status.FAILED if n == done else Status.PENDING, attempt=int(n <= done)
        )
        for n, step in enumerate(steps)
    ]
    return Snapshot(tuple(states))


def changed_book(then: list[str], seconds: int) -> Runbook:
    source = Source(launch=Launch(driver="simulated", settings={"say": seconds}), fence=Fence(command=["off"]))
    wave = Wave(name="all", sources=["shop"], after_steps=[Step(actions={"command": [each]}) for each in then])
    return Runbook(version=1, name="test", sources={"shop": source}, waves=[wave])


@given(
    mode=st.sampled_from([Mode.FAILOVER, Mode.MIGRATION]),
    done=st.integers(0, 12),
    was=st.lists(st.sampled_from(STEPS), max_size=4),
    now=st.lists(st.sampled_from(STEPS), max_size=4),
    seconds=st.integers(1, 2),
)
def test_a_changed_plan_keeps_what_is_done_and_puts_nothing_before_it(
    mode: Mode, done: int, was: list[str], now: list[str], seconds: int
) -> None:
    old, new = changed_book(was, 1), changed_book(now, seconds)
    snapshot = stopped_at(old, mode, done)
    try:
        steps = replan(record(old, mode), new, snapshot)
    except DrengineError as error:
        assert error.kind.id == "runbook-unfit"
        return
    planned = {step.id: step for step in steps}
    finished = {each.step.id: each.step for each in snapshot.steps if each.status is Status.DONE}
    for id, step in finished.items():
        if step.kind.acts:
            assert step_json(planned[id])["settings"] == step_json(step)["settings"]
        assert id not in planned or set(planned[id].needs) <= finished.keys()
    order = list(planned)
    assert all(order.index(need) < order.index(step.id) for step in steps for need in step.needs)


def test_the_same_runbook_gives_the_same_plan() -> None:
    book = changed_book(["true"], 1)
    snapshot = stopped_at(book, Mode.FAILOVER, 4)
    assert replan(record(book, Mode.FAILOVER), book, snapshot) == plan(Mode.FAILOVER, book, {})


def test_a_run_that_is_rolled_back_keeps_its_runbook() -> None:
    book = changed_book([], 1)
    snapshot = replace(stopped_at(book, Mode.FAILOVER, 3), rolling_back=True)
    with pytest.raises(DrengineError, match="being rolled back"):
        replan(record(book, Mode.FAILOVER), book, snapshot)


def test_a_source_more_or_less_is_refused() -> None:
    book, more = runbook("shop"), runbook("shop", "web")
    with pytest.raises(DrengineError, match="added or left out: web"):
        replan(record(book, Mode.FAILOVER), more, stopped_at(book, Mode.FAILOVER, 2))
