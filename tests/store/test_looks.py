"""What a process remembers of its last looks spares work, and changes nothing of what is decided."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from drengine.model.points import PointKind
from drengine.store.care.lock_policy import LockPolicy
from drengine.store.care.looks import WHOLE_SECONDS, Looks
from drengine.store.care.retention import RetentionPolicy
from drengine.store.care.retire import Keeping
from drengine.store.catalogue.rows import BranchRow, PointRow
from drengine.store.locks import Lock, Position
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source, scratch

POLICIES = [RetentionPolicy.parse(text) for text in ("all for 10s, every 10s for 1m, every 30s for 4m", "all for 30s")]
SOURCES = ("web1", "web2")


class Twin:
    """One of two stores with the same history: with or without memory of its looks. Its rows have no data."""

    def __init__(self, path: Path, clock: ManualClock, *, remembers: bool) -> None:
        self.store = Store.create(path, options=TINY, clock=clock)
        self.clock, self.remembers = clock, remembers
        self.looks = Looks()
        self.policy, self.locking = POLICIES[0], LockPolicy()
        self.silent: dict[str, float] = {}
        self.leases: list[Lock] = []
        for source in SOURCES:
            self.store.ensure_source(source)

    def act(self, dice: random.Random) -> None:
        """Something happens."""
        catalogue, source = self.store.context.catalogue, dice.choice(SOURCES)
        points, branches = catalogue.points(source), catalogue.branches(source)
        match dice.choice(
            ["cut"] * 8 + ["change", "policy", "lease", "release", "release", "branch", "close", "silent", "lock"]
        ):
            case "cut":
                self._cut(source, dice)
            case "change" if points:
                row = dice.choice(points)
                changed = dice.choice([row._replace(pinned=1 - row.pinned), row._replace(damaged=1 - row.damaged)])
                with catalogue.transaction(source):
                    catalogue.put(changed)
            case "policy":
                self.policy = dice.choice(POLICIES)
            case "lease" if points:
                row = dice.choice(points)
                self.leases.append(self.store.context.locks.lease(Position(source, row.branch, row.sequence)))
            case "release" if self.leases:
                self.leases.pop(dice.randrange(len(self.leases))).release()
            case "branch" if points:
                self._branch(source, dice.choice(points), branches, dice)
            case "close":
                with catalogue.transaction(source):
                    catalogue.put(dice.choice(branches)._replace(closed=1))
            case "silent":
                self.silent[source] = dice.choice([0.0, 20.0, 300.0])
            case "lock" if dice.random() < 0.2:
                self.locking = dice.choice([LockPolicy(), LockPolicy(0, 20), LockPolicy(10, 60)])

    def _cut(self, source: str, dice: random.Random) -> None:
        catalogue = self.store.context.catalogue
        row = catalogue.branch(source, catalogue.source(source).active_branch)
        sequence, now_ns = row.durable_sequence + 1, self.clock.now_ns()
        skew_ns = dice.choice([0, 0, 0, -40, 7, 500]) * 1_000_000_000
        point = PointRow(
            source, row.branch, sequence, now_ns + skew_ns, now_ns, PointKind.QUIET, "", row.geometry, 0, 0, 0, ""
        )
        with catalogue.transaction(source):
            catalogue.put(point, row._replace(durable_sequence=sequence))

    def _branch(self, source: str, base: PointRow, branches: list[BranchRow], dice: random.Random) -> None:
        catalogue = self.store.context.catalogue
        parent, number = catalogue.branch(source, base.branch), branches[-1].branch + 1
        role = dice.choice(["drill", "failover"])
        made = parent._replace(
            branch=number, parent=base.branch, base_sequence=base.sequence, role=role, durable_sequence=base.sequence
        )
        with catalogue.transaction(source):
            catalogue.put(made._replace(closed=0, superseded_ns=0))
            if role == "failover":
                row = catalogue.source(source)
                left = catalogue.branch(source, row.active_branch)
                catalogue.put(row._replace(active_branch=number), left._replace(superseded_ns=self.clock.now_ns()))

    def retain(self) -> list[str]:
        """A pass; which points went."""
        keeping = {source: Keeping(self.policy, self.silent.get(source), self.locking) for source in SOURCES}
        looks = self.looks if self.remembers else None
        return [f"{row.source} {row.id}" for row in self.store.retain(keeping.__getitem__, self.clock.now_ns(), looks)]

    def rows(self) -> list[object]:
        """All that retention has a say in."""
        catalogue = self.store.context.catalogue
        return [[catalogue.branches(source), catalogue.points(source)] for source in SOURCES]


@pytest.mark.parametrize("seed", range(16))
def test_retention_that_remembers_retires_what_one_that_looks_at_everything_does(seed: int) -> None:
    """Points come, clocks jump, policies, pins, leases, locks and branches change, and the process starts anew."""
    with scratch() as place, ExitStack() as opened:
        clock = ManualClock()
        twins = [Twin(place / name, clock, remembers=name == "remembers") for name in ("remembers", "forgets")]
        for twin in twins:
            opened.callback(twin.store.close)
        world = random.Random(seed)
        retired = 0
        for turn in range(150):
            for _ in range(world.choice([0, 0, 1, 3])):
                common = world.randrange(1 << 32)
                for twin in twins:
                    twin.act(random.Random(common))
            match world.randrange(12):
                case 0:
                    clock.jump_wall(world.choice([-400, -20, 20, 400]))
                case 1:
                    twins[0].looks = Looks()
                case _:
                    clock.advance(world.choice([1, 5, 20]))
            gone, others = [twin.retain() for twin in twins]
            assert gone == others, (seed, turn)
            assert twins[0].rows() == twins[1].rows()
            retired += len(gone)
        assert retired
        for twin in twins:
            for lease in twin.leases:
                lease.release()


def test_a_point_that_was_due_while_it_was_read_goes_once_nobody_reads_it() -> None:
    with scratch() as place:
        clock = ManualClock()
        twin = Twin(place / "store", clock, remembers=True)
        with twin.store as store:
            twin.policy = POLICIES[1]
            for _ in range(2):
                twin._cut("web1", random.Random(0))
                clock.advance(60)
            lease = store.context.locks.lease(Position("web1", 1, 1))
            assert [twin.retain() for _ in range(3)] == [[], [], []]
            lease.release()
            assert twin.retain() == ["web1 1-1"]


@pytest.mark.parametrize("seed", range(6))
def test_compaction_that_remembers_does_what_one_that_looks_at_everything_does(seed: int) -> None:
    with scratch() as place, ExitStack() as opened:
        clock = ManualClock()
        looks = Looks()
        stores = [opened.enter_context(Store.create(place / name, options=TINY, clock=clock)) for name in "ab"]
        sources = [Source(store, seed=seed, root=150_000, data=90_000) for store in stores]
        world = random.Random(seed)
        rewritten = 0
        for turn in range(40):
            if world.random() < 0.6:
                for source in sources:
                    source.write_random(4)
                    source.cut()
                    source.commit()
            share = world.choice([0, 0, 0.2, 0.8])
            for store in stores:
                catalogue = store.context.catalogue
                points = catalogue.points("web1")
                picked = random.Random(turn + seed).sample(points, int(share * len(points)))
                with catalogue.transaction("web1"):
                    catalogue.remove(*picked)
            clock.advance(world.choice([1, 60, 900]))
            if world.random() < 0.1:
                looks = Looks()
            with_memory, without = stores[0].compact(looks=looks), stores[1].compact()
            assert with_memory.segments_rewritten == without.segments_rewritten, turn
            assert with_memory.segments_removed == without.segments_removed
            assert _dead(stores[0]) == _dead(stores[1]), turn
            rewritten += with_memory.segments_rewritten
        assert rewritten
        for source in sources:
            source.check()
            source.writer.close()


def _dead(store: Store) -> list[tuple[int, int, int]]:
    rows = store.context.catalogue.segments("web1", 1)
    return [(row.segment, row.revision, row.dead_bytes) for row in rows]


def test_a_source_of_which_nothing_changed_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch() as place:
        clock = ManualClock()
        with Store.create(place / "store", options=TINY, clock=clock) as store:
            source = Source(store, root=150_000)
            for _ in range(5):
                source.write_random(3)
                source.cut()
                source.commit()
            source.writer.close()
            looks = Looks()

            def passes() -> None:
                store.retain(RetentionPolicy(), clock.now_ns(), looks)
                store.compact(looks=looks)

            for _ in range(3):
                passes()
            asked: list[str] = []
            for name in ("points", "segments"):
                plain = getattr(store.context.catalogue, name)

                def noted(*given: object, plain: object = plain, name: str = name, **others: object) -> object:
                    asked.append(name)
                    return plain(*given, **others)  # type: ignore[operator]

                monkeypatch.setattr(store.context.catalogue, name, noted)
            passes()
            assert asked == []
            with store.context.catalogue.transaction("web1"):
                store.context.catalogue.put(store.context.catalogue.points("web1")[0]._replace(pinned=1))
            asked.clear()
            passes()
            assert {"points", "segments"} == set(asked)


def test_a_file_that_no_row_names_is_found_within_an_hour() -> None:
    """Its writer died before it committed anything of it: the catalogue says nothing of it."""
    with scratch() as place:
        clock = ManualClock()
        with Store.create(place / "store", options=TINY, clock=clock) as store:
            source = Source(store, root=150_000)
            source.write_random(3)
            source.cut()
            source.commit()
            source.writer.close()
            looks = Looks()
            for _ in range(2):
                store.compact(looks=looks)
            newest = store.context.catalogue.segments("web1", 1)[-1].segment
            left = place / "store" / f"segments/web1/00000001/{newest + 1:08d}.0001.seg"
            left.touch()
            store.compact(looks=looks)
            assert left.exists()
            clock.advance(WHOLE_SECONDS)
            store.compact(looks=looks)
            assert not left.exists()
