"""Retention lock: nothing opens it but time, and no clock that anybody can set is that time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drengine.model.errors import DrengineError
from drengine.store.care.lock_policy import LockPolicy
from drengine.store.care.retention import RetentionPolicy
from drengine.store.care.retire import Keeping
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import KEKS, MEMORY_DIRECTORY, TINY, Source, check_point, scratch

NOTHING = RetentionPolicy(0, ())
HOUR, DAY = 3600, 86400


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory."""
    with scratch() as path:
        yield path


def ids(store: Store) -> list[str]:
    return [point.id for point in store.points("web1")]


def retain(store: Store, lock: str | None = None) -> list[str]:
    policy = None if lock is None else LockPolicy.parse(lock)
    removed = store.retain(lambda _: Keeping(NOTHING, lock=policy), store.context.clock.now_ns())
    return [point.id for point in removed]


def points(store: Store, source: Source, count: int, seconds: float) -> list[str]:
    names = []
    for _ in range(count):
        source.write_random(2)
        names.append(source.cut())
        source.commit()
        store.context.clock.advance(seconds)
    return names


def made(path: Path, **options: object) -> tuple[Store, Source]:
    store = Store.create(path / "store", options=TINY, clock=ManualClock(), **options)  # type: ignore[arg-type]
    return store, Source(store, root=200_000)


def test_every_point_stays_for_its_time_and_goes_after_it(tmp_path: Path) -> None:
    store, source = made(tmp_path)
    names = points(store, source, 3, 60)
    assert retain(store, "1d") == []
    store.context.clock.advance(DAY - 200)
    assert retain(store) == []
    assert store.locked_seconds("web1")[names[0]] <= 200
    store.compact()
    source.check()
    store.context.clock.advance(300)
    assert retain(store) == names[:2]


def test_one_an_hour_is_locked_and_the_others_are_thinned(tmp_path: Path) -> None:
    store, source = made(tmp_path)
    for _ in range(5):
        points(store, source, 6, 600)
        retain(store, "every 1h for 1d")
    assert len(store.locked_seconds("web1")) == 5
    points(store, source, 1, 0)
    retain(store)
    assert set(ids(store)) == {*store.locked_seconds("web1"), ids(store)[-1]}
    source.points = {name: disk for name, disk in source.points.items() if name in ids(store)}
    store.compact()
    source.check()


def test_no_jump_of_a_wall_clock_and_no_boot_opens_it(tmp_path: Path) -> None:
    store, source = made(tmp_path)
    clock = store.context.clock
    assert isinstance(clock, ManualClock)
    names = points(store, source, 3, 60)
    retain(store, "1d")
    for jump in (400 * DAY, -900 * DAY, 10_000 * DAY):
        clock.jump_wall(jump)
        assert retain(store) == []
    clock.boot, clock._monotonic = "another boot", 100 * DAY  # a host that has run for long
    assert retain(store) == []
    clock.boot, clock._monotonic = "a third boot", 0.0
    clock.advance(DAY / 2)
    assert retain(store) == []
    assert set(store.locked_seconds("web1")) == set(names)


def test_a_lock_is_made_longer_never_shorter(tmp_path: Path) -> None:
    store, source = made(tmp_path)
    (name,) = points(store, source, 1, 60)
    retain(store, "1d")
    retain(store, "1h")
    retain(store, "")
    assert store.locked_seconds("web1")[name] > DAY - 60
    point = store.points("web1")[0]
    assert store.lock(point, HOUR) > DAY - 60
    assert store.lock(point, 3 * DAY) == 3 * DAY
    retain(store, "1h")
    retain(store, "2h")
    assert store.locked_seconds("web1")[name] > 3 * DAY


def test_a_closed_branch_and_a_retired_source_keep_what_is_locked(tmp_path: Path) -> None:
    store, source = made(tmp_path)
    names = points(store, source, 3, 60)
    retain(store, "1d")
    promoted = store.promote(store.points("web1")[0], expected_generation=1)
    drill = store.create_branch(store.points("web1")[-1])
    with store.writable("web1", drill.number, generation=drill.generation) as view:
        view.write(1, 0, b"x")
        made_there = view.cut(source.points and next(iter(store.points("web1"))).kind)
    store.lock(store.find_point("web1", _selector(f"{drill.number}-{made_there.sequence}")), DAY)
    store.close_branch("web1", drill.number)
    store.retain(lambda _: Keeping(NOTHING, silent_seconds=1e9), store.context.clock.now_ns())
    store.compact()
    assert set(ids(store)) >= {*names, f"{drill.number}-{made_there.sequence}"}
    assert promoted.number == 2
    for name in names:
        check_point(store, source.point(name), source.points[name])


