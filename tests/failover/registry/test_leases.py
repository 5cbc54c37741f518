"""One orchestrator acts: leases under every schedule, among processes, and past their time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.failover.registry import Registry
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST
from drengine.failover.run import Event, JournalEntry, Lease
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.clock import ManualClock
from tests.failover.registry.contender import LEASE, RUN
from tests.failover.registry.rig import run_named

ROOT = Path(__file__).parents[3]
both = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])


@contextmanager
def contender(url: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.failover.registry.contender", url, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/agents"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> str:
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return told


@both
@pytest.mark.fault(60)
def test_an_orchestrator_paused_past_its_lease_is_refused_when_it_wakes(url: str) -> None:
    registry = Registry.open(url, clock=SystemClock())
    registry.create_run(run_named(RUN, "shop"))
    with contender(url, "hold", "sleeper", 0.2) as sleeper:
        assert sleeper.stdout
        assert sleeper.stdin
        token = json.loads(sleeper.stdout.readline())["token"]
        sleeper.send_signal(signal.SIGSTOP)
        lease = None
        until = time.monotonic() + 60
        while lease is None and time.monotonic() < until:
            try:
                lease = registry.acquire_lease(LEASE, "successor", 60)
            except DrengineError as error:
                assert error.kind is LEASE_HELD
        assert lease is not None
        assert lease.token > token
        registry.append(RUN, lease.token, JournalEntry("next", Event.INTENT, 1, 0))
        sleeper.send_signal(signal.SIGCONT)
        told, _ = sleeper.communicate("wake up\n", timeout=60)
        assert json.loads(told) == {"results": ["lease-lost"] * 3}
    # What the sleeper did at last, letting go, did not touch the lease of its successor.
    registry.append(RUN, lease.token, JournalEntry("more", Event.INTENT, 1, 0))
    assert [entry.step for entry in registry.entries(RUN)] == ["next", "more"]
    assert registry.run(RUN).reason == ""
    registry.close()


@both
@pytest.mark.fault(60)
def test_processes_that_race_for_a_lease_write_one_after_the_other(url: str) -> None:
    registry = Registry.open(url, clock=SystemClock())
    registry.create_run(run_named(RUN, "shop"))
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    owners = [f"owner{number}" for number in range(3)]
    running = []
    with ExitStack() as stack:
        for at, owner in enumerate(owners):
            running.append(stack.enter_context(contender(url, "journal", owner, seed + at, 25)))
        for process in running:
            finished(process)
    entries = registry.entries(RUN)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    tokens = [entry.payload["token"] for entry in entries]
    assert tokens == sorted(tokens), "an older holder wrote after a newer one"
    whose = {(entry.payload["token"], entry.payload["owner"]) for entry in entries}
    assert len(whose) == len({token for token, _ in whose}), "one token was given to two"
    assert {owner for _, owner in whose} == set(owners)
    registry.close()


@both
@pytest.mark.fault(43)
def test_of_operators_who_start_the_same_run_one_wins(url: str) -> None:
    registry = Registry.open(url, clock=SystemClock())
    with ExitStack() as stack:
        running = [stack.enter_context(contender(url, "runs", f"owner{number}", 40)) for number in range(3)]
        won = [number for process in running for number in json.loads(finished(process))["won"]]
    assert sorted(won) == list(range(40))
    assert len(registry.runs(limit=1000)) == 40
    registry.close()


OWNERS = ("a", "b", "c")
moves = st.one_of(
    st.tuples(st.just("acquire"), st.sampled_from(OWNERS), st.sampled_from((0.0, 1.0, 10.0))),
    st.tuples(st.just("renew"), st.integers(0, 20), st.sampled_from((0.0, 1.0, 10.0))),
    st.tuples(st.just("release"), st.integers(0, 20), st.just(0.0)),
    st.tuples(st.just("append"), st.integers(0, 20), st.just(0.0)),
    st.tuples(st.just("jump"), st.just(0), st.sampled_from((0.5, 1.0, 20.0, -0.5, -5.0, -100.0, -1e6))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, max_size=25))
@pytest.mark.fault(60, 61)
def test_only_the_newest_token_acts_whatever_the_clock_does(schedule: list[tuple[str, object, float]]) -> None:
    clock = ManualClock()
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry.open(f"{folder}/r", clock=clock)
        registry.create_run(run_named(RUN, "shop"))
        given_out: list[Lease] = []
        newest = released = 0
        for move, what, number in schedule:
            if move == "jump":
                clock.jump_wall(number)
            elif move == "acquire":
                try:
                    lease = registry.acquire_lease(LEASE, str(what), number)
                    assert lease.token == newest + 1
                    newest = lease.token
                    given_out.append(lease)
                except DrengineError as error:
                    assert error.kind is LEASE_HELD
                    assert newest != released
                    assert given_out[-1].owner != what
            elif given_out:
                lease = given_out[int(str(what)) % len(given_out)]
                may = lease.token == newest and newest != released
                if move == "release":
                    registry.release_lease(lease)
                    released = newest if may else released
                    continue
                try:
                    if move == "renew":
                        registry.renew_lease(lease, number)
                    else:
                        registry.append(RUN, lease.token, JournalEntry("s", Event.INTENT, 1, 0))
                    assert may
                except DrengineError as error:
                    assert error.kind is LEASE_LOST
                    assert not may
        registry.close()


@pytest.mark.parametrize("jump", [0.0, -3600.0, -1.0, 5.0, 3600.0])
@pytest.mark.fault(61)
def test_a_clock_that_jumps_keeps_no_lease_alive_for_ever(tmp_path: Path, jump: float) -> None:
    clock = ManualClock()
    registry = Registry.open(str(tmp_path / "r"), clock=clock)
    registry.acquire_lease(LEASE, "dead", 10)
    clock.jump_wall(jump)
    clock.advance(20)
    assert registry.acquire_lease(LEASE, "next", 10).token == 2
    registry.close()


def test_a_lease_that_runs_is_not_given_to_another_but_to_its_owner_anew(tmp_path: Path) -> None:
    clock = ManualClock()
    registry = Registry.open(str(tmp_path / "r"), clock=clock)
    first = registry.acquire_lease(LEASE, "a", 10)
    clock.advance(9)
    with pytest.raises(DrengineError, match=r"held by a for another 1\.0 s"):
        registry.acquire_lease(LEASE, "b", 10)
    second = registry.acquire_lease(LEASE, "a", 10)
    with pytest.raises(DrengineError, match="lease-lost"):
        registry.renew_lease(first, 10)
    registry.release_lease(first)
    clock.advance(9)
    second = registry.renew_lease(second, 10)
    clock.advance(9)
    with pytest.raises(DrengineError, match="lease-held"):
        registry.acquire_lease(LEASE, "b", 10)
    registry.release_lease(second)
    assert registry.acquire_lease(LEASE, "b", 10).token == 3
    registry.close()


@both
@pytest.mark.fault(57)
def test_an_orchestrator_killed_while_it_writes_leaves_a_journal_without_gaps(url: str) -> None:
    registry = Registry.open(url, clock=SystemClock())
    registry.create_run(run_named(RUN, "shop"))
    for number in range(2):
        before = len(registry.entries(RUN))
        with contender(url, "journal", f"owner{number}", number, 100_000) as writer:
            until = time.monotonic() + 60
            while len(registry.entries(RUN)) < before + 20:
                assert time.monotonic() < until
                assert writer.poll() is None
            writer.kill()
            writer.wait()
        entries = registry.entries(RUN)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        tokens = [entry.payload["token"] for entry in entries]
        assert tokens == sorted(tokens)
    registry.close()
