"""What is asked of a run just as its executor ends is never lost: the executor heeds it, or whoever asks finds none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event

from drengine.control.agents import NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.daemon import Orchestrator
from drengine.failover.engine import Engine
from drengine.failover.orders import Orders
from drengine.failover.registry import Registry
from drengine.failover.registry.errors import LEASE_HELD
from drengine.failover.run import Event, Outcome, RequestKind, RunRecord, RunState, Status
from drengine.failover.runbook.values import Mode, Step
from drengine.failover.steps.approval import Approval
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.door import Door
from tests.console.rig import ASKING, RUNBOOK
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import create, executor, seen
from tests.failover.engine.world import World, runbook
from tests.persons import BOB

STATEMENTS_MAX = 12
"""More than show a run."""
ASK = Step(actions={"approval": Approval(prompt="Go?")})
FAILING = RUNBOOK + "    then:\n      - command: ['false']\n        name: by-hand\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.fixture
def engine(world: World, tmp_path: Path) -> Any:
    registry = Registry.open(str(tmp_path / "registry.sqlite"), clock=SystemClock())
    config = OrchestratorConfig(store=tmp_path, state=tmp_path / "state")
    yield Engine(config, registry, world.site(), NoAgents(), "here", Door.of(config.state, SystemClock()))
    registry.close()


@pytest.mark.parametrize(
    ("text", "order", "outcome"),
    [
        (RUNBOOK, "rollback", Outcome.ROLLED_BACK),
        (FAILING, "rollback", Outcome.ROLLED_BACK),
        (FAILING, "abort", Outcome.ABORTED),
        (FAILING, "resume", Outcome.FAILED),
        (ASKING, "abort", Outcome.ABORTED),
    ],
    ids=["finished: rollback", "stopped: rollback", "stopped: abort", "stopped: resume", "paused: abort"],
)
async def test_the_daemon_heeds_what_is_asked_while_it_tidies_up_after_a_run(
    text: str, order: str, outcome: Outcome, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has ended for everybody to see, and its report is being written."""
    orders, orchestrator = Orders(engine, BOB), Orchestrator(engine)
    orders.keep("shop", text)
    run = orders.begin(Mode.FAILOVER, "shop")
    again: list[asyncio.Task[None]] = []
    note = Engine._note_reports
    execute = Engine.execute

    def late(self: Engine, ended: Any) -> None:
        if not again:
            getattr(orders, order)(run.id)
            asyncio.run_coroutine_threadsafe(ask_again(), loop).result()
        note(self, ended)

    async def ask_again() -> None:
        again.append(orchestrator.carry_out(run))

    async def until_people(self: Engine, run: Any, **given: Any) -> Any:
        return await execute(self, run, **{**given, "wait": False})

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Engine, "_note_reports", late)
    monkeypatch.setattr(Engine, "execute", until_people)
    await orchestrator.carry_out(run)
    await asyncio.gather(*again)
    assert engine.registry.run(run.id).outcome is outcome
    assert not engine.snapshot(run.id).is_asked


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("kind", [RequestKind.ROLLBACK, RequestKind.ABORT])
async def test_an_executor_does_not_end_before_it_has_seen_all_that_was_asked(
    kind: RequestKind, wait: bool, tmp_path: Path
) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    book = runbook() if wait else runbook(before=[ASK])
    run = create(keeper, Mode.FAILOVER, book)
    asked: list[object] = []

    def ask() -> None:
        if not asked:
            asked.append(keeper.request(run, kind, "", "ann"))

    keeper.on_leave = ask
    record = await executor(world, keeper, book).execute(run, wait=wait)
    assert record.outcome is (Outcome.ROLLED_BACK if kind is RequestKind.ROLLBACK else Outcome.ABORTED)
    told = [entry.payload["decision"] for entry in keeper.entries(run) if entry.event is Event.DECISION]
    assert told.count("finished") == 1
    assert not seen(keeper, run).is_asked


@pytest.mark.parametrize("text", [RUNBOOK, FAILING, ASKING])
async def test_a_run_that_has_ended_has_no_executor(text: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the registry says so, its lease is free: a commit at that moment is not refused."""
    orders = Orders(engine, BOB)
    orders.keep("shop", text)
    run = orders.begin(Mode.FAILOVER, "shop")
    freed: list[bool] = []
    leave = Registry.leave_run

    def look(self: Registry, *given: Any, **more: Any) -> bool:
        left = leave(self, *given, **more)
        try:
            self.release_lease(self.acquire_lease(f"run:{run.id}", "somebody", 1.0))
            freed.append(True)
        except DrengineError as error:
            freed.append(error.kind is not LEASE_HELD)
        return left

    monkeypatch.setattr(Registry, "leave_run", look)
    ended = await engine.execute(run, wait=False)
    assert ended.state in (RunState.FINISHED, RunState.STOPPED, RunState.WAITING)
    assert freed == [True]
    if text == RUNBOOK:
        assert orders.commit(run.id).reason == "committed"


async def test_a_commit_and_a_rollback_at_once_are_one_of_the_two(engine: Engine) -> None:
    orders = Orders(engine, BOB)
    orders.keep("shop", RUNBOOK)
    run = orders.begin(Mode.FAILOVER, "shop")
    await engine.execute(run)
    orders.rollback(run.id)
    with pytest.raises(DrengineError, match="bob has asked for the rollback"):
        orders.commit(run.id)
    assert (await engine.execute(run)).outcome is Outcome.ROLLED_BACK


async def test_whoever_looks_on_never_takes_a_run_for_ended_that_is_rolled_back(engine: Engine) -> None:
    """The whole rollback happens between any two of the statements by which a run is looked at."""
    orders = Orders(engine, BOB)
    orders.keep("shop", RUNBOOK)
    fired = []
    for place in range(1, STATEMENTS_MAX):
        run = orders.begin(Mode.FAILOVER, "shop")
        await engine.execute(run)
        orders.rollback(run.id)
        with ahead_of_statement(place, partial(execute_here, engine, run)) as after:
            shown = await asyncio.to_thread(orders.show, run.id)
        fired.append(after.is_set())
        if shown.state is RunState.FINISHED and not shown.asked:  # as RemoteOrders.carry_out decides
            assert shown.outcome is Outcome.ROLLED_BACK, place
            assert {each.status for each in shown.steps} <= {Status.DONE, Status.SKIPPED}, place
        else:
            assert (shown.outcome, shown.asked) == (Outcome.COMPLETED, True), place
        if not after.is_set():
            await engine.execute(run)
            break
    assert fired[0]
    assert not fired[-1], "there are more statements than were tried"


def execute_here(engine: Engine, run: RunRecord) -> None:
    asyncio.run(engine.execute(run))


@contextmanager
def ahead_of_statement(place: int, happens: Callable[[], object]) -> Iterator[threading.Event]:
    """Let something happen before the SELECT of that number by one other thread; the event tells that it did."""
    happened, looker, count = threading.Event(), list[int](), 0

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal count
        looker.append(threading.get_ident())
        if looker[0] != looker[-1] or happened.is_set() or not statement.startswith("SELECT"):
            return
        count += 1
        if count == place + 1:  # something is read before
            happened.set()
            other = threading.Thread(target=happens)
            other.start()
            other.join()

    event.listen(sqlalchemy.Engine, "before_cursor_execute", before)
    try:
        yield happened
    finally:
        event.remove(sqlalchemy.Engine, "before_cursor_execute", before)
