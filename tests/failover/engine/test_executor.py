"""The executor: journals, leases, approvals, aborts, rollbacks, retries, time limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.labels import RunLabel
from drengine.failover.run import Event, Outcome, RequestKind, RunState, Status
from drengine.failover.runbook.values import Mode, OnFailure, Step
from drengine.failover.steps.approval import Approval
from drengine.failover.steps.branches import Branched
from drengine.failover.steps.kinds import StepKinds, step_kinds
from drengine.failover.steps.promote import PromoteStep
from drengine.failover.steps.step import NoSettings, PlannedStep, StepContext, StepResult
from drengine.model.errors import DrengineError
from drengine.store.errors import FENCED
from drengine.store.store import Store
from tests.failover.engine.keeper import LEASE_HELD, LEASE_LOST, MemoryKeeper
from tests.failover.engine.runs import approve, carry_out, create, executor, seen
from tests.failover.engine.world import BLOCK, World, runbook

KINDS = step_kinds()

ASK = Step(actions={"approval": Approval(prompt="really?", by=["ann"])})


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is in a journal
            await asyncio.sleep(0.005)


async def test_every_step_has_its_intent_in_the_journal_before_its_result(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, runbook())
    begun: set[str] = set()
    for entry in keeper.entries(record.id):
        if entry.event is Event.INTENT:
            begun.add(entry.step)
        elif entry.event is Event.RESULT:
            assert entry.step in begun
    assert begun == {each.step.id for each in snapshot.steps}


@pytest.mark.fault(47)
async def test_a_source_that_can_not_be_fenced_blocks_and_nothing_is_promoted_until_somebody_forces_it(
    tmp_path: Path,
) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.sources["shop"].cut_off()
    book = runbook()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert (record.state, record.outcome) == (RunState.STOPPED, Outcome.BLOCKED)
    assert world.store.source("shop").generation == 1
    assert world.driver.launches == []
    keeper.request(record.id, RequestKind.RESUME, "", "ann", "force")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.COMPLETED
    fence = seen(keeper, record.id).state("fence:shop")
    assert (fence.data["evidence"], fence.data["forced_by"]) == ("none", "ann")
    assert fence.message.startswith("NOT FENCED")


@pytest.mark.fault(47)
async def test_an_agent_that_only_watches_the_disks_is_no_evidence_that_nobody_writes_them(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.sources["shop"].cuts_clients = False
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, runbook())
    assert record.outcome is Outcome.BLOCKED
    assert "writes on" in snapshot.state("fence:shop").message
    other = World(tmp_path / "other")
    other.sources["shop"].cuts_clients = False
    record, snapshot = await carry_out(other, keeper, Mode.FAILOVER, runbook(fence=["true"]))
    assert snapshot.results["fence:shop"].evidence == "command"


@pytest.mark.fault(47)
async def test_a_silence_longer_than_the_lease_is_evidence_and_one_that_nobody_observed_is_none(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.sources["shop"].lease_seconds = 5.0
    world.sources["shop"].die()
    world.agents.age_seconds = 6.0
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, runbook())
    assert record.outcome is Outcome.COMPLETED
    assert snapshot.results["fence:shop"].evidence == "lease"
    other = World(tmp_path / "other")
    other.sources["shop"].lease_seconds = 5.0
    other.sources["shop"].cut_off()
    other.agents.age_seconds = None
    run = create(keeper, Mode.FAILOVER, runbook())
    record = await executor(other, keeper, runbook(), site=other.site(HastyClock())).execute(run)
    assert record.outcome is Outcome.BLOCKED


async def test_what_a_person_did_by_hand_is_not_tried_again_and_his_name_is_kept(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    world.sources["shop"].die()
    keeper.request(record.id, RequestKind.ROLLBACK, "", "ann")
    await executor(world, keeper, book, site=world.site(HastyClock())).execute(record.id)
    state = seen(keeper, record.id).state("undo.release:shop")
    assert "drengine-agent release --generation 3" in state.message
    keeper.request(record.id, RequestKind.RESUME, "undo.release:shop", "bob")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.ROLLED_BACK
    assert "bob" in seen(keeper, record.id).state("undo.release:shop").message


async def test_a_blocked_run_goes_on_by_itself_once_the_source_can_be_fenced(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    world.sources["shop"].cut_off()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    world.sources["shop"].reachable = True
    keeper.request(record.id, RequestKind.RESUME, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.COMPLETED
    world.judge.verdict()


@pytest.mark.fault(49)
async def test_without_a_broker_a_fence_command_is_evidence_and_its_failure_is_none(tmp_path: Path) -> None:
    world, keeper = World(tmp_path, broker=False), MemoryKeeper()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, runbook(fence=["false"]))
    assert record.outcome is Outcome.BLOCKED
    other = World(tmp_path / "other", broker=False)
    record, snapshot = await carry_out(other, keeper, Mode.FAILOVER, runbook(fence=["true"]))
    assert record.outcome is Outcome.COMPLETED
    assert snapshot.results["fence:shop"].evidence == "command"


@pytest.mark.fault(58)
async def test_a_failed_launch_is_never_completed(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    world.driver.broken.add("shop")
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, runbook())
    assert (record.state, record.outcome) == (RunState.STOPPED, Outcome.FAILED)
    assert snapshot.state("launch:shop").code == "launch-failed"
    world.driver.broken.clear()
    keeper.request(record.id, RequestKind.RESUME, "", "ann")
    record = await executor(world, keeper, runbook()).execute(record.id)
    assert record.outcome is Outcome.COMPLETED


@pytest.mark.fault(62)
@pytest.mark.parametrize("broken", ["launch", "check", "abort"])
async def test_a_drill_that_fails_anywhere_leaves_nothing_behind(tmp_path: Path, broken: str) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    before = world.facts()
    then = [Step(actions={"command": ["false"]})] if broken == "check" else [ASK] if broken == "abort" else []
    if broken == "launch":
        world.driver.broken.add("shop")
    book = runbook(then=then)
    run = create(keeper, Mode.DRILL, book)
    running = asyncio.create_task(executor(world, keeper, book).execute(run))
    if broken == "abort":
        await until(lambda: keeper.run(run).state is RunState.WAITING)
        keeper.request(run, RequestKind.ABORT, "", "ann")
    record = await running
    assert record.state is RunState.FINISHED
    assert record.outcome is (Outcome.ABORTED if broken == "abort" else Outcome.FAILED)
    assert world.driver.launches
    assert not world.driver.running
    assert world.facts() == before
    assert all(branch.closed for branch in world.store.branches("shop") if branch.role == "drill")


async def test_an_approval_by_nobody_or_by_somebody_else_is_none(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook(before=[ASK])
    run = create(keeper, Mode.FAILOVER, book)
    running = asyncio.create_task(executor(world, keeper, book).execute(run))
    await until(lambda: keeper.run(run).state is RunState.WAITING)
    assert world.sources["shop"].commands == [], "nothing is fenced before it is approved"
    approve(keeper, run, "")
    approve(keeper, run, "bob")
    keeper.request(run, RequestKind.APPROVE, "all.before.1", "ann", digest="0" * 64)
    keeper.request(run, RequestKind.APPROVE, "all.before.1", "ann")
    await asyncio.sleep(0.1)
    assert keeper.run(run).state is RunState.WAITING
    approve(keeper, run, "ann")
    record = await running
    assert record.outcome is Outcome.COMPLETED
    assert seen(keeper, run).results["all.before.1"].by == "ann"


async def test_without_waiting_an_approval_ends_the_executor_and_the_next_one_goes_on(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook(before=[ASK])
    run = create(keeper, Mode.FAILOVER, book)
    record = await executor(world, keeper, book).execute(run, wait=False)
    assert (record.state, record.reason) == (RunState.WAITING, "approval-needed")
    approve(keeper, run, "ann")
    record = await executor(world, keeper, book, owner="two").execute(run)
    assert record.outcome is Outcome.COMPLETED


async def test_a_failover_rolled_back_by_hand_puts_the_source_in_charge_and_keeps_what_was_recovered(
    tmp_path: Path,
) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    source = world.sources["shop"]
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    (instance,) = world.driver.running
    world.driver.write(instance, 5, b"r" * BLOCK)
    keeper.request(record.id, RequestKind.ROLLBACK, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.ROLLED_BACK)
    assert not world.driver.running
    assert (source.serving, source.generation) == (True, 3)
    source.write(6, b"s" * BLOCK)
    assert source.ship() is not None
    recovered = next(each for each in world.store.branches("shop") if each.label == str(RunLabel(record.id)))
    assert world.read("shop", recovered.number)[5 * BLOCK : 6 * BLOCK] == b"r" * BLOCK
    world.judge.verdict()


async def test_a_failed_check_rolls_the_failover_back_where_the_runbook_says_so(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    book = runbook(then=[Step(actions={"command": ["false"]}, on_failure=OnFailure.ROLLBACK)])
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.ROLLED_BACK)
    assert world.sources["shop"].serving
    assert not world.driver.running
    world.judge.verdict()


async def test_a_rollback_to_a_source_that_does_not_answer_is_not_called_rolled_back(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    world.sources["shop"].die()
    keeper.request(record.id, RequestKind.ROLLBACK, "", "ann")
    work = executor(world, keeper, book, site=world.site(HastyClock()))
    record = await work.execute(record.id)
    assert (record.state, record.reason) == (RunState.STOPPED, "undo-failed")
    world.sources["shop"].come_back()
    keeper.request(record.id, RequestKind.RESUME, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.ROLLED_BACK
    assert world.sources["shop"].serving
    world.judge.verdict()


async def test_an_abort_ends_a_failover_where_it_is_and_a_rollback_still_undoes_it(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    book = runbook(then=[Step(actions={"wait": "1h"})])
    run = create(keeper, Mode.FAILOVER, book)
    running = asyncio.create_task(executor(world, keeper, book).execute(run))
    await until(lambda: seen(keeper, run).steps and seen(keeper, run).state("all.then.1").begun)
    keeper.request(run, RequestKind.ABORT, "", "ann")
    record = await running
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.ABORTED)
    assert world.driver.running
    keeper.request(run, RequestKind.ROLLBACK, "", "ann")
    record = await executor(world, keeper, book).execute(run)
    assert record.outcome is Outcome.ROLLED_BACK
    world.judge.verdict()


async def test_while_somebody_executes_a_run_nobody_else_does(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook(before=[ASK])
    run = create(keeper, Mode.FAILOVER, book)
    running = asyncio.create_task(executor(world, keeper, book).execute(run))
    await until(lambda: keeper.run(run).state is RunState.WAITING)
    with pytest.raises(DrengineError) as caught:
        await executor(world, keeper, book, owner="two").execute(run)
    assert caught.value.kind is LEASE_HELD
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.fault(60)
async def test_an_executor_that_slept_past_its_lease_changes_nothing_more(tmp_path: Path) -> None:
    """Paused right before its promotion, it wakes up when another one has aborted the run."""
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    run = create(keeper, Mode.FAILOVER, book)
    asleep, wake = asyncio.Event(), asyncio.Event()

    class Sleepy(PromoteStep):
        async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched]:
            asleep.set()
            await wake.wait()
            return await super().act(step, context)

    first = executor(world, keeper, book, lease_seconds=3600.0, kinds=StepKinds((*KINDS.values(), Sleepy())))
    sleeping = asyncio.create_task(first.execute(run))
    await asleep.wait()
    keeper._leases[f"run:{run}"] = expired(keeper._leases[f"run:{run}"])
    keeper.request(run, RequestKind.ABORT, "", "ann")
    record = await executor(world, keeper, book, owner="two").execute(run)
    assert record.outcome is Outcome.ABORTED
    journal = keeper.entries(run)
    wake.set()
    with pytest.raises(DrengineError) as caught:
        await sleeping
    assert caught.value.kind is LEASE_LOST
    assert world.store.source("shop").generation == 1, "the late promotion was refused"
    assert keeper.entries(run) == journal


def expired(lease: Any) -> Any:
    from dataclasses import replace

    return replace(lease, expires_ns=0)


@pytest.mark.fault(56)
async def test_a_step_that_hangs_is_ended_at_its_limit_tried_again_and_fails(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    book = runbook(then=[Step(actions={"command": ["sleep", "3600"]}, timeout="100ms", retries=1, every="10ms")])
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert (record.state, record.outcome) == (RunState.STOPPED, Outcome.FAILED)
    state = snapshot.state("all.then.1")
    assert (state.status, state.attempt) == (Status.FAILED, 2)


async def test_a_handler_that_ignores_its_limit_is_ended_by_the_executor(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()

    class Stuck(PromoteStep):
        async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched]:
            await asyncio.Event().wait()
            raise AssertionError

    kinds = StepKinds((*KINDS.values(), Stuck()))
    work = executor(world, keeper, book, site=world.site(HastyClock()), kinds=kinds)
    record = await work.execute(create(keeper, Mode.FAILOVER, book))
    assert record.outcome is Outcome.FAILED
    assert seen(keeper, record.id).state("promote:shop").code == "timeout"


@pytest.mark.fault(44)
async def test_what_the_old_generation_still_had_under_way_is_refused(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    with Store.open(world.path) as store:
        writer = store.writer("shop", generation=1)
        record, _ = await carry_out(world, keeper, Mode.FAILOVER, runbook())
        assert record.outcome is Outcome.COMPLETED
        with pytest.raises(DrengineError) as caught:
            writer.commit(generation=1)
        assert caught.value.kind is FENCED
        writer.close()


@pytest.mark.fault(43)
async def test_of_two_orchestrators_with_registries_of_their_own_one_promotes(tmp_path: Path) -> None:
    world, book = World(tmp_path), runbook()
    keepers = [MemoryKeeper(), MemoryKeeper()]
    ended = await asyncio.gather(*(carry_out(world, keeper, Mode.FAILOVER, book) for keeper in keepers))
    outcomes = sorted(record.outcome.value for record, _ in ended)
    assert outcomes == ["completed", "failed"]
    loser = next(snapshot for record, snapshot in ended if record.outcome is Outcome.FAILED)
    assert loser.state("promote:shop").code == "fenced"
    assert not loser.state("launch:shop").begun
    assert world.store.source("shop").generation == 2
    world.judge.verdict()


class HastyClock:
    """Sleeping takes no time, but others run meanwhile."""

    def __init__(self) -> None:
        self._slept = 0.0

    def now_ns(self) -> int:
        return 1_800_000_000_000_000_000 + int(self._slept * 1e9)

    def monotonic(self) -> float:
        return self._slept

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.05))
        self._slept += seconds
