"""Any order of writes, cuts, crashes, branches, retention, compaction and rebuilds, against a model in memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drengine.model.points import PointKind
from drengine.store.care.retention import RetentionPolicy
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import (
    MEMORY_DIRECTORY,
    TINY,
    Disk,
    EncryptedMachine,
    check_head,
    check_point,
    crash,
    geometry,
    mark,
)
from tests.store.harness import batch as make_batch

SIZES = {"root": 150_000, "data": 70_001}
POLICIES = (RetentionPolicy(), RetentionPolicy(0, ()), RetentionPolicy(keep_all_seconds=5, steps=()))


class StoreMachine(RuleBasedStateMachine):
    """One source; the active branch has a writer; drills come and go."""

    def __init__(self) -> None:
        super().__init__()
        parent = MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
        self.path = Path(tempfile.mkdtemp(prefix="drengine-machine-", dir=parent))
        self.clock = ManualClock()
        self.store = Store.create(self.path / "s", options=TINY, clock=self.clock)
        self.store.ensure_source("web1")
        self.generation, self.branch = 1, 1
        self.writer = None
        self.durable: dict[int, tuple[int, Disk]] = {1: (0, Disk())}
        self.disk = Disk()
        self.tails: list[list[tuple[int, Disk, str | None]]] = [[]]
        """For each writer since the last commit, the states it appended; a rebuild may find one in the files."""
        self.pending: dict[str, Disk] = {}
        self.points: dict[str, Disk] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def open_writer(self):
        if self.writer is None:
            self.writer = self.store.writer("web1", generation=self.generation)
            sequence, disk = self.durable[self.branch]
            assert self.writer.durable.sequence == sequence
            self.disk, self.pending = disk.copy(), {}
            self.tails.append([])
        return self.writer

    def appended(self, sequence: int, point: str | None = None) -> None:
        self.tails[-1].append((sequence, self.disk.copy(), point))

    @initialize()
    def declare(self) -> None:
        self.reshape(SIZES["root"], SIZES["data"])
        self.commit()

    @rule(root=st.sampled_from([150_000, 66_000, 200_000]), data=st.sampled_from([70_001, 0, 12_345]))
    def reshape(self, root: int, data: int) -> None:
        writer, volumes = self.open_writer(), geometry(root=root, data=data)
        sequence = writer.appended_sequence + 1
        writer.append_geometry(sequence, mark(sequence), volumes, generation=self.generation)
        self.disk.reshape(volumes)
        self.appended(sequence)

    @rule(data=st.data(), fill=st.integers(1, 255), zero=st.booleans())
    def write(self, data, fill: int, zero: bool) -> None:
        writer = self.open_writer()
        volumes = [volume for volume in self.disk.geometry if volume.size_bytes]
        writes = []
        for _ in range(data.draw(st.integers(1, 3))):
            volume = data.draw(st.sampled_from(volumes))
            offset = data.draw(st.integers(0, volume.size_bytes - 1))
            length = data.draw(st.integers(1, min(40_000, volume.size_bytes - offset)))
            content = length if zero else bytes((fill + i) & 255 for i in range(251)) * (length // 251 + 1)
            writes.append((volume.volume, offset, content if zero else content[:length]))
        sequence = writer.appended_sequence + 1
        writer.append_batch(sequence, mark(sequence), make_batch(*writes), generation=self.generation)
        for write in writes:
            self.disk.write(*write)
        self.appended(sequence)

    @rule(seconds=st.integers(0, 20))
    def cut(self, seconds: int) -> None:
        from drengine.model.points import Cut

        writer = self.open_writer()
        self.clock.advance(seconds)
        sequence = writer.appended_sequence + 1
        cut = Cut(self.clock.now_ns(), PointKind.QUIET)
        writer.append_cut(sequence, mark(sequence), cut, generation=self.generation)
        self.pending[f"{self.branch}-{sequence}"] = self.disk.copy()
        self.appended(sequence, f"{self.branch}-{sequence}")

    @rule()
    def commit(self) -> None:
        writer = self.open_writer()
        before = writer.durable.sequence
        durable = writer.commit(generation=self.generation)
        assert durable.sequence == writer.appended_sequence
        self.durable[self.branch] = (durable.sequence, self.disk.copy())
        self.points.update(self.pending)
        self.pending = {}
        if durable.sequence != before:
            self.tails = [[]]

    @rule(kill=st.booleans())
    def end_writer(self, kill: bool) -> None:
        if self.writer is None:
            return
        if kill:
            crash(self.writer)
        else:
            self.writer.close()
        self.writer = None

    @rule()
    def reopen_store(self) -> None:
        self.end_writer(kill=True)
        self.store.close()
        self.store = Store.open(self.path / "s", options=TINY, clock=self.clock)

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def promote(self, data) -> None:
        point = data.draw(st.sampled_from(self.kept()))
        self.end_writer(kill=False)
        self.tails = [[]]
        info = self.store.promote(point, expected_generation=self.generation)
        self.generation, self.branch = info.generation, info.number
        self.durable[info.number] = (point.sequence, self.points[point.id].copy())

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def drill(self, data) -> None:
        point = data.draw(st.sampled_from(self.kept()))
        info = self.store.create_branch(point, role="drill")
        disk = self.points[point.id].copy()
        view = self.store.writable("web1", info.number, generation=info.generation)
        for volume in disk.geometry:
            for number in range(3 if volume.size_bytes else 0):
                offset = (number * 31_337) % volume.size_bytes
                content = bytes([number + 7]) * min(25_000, volume.size_bytes - offset)
                view.write(volume.volume, offset, content)
                disk.write(volume.volume, offset, content)
                assert view.read(volume.volume, 0, volume.size_bytes) == disk.data[volume.volume]
        made = view.cut(PointKind.WRITE_ORDER)
        view.close()
        self.points[made.id] = disk
        self.durable[info.number] = (made.sequence, disk.copy())
        if data.draw(st.booleans()):
            self.store.close_branch("web1", info.number)
            self.durable.pop(info.number)

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def pin(self, data) -> None:
        point = data.draw(st.sampled_from(self.kept()))
        (self.store.unpin if point.pinned else self.store.pin)(point)

    @rule(policy=st.sampled_from(POLICIES), seconds=st.integers(0, 10))
    def retain(self, policy: RetentionPolicy, seconds: int) -> None:
        self.clock.advance(seconds)
        kept = {point.id: point for point in self.store.points("web1")}
        removed = self.store.retain(policy, self.clock.now_ns())
        assert not any(kept[point.id].pinned for point in removed)
        for point in removed:
            del self.points[point.id]
        for info in self.store.branches("web1"):
            if info.closed:
                self.durable.pop(info.number, None)

    @rule()
    def compact(self) -> None:
        report = self.store.compact()
        assert report.complete and not report.segments_skipped

    @rule()
    def scrub(self) -> None:
        report = self.store.scrub()
        assert not report.records_damaged and not report.points_damaged and not report.segments_repaired

    @rule()
    def rebuild(self) -> None:
        self.end_writer(kill=True)
        self.store.close()
        report = Store.rebuild(self.path / "s", options=TINY, clock=self.clock)
        assert report.lost == [] or report.manifests == 0, report
        self.store = Store.open(self.path / "s", options=TINY, clock=self.clock)
        row = self.store.context.catalogue.branch("web1", self.branch)
        sequence, _ = self.durable[self.branch]
        if row.durable_sequence != sequence:
            # Whole records that were never committed are still a prefix of the stream.
            for tail in self.tails:
                found = [state for state in tail if state[0] <= row.durable_sequence]
                if found and found[-1][0] == row.durable_sequence and self.is_rebuilt_from(found):
                    self.durable[self.branch] = (found[-1][0], found[-1][1].copy())
                    self.points.update({name: disk for _, disk, name in found if name})
                    break
            else:
                raise AssertionError("the rebuilt head is not a prefix of any stream")
        self.tails = [[]]

    def is_rebuilt_from(self, tail: list[tuple[int, Disk, str | None]]) -> bool:
        points = set(self.points) | {name for _, _, name in tail if name}
        if {point.id for point in self.store.points("web1")} != points:
            return False
        try:
            check_head(self.store, "web1", self.branch, tail[-1][1])
        except AssertionError:
            return False
        return True

    def kept(self):
        return sorted(self.store.points("web1"), key=lambda point: (point.branch, point.sequence))

    @invariant()
    def points_are_those_of_the_model(self) -> None:
        points = self.store.points("web1")
        assert [point.id for point in points if point.damaged] == []
        assert sorted(point.id for point in points) == sorted(self.points)
        for point in points:
            check_point(self.store, point, self.points[point.id])
        for branch, (sequence, disk) in self.durable.items():
            assert self.store.context.catalogue.branch("web1", branch).durable_sequence == sequence
            check_head(self.store, "web1", branch, disk)


StoreMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestStoreMachine = pytest.mark.fault(4)(StoreMachine.TestCase)


class EncryptedStoreMachine(EncryptedMachine, StoreMachine):
    """The same on an encrypted store, a few times."""


EncryptedStoreMachine.TestCase.settings = settings(StoreMachine.TestCase.settings, max_examples=8)
TestEncryptedStoreMachine = EncryptedStoreMachine.TestCase
