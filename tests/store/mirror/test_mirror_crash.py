"""The copy's recorded writes, cut off at persistence points: a store at every one of them, and gone on with."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from drengine.store.identity import IDENTITY_NAME
from drengine.store.mirror import Mirror, Pace, opened_copy
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.crash.campaign import moments, scratch
from tests.crash.disk import Tree
from tests.crash.recording import Names, Operation, Recording, Said, Sync, record, strace_missing
from tests.store.harness import TINY, Disk, check_point
from tests.store.mirror.crash_child import COPY, begun, live

SEED, STEPS = 20261130, 9


class Life(NamedTuple):
    """A recorded life of a copy, its original, and what each point shows."""

    recording: Recording
    directory: Path
    disks: dict[str, Disk]
    told: list[set[str]]


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    if missing := strace_missing():
        pytest.skip(f"file operations cannot be recorded: {missing}")
    with scratch() as directory:
        (directory / "live").mkdir()
        arguments = ["-m", "tests.store.mirror.crash_child", str(directory / "live"), str(SEED), str(STEPS)]
        recording = record(arguments, directory / "live", directory / "trace")
        said = b"".join(each.text for each in recording.operations if isinstance(each, Said))
        lines = [json.loads(line) for line in said.splitlines()]
        told = [set(result) for what, _, result in lines if what == "done"]
        source = begun(directory / "told-again", SEED)
        for step in range(STEPS):
            live(source, step)
        source.writer.close()
        source.store.close()
        yield Life(recording, directory, source.points, told)


def lay_out(tree: Tree, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in sorted(tree.items()):
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)


def judge(life: Life, tree: Tree, begun_steps: int, done: int, *, deeply: bool) -> None:
    """What a crash left is a copy as it was before the step or after it, or on the way; the mirror goes on with it."""
    crashed = life.directory / "crashed"
    lay_out(tree, crashed)
    before = life.told[done - 1] if done else set()
    after = life.told[begun_steps - 1] if begun_steps else set()
    if not (crashed / COPY / IDENTITY_NAME).exists():
        assert not done, "an acknowledged copy is gone"
    else:
        with Store.open(crashed / COPY, options=TINY, clock=ManualClock()) as copy:
            points = [point for source in copy.sources() for point in copy.points(source.name)]
            found = {point.id for point in points}
            assert found <= before | after and found >= before & after, (found, before, after)
            for point in points:
                assert not point.damaged
                check_point(copy, point, life.disks[point.id])
    if deeply:
        go_on(life, crashed / COPY)


def go_on(life: Life, path: Path) -> None:
    clock = ManualClock()
    with (
        Store.open(life.directory / "origin", options=TINY, clock=clock, read_only=True) as origin,
        opened_copy(origin, path, options=TINY, clock=clock) as copy,
    ):
        mirror = Mirror(origin, copy, Pace(clock))
        while not mirror.run().complete:
            pass
        mirror.close()
        assert {point.id for point in copy.points("web1")} == {point.id for point in origin.points("web1")}
        assert not copy.scrub().records_damaged
        for point in copy.points("web1"):
            check_point(copy, point, life.disks[point.id])


def crash(life: Life, recording: Recording, *, share: float, deep_share: float) -> tuple[int, list[str]]:
    chosen, states, failures = random.Random(SEED), 0, []
    for moment in moments(recording, SEED, reorderings=2):
        if chosen.random() >= share:
            continue
        states += 1
        try:
            judge(life, moment.tree, moment.begun, moment.done, deeply=chosen.random() < deep_share)
        except Exception as error:  # noqa: BLE001 - whatever is wrong is a finding
            failures.append(f"operation {moment.operation}, {moment.variant}: {type(error).__name__}: {error}")
            if len(failures) > 5:
                break
    return states, failures


@pytest.mark.timeout(600)
@pytest.mark.fault(1)
@pytest.mark.fault(4)
def test_wherever_the_power_fails_the_copy_is_a_store_and_the_mirror_goes_on(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    states, failures = crash(life, life.recording, share=0.12, deep_share=0.1)
    with capsys.disabled():
        print(f" [seed {SEED}: {states} crash states of a copy]", end="")
    assert not failures, "\n".join(failures)
    assert states > 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("forgotten", [".seg", "-wal"])
def test_a_mirror_that_forgot_to_sync_would_be_caught(life: Life, forgotten: str) -> None:
    inodes = {
        inode
        for operation in life.recording.operations
        if isinstance(operation, Names)
        for _, name, inode in operation.changes
        if inode is not None and name.endswith(forgotten)
    }
    assert inodes

    def is_forgotten(operation: Operation) -> bool:
        return isinstance(operation, Sync) and operation.inode in inodes

    careless = life.recording._replace(
        operations=[operation for operation in life.recording.operations if not is_forgotten(operation)]
    )
    _, failures = crash(life, careless, share=0.06, deep_share=0.0)
    assert failures