def _selector(text: str):  # type: ignore[no-untyped-def]
    from drengine.model.points import PointSelector

    return PointSelector.parse(text)


def test_keys_of_locked_points_are_not_forgotten(tmp_path: Path) -> None:
    store, source = made(tmp_path, keks=KEKS)
    points(store, source, 2, 60)
    retain(store, "1h")
    source.writer.close()
    with pytest.raises(DrengineError, match="point-locked"):
        store.erase("web1")
    store.context.clock.advance(2 * HOUR)
    retain(store, "")
    assert store.erase("web1") == 1


def test_a_rebuild_keeps_locks_and_their_clock(tmp_path: Path) -> None:
    store, source = made(tmp_path)
    names = points(store, source, 3, 60)
    retain(store, "1d")
    store.lock(source.point(names[0]), 2 * DAY)
    before = store.locked_seconds("web1")
    source.writer.close()
    clock = store.context.clock
    store.close()
    Store.rebuild(tmp_path / "store", options=TINY, clock=clock)
    with Store.open(tmp_path / "store", options=TINY, clock=clock) as rebuilt:
        assert rebuilt.locked_seconds("web1") == before
        clock.advance(DAY - 600)  # type: ignore[attr-defined]
        assert retain(rebuilt) == []


@pytest.mark.parametrize("text", ["soon", "7", "every 1h", "every 2d for 1d", "-1d", "every 0 for", "999999999w"])
def test_a_policy_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DrengineError, match="bad-lock"):
        LockPolicy.parse(text)


class LockMachine(RuleBasedStateMachine):
    """Whatever is set, jumped, booted and asked for: a locked point is there for its time of running."""

    def __init__(self) -> None:
        super().__init__()
        parent = MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
        self.path = Path(tempfile.mkdtemp(prefix="drengine-lock-", dir=parent))
        self.clock = ManualClock()
        self.store = Store.create(self.path / "s", options=TINY, clock=self.clock)
        self.source = Source(self.store, root=100_000)
        self.ran = 0.0
        """How long the host has run in all."""
        self.boots = 0
        self.until: dict[str, float] = {}

    def teardown(self) -> None:
        self.source.writer.close()
        self.store.close()
        shutil.rmtree(self.path, ignore_errors=True)

    @initialize()
    def begin(self) -> None:
        self.cut()

    @rule()
    def cut(self) -> None:
        self.source.write_random(1)
        self.source.cut()
        self.source.commit()

    @rule(seconds=st.sampled_from([1, 60, HOUR, DAY]))
    def run(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.ran += seconds

    @rule(days=st.integers(-1000, 1000))
    def jump(self, days: int) -> None:
        self.clock.jump_wall(days * DAY)

    @rule(name=st.text("ab", min_size=1, max_size=3), since=st.sampled_from([0, 1, DAY, 1000 * DAY]))
    def boot(self, name: str, since: int) -> None:
        self.source.writer.close()
        self.store.close()
        # No boot has the identity of another: one that came again further on would be the same, running.
        self.boots += 1
        self.clock.boot, self.clock._monotonic = f"{name} {self.boots}", float(since)
        self.store = Store.open(self.path / "s", options=TINY, clock=self.clock)
        self.source.store = self.store
        self.source.writer = self.store.writer("web1", generation=1)

    @rule(lock=st.sampled_from([None, "", "1h", "1d", "every 1h for 1d", "3d"]))
    def retain(self, lock: str | None) -> None:
        retain(self.store, lock)
        self.note()

    @precondition(lambda self: ids(self.store))
    @rule(data=st.data(), seconds=st.sampled_from([60, HOUR, 2 * DAY]))
    def lock(self, data: st.DataObject, seconds: int) -> None:
        self.store.lock(data.draw(st.sampled_from(self.store.points("web1"))), seconds)
        self.note()

    @rule()
    def compact(self) -> None:
        self.store.compact()

    def note(self) -> None:
        """What the store has promised by now."""
        for name, left in self.store.locked_seconds("web1").items():
            assert left >= self.until.get(name, 0) - self.ran, "it was made shorter"
            self.until[name] = max(self.until.get(name, 0.0), self.ran + left - 1)

    @invariant()
    def what_is_locked_is_there(self) -> None:
        there = set(ids(self.store))
        for name, until in self.until.items():
            assert name in there or until <= self.ran, name
        for point in self.store.points("web1"):
            check_point(self.store, point, self.source.points[point.id])


LockMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestLockMachine = pytest.mark.fault(13)(LockMachine.TestCase)
