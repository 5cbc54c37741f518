"""The orchestrator killed at every position of its journal: the same end, and one writer at every instant."""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import pytest

from drengine.failover.runbook.values import Mode
from tests.failover.engine.kill import life, story
from tests.failover.engine.race import race
from tests.failover.engine.world import Death

STORIES_AT_ONCE = 4
RACES = 8
"""`python -m tests.failover.engine.campaign races` runs a thousand."""

SOURCES = {Mode.FAILOVER: ("db", "web"), Mode.FAILBACK: ("db",)}
"""A failback of two takes longer; the campaign does it."""
MOVES = (Mode.FAILBACK, Mode.REPROTECT, Mode.MIGRATION)
GENERATIONS = {Mode.FAILBACK: 3, Mode.REPROTECT: 2, Mode.MIGRATION: 2}
"""Under which a source is written in the end; each hand-over takes one."""


@pytest.mark.fault(57, 49)
@pytest.mark.timeout(600)  # some 60 lives of processes: a busy machine takes minutes
@pytest.mark.parametrize("mode", list(SOURCES))
def test_killed_at_every_position_a_run_ends_as_if_it_had_never_been(tmp_path: Path, mode: Mode) -> None:
    peace = story(tmp_path / "peace", mode, [], SOURCES[mode])
    assert peace.entries >= 20

    def killed_at(position: int) -> None:
        ended = story(tmp_path / str(position), mode, [position], SOURCES[mode])
        assert ended.kills == 1, f"nothing was killed at position {position}"
        assert ended.state == peace.state, f"killed at position {position}"

    with ThreadPoolExecutor(STORIES_AT_ONCE) as pool:
        list(pool.map(killed_at, range(2 * peace.entries)))


@pytest.mark.fault(57)
@pytest.mark.timeout(900)
@pytest.mark.campaign
@pytest.mark.parametrize("mode", MOVES)
def test_killed_at_every_position_of_a_move_to_a_new_host_it_ends_the_same(tmp_path: Path, mode: Mode) -> None:
    killed_on_the_way_to_a_new_host(tmp_path, mode, step=1)


@pytest.mark.timeout(600)
def test_killed_on_the_way_to_a_new_host_it_ends_the_same(tmp_path: Path) -> None:
    killed_on_the_way_to_a_new_host(tmp_path, Mode.FAILBACK, step=7)


def killed_on_the_way_to_a_new_host(directory: Path, mode: Mode, step: int) -> None:
    """The orchestrator at every `step`-th position of its journal, and the new host's agent at each of its commands."""
    began = time.monotonic()
    peace = story(directory / "peace", mode, [], ("db",), onto="spare")
    assert peace.state["generations"] == {"db": GENERATIONS[mode]}
    assert peace.orders >= 2

    def killed_at(position: int) -> None:
        ended = story(directory / str(position), mode, [position], ("db",), onto="spare")
        assert ended.kills == 1, f"nothing was killed at position {position}"
        assert ended.state == peace.state, f"killed at position {position}"

    def agent_killed(death: Death) -> None:
        ended = story(directory / f"{death.command}-{death.done}", mode, [], ("db",), onto="spare", agent_dies=death)
        assert ended.orders > peace.orders, f"no agent was killed: {death}"
        assert ended.state == {**peace.state, "sources": ended.state["sources"]}, death
        for name, (*stands, commands) in ended.state["sources"].items():
            *wanted, ordered = peace.state["sources"][name]
            assert stands == wanted and set(commands) == set(ordered), death

    positions = range(0, 2 * peace.entries, step)
    deaths = [Death(number, done) for number in range(peace.orders) for done in (False, True)] if step == 1 else []
    with ThreadPoolExecutor(STORIES_AT_ONCE) as pool:
        list(pool.map(killed_at, positions))
        list(pool.map(agent_killed, deaths))
    seconds = time.monotonic() - began
    print(f"{mode.value}: {len(positions)} kills of the orchestrator, {len(deaths)} of the agent, {seconds:.0f} s")


def test_how_a_process_ended_is_read_right_while_other_threads_start_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    read, slow = forkserver.read_signed, set[int]()

    def read_slowly(pipe: int) -> int:
        """Lets whoever else reads the same pipe overtake."""
        if pipe not in slow:
            slow.add(pipe)
            time.sleep(0.02)
            slow.discard(pipe)
        return read(pipe)

    monkeypatch.setattr(forkserver, "read_signed", read_slowly)
    with ThreadPoolExecutor(STORIES_AT_ONCE) as pool:
        assert set(pool.map(lambda code: life(sys.exit, code), [7] * 40)) == {7}


@pytest.mark.fault(43)
def test_of_two_orchestrators_that_promote_at_the_same_moment_one_wins(tmp_path: Path) -> None:
    for seed in random.Random(43).sample(range(1 << 32), RACES):
        race(tmp_path / str(seed), seed)
