"""Any order of what a store may live through, mirrored at any moment: every point of the copy shows what it showed.

The copy's storage fails at any call, its mirror is killed and begun again, somebody reads the copy and drills there.
"""

from __future__ import annotations

import errno
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine.store.blobs import FaultyStorage, LocalStorage
from drengine.store.blobs.faulty import Fault, fail_from
from drengine.store.care.retention import RetentionPolicy
from drengine.store.copies import LOCAL_BRANCHES
from drengine.store.mirror import Mirror, MirrorOptions, Pace, opened_copy
from drengine.store.store import Store
from drengine.store.views.view import View
from tests.store.harness import KEKS, TINY, Disk, EncryptedMachine, check_head, check_point
from tests.store.test_store_machine import StoreMachine


class MirrorMachine(StoreMachine):
    """A store, and a copy of it."""

    keks = None

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, Disk] = {}
        """What every point showed that there has ever been."""
        self.was_rebuilt = False
        self.local: dict[int, Disk] = {}
        self.views: list[tuple[View, Disk]] = []
        with opened_copy(self.store, self.path / "c", keks=self.keks, options=TINY, clock=self.clock):
            pass
        self.open_copy()

    def open_copy(self) -> None:
        self.storage = FaultyStorage(LocalStorage(self.path / "c"))
        self.copy = Store.open(self.path / "c", options=TINY, clock=self.clock, storage=self.storage, keks=self.keks)
        self.mirror: Mirror | None = None

    def close_copy(self) -> None:
        for view, _ in self.views:
            view.close()
        self.views = []
        if self.mirror:
            self.mirror.close()
        self.copy.close()

    def teardown(self) -> None:
        self.close_copy()
        super().teardown()

    def mirroring(self, stage_bytes: int) -> Mirror:
        # The original is opened anew by other rules.
        if self.mirror is None or self.mirror._origin is not self.store.context:
            if self.mirror:
                self.mirror.close()
            # What is gone after a rebuild may have been retired since: the mirror asks, and is told so.
            options = MirrorOptions(stage_bytes=stage_bytes, accept_rebuilt=self.was_rebuilt)
            self.mirror = Mirror(self.store, self.copy, Pace(self.clock), options)
        return self.mirror

    @rule()
    def rebuild(self) -> None:
        super().rebuild()
        self.was_rebuilt = True

    @initialize()
    def declare(self) -> None:
        super().declare()

    @rule(stage_bytes=st.sampled_from([1, 50_000, 1 << 20]))
    def mirror_pass(self, stage_bytes: int) -> None:
        report = self.mirroring(stage_bytes).run()
        assert not report.damaged
        if stage_bytes == 1 << 20:
            assert report.complete or self.views or self.local

    @rule()
    def mirror_all(self) -> None:
        for _ in range(400):
            if self.mirroring(1 << 20).run().complete:
                break
        else:
            raise AssertionError("the copy is never complete")
        mine = {point.id for point in self.copy.points("web1") if point.branch < LOCAL_BRANCHES}
        assert mine >= set(self.points)
        if not self.views and not self.local:
            assert mine == set(self.points)
        for branch, (sequence, disk) in self.durable.items():
            assert self.copy.context.catalogue.branch("web1", branch).durable_sequence == sequence
            check_head(self.copy, "web1", branch, disk)
        assert self.copy.source("web1").generation == self.generation
        if not self.views and not self.local:
            assert self.files("c") == self.files("s")

    def files(self, store: str) -> set[str]:
        """Segment files that the catalogue names (what a crash left behind may lie beside them)."""
        opened = self.copy if store == "c" else self.store
        return {
            f"{row.branch}/{row.segment}.{row.revision}:{row.committed_length}:{row.length}"
            for branch in opened.context.catalogue.branches("web1")
            for row in opened.context.catalogue.segments("web1", branch.branch)
            if branch.branch < LOCAL_BRANCHES
        }

    @rule(call=st.integers(1, 40), applied=st.booleans(), stage_bytes=st.sampled_from([1, 1 << 20]))
    def mirror_broken(self, call: int, applied: bool, stage_bytes: int) -> None:
        self.storage.plan = fail_from(len(self.storage.calls) + call, Fault(errno.EIO, int(applied)), count=1)
        with suppress(DrengineError):
            self.mirroring(stage_bytes).run()
        self.storage.plan = None

    @rule()
    def kill_mirror(self) -> None:
        self.close_copy()
        self.open_copy()

    @rule()
    def rebuild_copy(self) -> None:
        self.close_copy()
        report = Store.rebuild(self.path / "c", options=TINY, clock=self.clock, keks=self.keks)
        assert report.lost == [] or not report.manifests, report
        self.open_copy()
        assert self.copy.copy_of

    @precondition(lambda self: len(self.views) < 3)
    @rule(data=st.data())
    def read_copy(self, data) -> None:
        points = self.points_of_copy()
        if points:
            point = data.draw(st.sampled_from(points))
            self.views.append((self.copy.view(point), self.history[point.id]))

    @precondition(lambda self: self.views)
    @rule()
    def end_reading(self) -> None:
        self.views.pop()[0].close()

    @precondition(lambda self: len(self.local) < 2)
    @rule(data=st.data())
    def drill_at_copy(self, data) -> None:
        points = self.points_of_copy()
        if not points:
            return
        point = data.draw(st.sampled_from(points))
        info = self.copy.create_branch(point)
        assert info.number >= LOCAL_BRANCHES
        disk = self.history[point.id].copy()
        with self.copy.writable("web1", info.number, generation=info.generation) as view:
            for volume in disk.geometry:
                if volume.size_bytes:
                    content = b"drill" * 100
                    view.write(volume.volume, 0, content)
                    disk.write(volume.volume, 0, content)
            view.cut(PointKind.WRITE_ORDER)
        self.local[info.number] = disk

    @precondition(lambda self: self.local)
    @rule(data=st.data())
    def end_drill_at_copy(self, data) -> None:
        number = data.draw(st.sampled_from(sorted(self.local)))
        self.copy.close_branch("web1", number)
        del self.local[number]

    @rule()
    def maintain_copy(self) -> None:
        self.copy.retain(RetentionPolicy(0, ()), self.clock.now_ns())
        self.copy.compact()
        assert not self.copy.scrub().records_damaged

    def points_of_copy(self):
        if not any(source.name == "web1" for source in self.copy.sources()):
            return []
        return [point for point in self.copy.points("web1") if point.branch < LOCAL_BRANCHES]

    @invariant()
    def every_point_of_the_copy_shows_what_it_showed(self) -> None:
        self.history |= {name: disk.copy() for name, disk in self.points.items() if name not in self.history}
        for point in self.points_of_copy():
            assert not point.damaged, point.id
            check_point(self.copy, point, self.history[point.id])
        for view, disk in self.views:
            for volume in disk.geometry:
                assert view.read(volume.volume, 0, volume.size_bytes) == disk.data[volume.volume]
        for number, disk in self.local.items():
            check_head(self.copy, "web1", number, disk)


MirrorMachine.TestCase.settings = settings(StoreMachine.TestCase.settings, max_examples=20, stateful_step_count=35)
TestMirrorMachine = pytest.mark.fault(4)(MirrorMachine.TestCase)


class EncryptedMirrorMachine(EncryptedMachine, MirrorMachine):
    """The same with an encrypted store, a few times."""

    keks = KEKS


EncryptedMirrorMachine.TestCase.settings = settings(MirrorMachine.TestCase.settings, max_examples=4)
TestEncryptedMirrorMachine = EncryptedMirrorMachine.TestCase
