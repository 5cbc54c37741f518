"""The store's recorded writes, cut off at persistence points: old or new, never mixed; nothing acknowledged is lost.

A bounded part of the campaign (`python -m tests.crash.campaign`), with the seeds printed.
`make campaigns` takes four times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.campaign import crash, record_life, scratch
from tests.crash.recording import Names, Operation, Recording, Sync, strace_missing
from tests.crash.workload import ENCRYPTED
from tests.store.harness import encrypted

SEED = 20261123
ROUNDS = 6


class Life(NamedTuple):
    """A recorded life of a store, and where its crashes are laid out."""

    recording: Recording
    directory: Path


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    if missing := strace_missing():
        pytest.skip(f"file operations cannot be recorded: {missing}")
    with scratch() as directory:
        yield Life(record_life(SEED, directory, rounds=ROUNDS), directory)


PARTS = [1, pytest.param(4, marks=pytest.mark.campaign)]
"""How many times as many crash states."""


@pytest.mark.timeout(600)
@pytest.mark.fault(1)
@pytest.mark.fault(4)
@pytest.mark.fault(8)
@pytest.mark.fault(9)
@pytest.mark.parametrize("parts", PARTS)
def test_wherever_the_power_fails_what_was_acknowledged_is_there_and_nothing_is_mixed(
    life: Life, capsys: pytest.CaptureFixture[str], parts: int
) -> None:
    share = 0.06 * parts
    report = crash(life.recording, life.directory, SEED, rounds=ROUNDS, reorderings=2, share=share, deep_share=0.12)
    with capsys.disabled():
        print(
            f" [seed {SEED}: {report.operations} operations, {report.states} crash states,"
            f" {report.deep} of them gone on with and rebuilt]",
            end="",
        )
    assert not report.failures, "\n".join(report.failures)
    assert report.states > 100 * parts
    assert report.deep > 6 * parts
    assert report.rebuilt == 0, "a crash made the catalogue unreadable"


@pytest.mark.timeout(600)
@pytest.mark.fault(4)
@pytest.mark.fault(8)
@pytest.mark.parametrize("parts", PARTS)
def test_so_it_is_where_the_store_is_encrypted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parts: int
) -> None:
    if missing := strace_missing():
        pytest.skip(f"file operations cannot be recorded: {missing}")
    monkeypatch.setenv(ENCRYPTED, "1")
    with scratch() as directory, encrypted():
        life = record_life(SEED, directory, rounds=3)
        assert files_named(life, ".seg") and files_named(life, "web"), "its keyring"
        report = crash(life, directory, SEED, rounds=3, reorderings=1, share=0.03 * parts, deep_share=0.12)
    with capsys.disabled():
        print(f" [{report.states} crash states, {report.deep} of them gone on with and rebuilt]", end="")
    assert not report.failures, "\n".join(report.failures)
    assert report.states > 35 * parts and report.deep > 2 * parts and not report.rebuilt


def files_named(recording: Recording, ending: str) -> set[int]:
    return {
        inode
        for operation in recording.operations
        if isinstance(operation, Names)
        for _, name, inode in operation.changes
        if inode is not None and name.endswith(ending)
    }


@pytest.mark.parametrize("forgotten", ["segments", "catalogue log", "folders"])
def test_a_store_that_forgot_to_sync_would_be_caught(life: Life, forgotten: str) -> None:
    recording = life.recording
    inodes = {
        "segments": files_named(recording, ".seg"),
        "catalogue log": files_named(recording, "-wal"),
        "folders": set(recording.folders) - {0},
    }[forgotten]
    assert inodes

    def is_forgotten(operation: Operation) -> bool:
        return isinstance(operation, Sync) and operation.inode in inodes

    careless = [operation for operation in recording.operations if not is_forgotten(operation)]
    assert len(careless) < len(recording.operations)
    report = crash(
        recording._replace(operations=careless),
        life.directory,
        SEED,
        rounds=ROUNDS,
        reorderings=0,
        share=0.3,
        deep_share=0.0,
    )
    assert any("Broken" in failure or "[damaged]" in failure for failure in report.failures)
