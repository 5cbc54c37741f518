"""Databases that are not what they should be: said clearly, nothing harmed."""

from __future__ import annotations

import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.failover.registry import Registry
from drengine.failover.registry.errors import RUN_ACTIVE
from drengine.failover.run import Event, JournalEntry, RunState
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.failover.registry.rig import run_named
from tests.postgres import postgres_server


def opened(url: str) -> Registry:
    return Registry.open(url, clock=SystemClock())


def test_only_its_owner_can_read_a_new_registry(tmp_path: Path) -> None:
    registry = opened(str(tmp_path / "new" / "r"))
    registry.create_run(run_named("r1", "shop"))
    for path in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    registry.close()


def test_commits_are_synchronised_to_the_disk(tmp_path: Path) -> None:
    registry = opened(str(tmp_path / "r"))
    with registry._database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    registry.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "\0",
        "mysql://x/y",
        "sqlite://",
        "sqlite:///:memory:",
        "://",
        "postgresql://[",
        "nonsense://",
        "postgresql://u:secret@127.0.0.1:1/db",
        "postgresql://u:secret@127.0.0.1/db?options=-cfsync%3Doff",
        "/proc/nowhere/r",
        "/",
    ],
)
def test_a_url_that_leads_nowhere_is_told_without_its_password(url: str) -> None:
    with pytest.raises(DrengineError, match="registry-unavailable") as refused:
        opened(url)
    assert "secret" not in str(refused.value) + refused.value.hint


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"my shopping list " * 100)
    with pytest.raises(DrengineError, match="registry-unavailable"):
        opened(str(path))
    assert path.read_bytes() == b"my shopping list " * 100


def test_many_who_open_a_new_registry_at_once_all_get_it(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def use(number: int) -> None:
        try:
            registry = opened(str(tmp_path / "r"))
            registry.create_run(run_named(f"r{number}", f"s{number}"))
            registry.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    registry = opened(str(tmp_path / "r"))
    assert len(registry.runs()) == 8
    registry.close()


def test_a_server_that_went_away_is_told_and_used_again_when_it_is_back() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server())
        registry = opened(server.fresh_database())
        stack.callback(registry.close)
        registry.create_run(run_named("r1", "shop"))
        token = registry.acquire_lease("run:r1", "me", 600).token
        server.kill()
        for attempt in (lambda: registry.run("r1"), lambda: registry.acquire_lease("x", "me", 1)):
            with pytest.raises(DrengineError, match="registry-unavailable") as refused:
                attempt()
            assert refused.value.kind.retryable
        server.start()
        assert registry.append("r1", token, JournalEntry("s", Event.INTENT, 1, 0)) == 1
        assert [entry.step for entry in registry.entries("r1")] == ["s"]


moves = st.tuples(
    st.sampled_from(("create", "finish", "reopen")), st.integers(0, 4), st.sets(st.sampled_from("abcd"), min_size=1)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, max_size=20))
@pytest.mark.fault(43)
def test_a_source_is_held_by_one_unfinished_run_and_by_none_else(schedule: list[tuple[str, int, set[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry = opened(f"{folder}/r")
        sources: dict[str, frozenset[str]] = {}
        unfinished: set[str] = set()
        for move, number, wanted in schedule:
            id = f"r{number}"
            if move == "create":
                free = id not in sources and not any(wanted & sources[each] for each in unfinished)
                if accepted(registry.create_run, run_named(id, *sorted(wanted))):
                    assert free
                    sources[id] = frozenset(wanted)
                    unfinished.add(id)
                else:
                    assert not free
            elif id in sources:
                token = registry.acquire_lease(f"run:{id}", "me", 60).token
                state = RunState.FINISHED if move == "finish" else RunState.RUNNING
                free = not any(sources[id] & sources[each] for each in unfinished - {id})
                if accepted(registry.update_run, id, token=token, state=state):
                    assert free or state is RunState.FINISHED
                    (unfinished.discard if move == "finish" else unfinished.add)(id)
                else:
                    assert not free
                    assert state is RunState.RUNNING
            assert {each.id for each in registry.runs(unfinished=True)} == unfinished
        registry.close()


def accepted(attempt: Callable[..., object], *arguments: object, **more: object) -> bool:
    try:
        attempt(*arguments, **more)
    except DrengineError as error:
        assert error.kind is RUN_ACTIVE
        return False
    return True
