"""Databases that are not what they should be: said clearly, nothing harmed."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from drengine.failover.registry import Registry
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.failover.registry.rig import run_named


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


def test_a_registry_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    opened(str(tmp_path / "r")).close()
    with sqlite3.connect(tmp_path / "r") as connection:
        connection.execute("UPDATE drengine_version SET version = 99")
    connection.close()
    with pytest.raises(DrengineError, match="version 99") as refused:
        opened(str(tmp_path / "r"))
    assert "newer" in refused.value.hint


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
