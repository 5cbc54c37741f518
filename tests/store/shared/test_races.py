"""Several processes that want the same of one shared store, some of them stopped or killed: one of them at a time."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from benchmarks.devices import until
from drengine.model.errors import DrengineError
from drengine.store.errors import LOCK_LOST
from drengine.store.locks.postgres import LOCK_SECONDS, PostgresLocks
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.postgres import Postgres
from tests.store.harness import TINY, Source
from tests.store.shared.contender import BLOCK, BLOCKS, SOURCE, offset_of, stamped

ROUNDS = 12


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh_database()


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begins contenders, which are ended in the end."""
    with ExitStack() as stack:

        def one(*arguments: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "tests.store.shared.contender", *map(str, arguments)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.__exit__, None, None, None)
            stack.callback(process.kill)
            return process

        yield one


def expire(url: str) -> None:
    """As if the server's clock had gone on by more than a lock lives."""
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE drengine_catalogue.lock SET expires = now() - interval '1 second'")


def holder(url: str) -> int:
    """The process that has the branch's lock; 0: none."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT holder FROM drengine_catalogue.lock WHERE name LIKE 'branch/%' AND expires > clock_timestamp()"
        ).fetchone()
    return int(str(found[0]).split()[1]) if found else 0


@pytest.mark.fault(79)
def test_of_writers_that_are_stopped_killed_and_go_on_one_writes_at_a_time(
    url: str, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    path, log = tmp_path / "store", tmp_path / "log"
    log.touch()
    with Store.create(path, options=TINY, catalogued_in=url) as store:
        store.ensure_source(SOURCE)
    processes = [begin("write", path, log) for _ in range(3)]

    def noted() -> int:
        return log.read_bytes().count(b"\n")

    for _ in range(ROUNDS):
        wanted = noted() + dice.randrange(1, 6)
        until(lambda wanted=wanted: noted() >= wanted, "somebody writes")
        until(lambda: holder(url) != 0, "somebody has the lock")
        writing = next((each for each in processes if each.pid == holder(url)), None)
        if writing is None:
            continue
        if dice.random() < 0.3:
            writing.kill()
            processes.remove(writing)
            processes.append(begin("write", path, log))
            expire(url)
            continue
        writing.send_signal(signal.SIGSTOP)
        expire(url)
        was, pid = noted(), writing.pid
        until(lambda pid=pid: holder(url) not in (0, pid), "another takes over")
        until(lambda was=was: noted() > was, "the other one writes")
        writing.send_signal(signal.SIGCONT)
    for each in processes:
        each.kill()
        each.wait()
    expire(url)
    check(path, log)


def check(path: Path, log: Path) -> None:
    """Each position was committed once, by the one who noted it; each point shows all positions up to it."""
    lines = [line.split() for line in log.read_text().splitlines()]
    noted = {int(sequence): int(writer) for sequence, writer in lines}
    assert len(noted) == len(lines), Counter(sequence for sequence, _ in lines).most_common(1)
    assert len(set(noted.values())) > 2, "several have written"
    with Store.open(path, options=TINY, clock=ManualClock()) as store:
        points = {point.sequence: point for point in store.points(SOURCE)}
        assert {sequence + 1 for sequence in noted} <= points.keys(), "what was committed is there"
        assert sorted(points) == list(range(3, max(points) + 1, 2))
        for last, point in list(points.items())[-BLOCKS - 5 :]:
            with store.view(point) as view:
                found = view.read(1, 0, BLOCKS * BLOCK)
            for sequence in range(max(2, last - 1 - 2 * (BLOCKS - 1)), last, 2):
                block = found[offset_of(sequence) :][:BLOCK]
                writer = int(block.split(b"\n")[0].split()[1])
                assert block == stamped(sequence, writer)
                assert noted.get(sequence, writer) == writer


@pytest.mark.fault(79)
def test_who_lost_its_lock_commits_nothing_and_the_next_one_is_not_in_its_way(url: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with ExitStack() as stack:
        first = stack.enter_context(Store.create(path, options=TINY, clock=ManualClock(), catalogued_in=url))
        source = Source(first, data=100_000)
        source.write_random(2)
        source.cut()
        source.commit()
        model = source.disk.copy()
        source.write_random(2)
        source.cut()
        expire(url)
        second = stack.enter_context(Store.open(path, options=TINY, clock=ManualClock()))
        other = Source(second, name="web1")
        other.disk, other.points, other.committed = model, dict(source.points), model.copy()
        other.write_random(3)
        other.cut()
        with pytest.raises(DrengineError) as lost:
            source.commit()
        assert lost.value.kind is LOCK_LOST
        assert source.writer.failed is lost.value
        other.commit()
        source.writer.close()
        other.write_random(1)
        other.commit()
        other.check()
        other.writer.close()


@pytest.mark.fault(80)
def test_a_writer_whose_lock_could_not_be_renewed_in_time_appends_and_commits_nothing(url: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, options=TINY, clock=ManualClock(), catalogued_in=url) as store:
        source = Source(store, data=100_000)
        source.write_random(2)
        source.commit()
        source.write_random(1)
        locks = store.context.locks
        assert isinstance(locks, PostgresLocks)
        locks.monotonic = lambda: time.monotonic() + LOCK_SECONDS
        for refused in (source.write_random, source.commit):
            with pytest.raises(DrengineError) as lost:
                refused()
            assert lost.value.kind is LOCK_LOST
        source.writer.close()
        assert store.branches(SOURCE)[0].durable_sequence == source.writer.durable.sequence


@pytest.mark.parametrize(("mode", "winner", "loser"), [("promote", "2", "fenced"), ("compact", "done", None)])
def test_of_processes_that_do_it_at_once_one_wins(
    url: str,
    tmp_path: Path,
    begin: Callable[..., subprocess.Popen[str]],
    mode: str,
    winner: str,
    loser: str | None,
) -> None:
    path = tmp_path / "store"
    with Store.create(path, options=TINY, clock=ManualClock(), catalogued_in=url) as store:
        source = Source(store, data=100_000)
        for _ in range(3):
            source.write_random(4)
            source.cut()
            source.commit()
        source.writer.close()
        processes = [begin(mode, path) for _ in range(4)]
        for each in processes:
            assert each.stdout
            assert each.stdout.readline() == "ready\n"
        answers = [each.communicate("\n")[0].strip() for each in processes]
        if loser is None:
            assert set(answers) <= {"done", "maintenance-busy"}
            assert winner in answers
        else:
            assert sorted(answers) == [winner, *[loser] * 3]
            assert len(store.branches("web1")) == 2
        source.check()
