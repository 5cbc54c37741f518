"""The tracker against a kernel of sets and a source of bytes: random writes, breaks, kills and targets that forget.

Whatever happens, a cut that is offered equals the source, and once the source is still the replica equals it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import Mark, PointKind, VolumeGeometry
from drengine.model.states import REASONS
from drengine_agent.capture.ebpf import tracker as module
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.tracker import READ_RETRY_SECONDS, EbpfTracker
from drengine_agent.capture.tracker import Changes, Range
from drengine_agent.cuts.budget import FreezeBudget
from drengine_agent.cuts.errors import FREEZE_REFUSED
from drengine_agent.cuts.policy import CutPolicy
from tests.clock import ManualClock

BLOCK = 4096
SIZES = {1: 12, 2: 5}
"""Blocks of each volume."""

Block = tuple[int, int]


@dataclass
class Kernel:
    """What is pinned; outlives the agent. Blocks are (volume, number)."""

    random: Random
    pinned: bool = False
    epoch: bytes = b""
    answer: int = 0
    cleared: int = 0
    active: set[Block] = field(default_factory=set)
    waiting: set[Block] = field(default_factory=set)
    has_pending: bool = False
    counter: int = 0
    condition: str = "none"
    doubt: str = "untracked"

    def written(self, block: Block) -> None:
        """A write completes."""
        if self.pinned:
            self.active.add(block)
        self.counter += 1

    def lose(self, doubt: str) -> None:
        """A reboot, or somebody removed the pins."""
        self.pinned, self.doubt, self.condition = False, doubt, "none"


class FakeWatch:
    """watch.Watch over a Kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._said = "none"
        self.doubt = "none"
        if not kernel.pinned:
            self.doubt = kernel.doubt
            kernel.pinned, kernel.epoch = True, kernel.random.randbytes(16)
            kernel.answer = kernel.cleared = 0
            kernel.active, kernel.waiting, kernel.has_pending = set(), set(), False

    epoch = property(lambda self: self._kernel.epoch)
    answer = property(lambda self: self._kernel.answer)
    cleared = property(lambda self: self._kernel.cleared)
    has_pending = property(lambda self: self._kernel.has_pending)

    def is_quiet(self) -> bool:
        return not self._kernel.active

    def flip(self) -> None:
        kernel = self._kernel
        assert not kernel.has_pending
        kernel.waiting, kernel.active = kernel.active, set()
        kernel.has_pending = True
        kernel.answer += 1

    def pending_ranges(self) -> Iterator[Range]:
        for volume, number in sorted(self._kernel.waiting):
            yield Range(volume, number * BLOCK, BLOCK)

    def pending(self) -> list[Range]:
        return list(self.pending_ranges())

    def clear_pending(self, keep: Iterable[Range] = (), *, through: int | None = None) -> None:
        kernel = self._kernel
        if not kernel.has_pending:
            return
        kept = kernel.waiting & blocks_of(keep)
        kernel.cleared = kernel.answer if through is None else through
        kernel.waiting = kept
        if kept:
            kernel.answer += 1
        else:
            kernel.has_pending = False

    def add_pending(self, ranges: Iterable[Range]) -> None:
        kernel = self._kernel
        kernel.waiting = (kernel.waiting if kernel.has_pending else set()) | blocks_of(ranges)
        kernel.has_pending = True
        kernel.answer += 1

    def active_blocks(self) -> int:
        return len(self._kernel.active)

    def pending_blocks(self) -> int:
        return len(self._kernel.waiting) if self._kernel.has_pending else 0

    def check(self) -> str:
        said, self._said = self._said, self._kernel.condition
        return self._kernel.condition if said != self._kernel.condition else "none"

    def close(self) -> None:
        pass


def blocks_of(ranges: Iterable[Range]) -> set[Block]:
    return {(each.volume, each.offset // BLOCK) for each in ranges}


class Stillness:
    """Freezes the model's writers, or fails to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fails = ""

    def settle(self) -> None:
        self.world.settled += 1

    @contextmanager
    def held(self, *, application: bool) -> Iterator[SimpleNamespace]:
        if self.fails == "refused":
            raise DrengineError(FREEZE_REFUSED, "no")
        self.world.frozen = True
        still = SimpleNamespace(held=False, seconds=0.0)
        try:
            yield still
        finally:
            still.held, still.seconds = self.fails != "thawed early", 0.25
            self.world.frozen = False

    @staticmethod
    def reason_of(error: Exception) -> str:
        return "freeze-refused" if isinstance(error, DrengineError) else "read-error"

    def close(self) -> None:
        pass


@dataclass
class Sent:
    mark: Mark
    content: dict[Block, int]


class World:
    """Source, kernel, agent and target."""

    def __init__(self, seed: int, *, policy: CutPolicy | None = None) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.kernel = Kernel(self.random)
        self.source = {(volume, number): 0 for volume, blocks in SIZES.items() for number in range(blocks)}
        self.bad: set[Block] = set()
        self.policy = policy
        self.settled = 0
        self.frozen = False
        self.raw_writers = 0.0
        self.stillness = Stillness(self)
        self.durable_mark = Mark()
        self.durable = dict.fromkeys(self.source, 0)
        self.in_flight: list[Sent] = []
        self.received = dict(self.durable)
        self.rescans: list[str] = []
        self.cuts: list[PointKind] = []
        self.shipped = 0
        self.writes = 1
        self.start()

    # -- the agent's process

    def start(self) -> None:
        """A new process takes up what is pinned."""
        readers = {volume: self.reader(volume) for volume in SIZES}
        devices = dict.fromkeys(SIZES, Path("/dev/null"))
        self.tracker = EbpfTracker(
            "server",
            devices,
            readers,
            self.clock,
            policy=self.policy,
            stillness=self.stillness,  # type: ignore[arg-type]
            budget=FreezeBudget(longest_seconds=1.0, memory_bytes=64 << 20, readers=1),
        )
        self.tracker.open([VolumeGeometry(n, f"v{n}", "", blocks * BLOCK) for n, blocks in SIZES.items()])
        self.connect()

    def connect(self) -> None:
        """A new session: what was on its way is lost."""
        self.in_flight = []
        self.received = dict(self.durable)
        self.since = self.durable_mark
        self.tracker.acknowledge(self.since)

    # -- the source

    def write(self, block: Block | None = None, *, held: bool = True) -> None:
        if self.frozen and held:
            return
        block = block or self.random.choice(list(self.source))
        self.writes += 1
        self.source[block] = self.random.choice([self.writes, 0, 1])  # old contents come back, too
        self.kernel.written(block)

    def reader(self, volume: int) -> SimpleNamespace:
        def read_now(offset: int, buffer: memoryview) -> None:
            block = (volume, offset // BLOCK)
            if block in self.bad:
                raise OSError(5, "bad")
            buffer[:8] = self.source[block].to_bytes(8, "little")
            if self.random.random() < self.raw_writers:
                self.write(held=False)

        return SimpleNamespace(read_now=read_now)

    # -- the pipeline

    def round(self, *, writes: float = 0.3) -> None:
        changes = self.tracker.changes(self.since, bytes_max=1 << 20)
        if changes.rescan_reason is not None:
            assert changes.rescan_reason in REASONS
            self.rescans.append(changes.rescan_reason)
            self.drain()
            self.ship(sorted(self.source), changes.mark, writes, compare=True)
        elif changes.ranges != ():
            self.ship(sorted(blocks_of(changes.ranges)), changes.mark, writes, compare=False)
        elif changes.writes:
            content = {
                (each.volume, each.offset // BLOCK): int.from_bytes(each.data[:8], "little")  # type: ignore[index]
                for each in changes.writes
            }
            self.send(content, changes.mark)
        self.since = changes.mark
        if changes.cut_ok:
            self.cut(changes)

    def cut(self, changes: Changes) -> None:
        assert self.received == self.source, "a point that the disks never held"
        self.cuts.append(changes.cut_kind)
        self.in_flight.append(Sent(changes.mark, {}))

    def ship(self, blocks: Sequence[Block], mark: Mark, writes: float, *, compare: bool) -> None:
        batches: list[dict[Block, int]] = []
        unread = []
        for block in blocks:
            if self.random.random() < writes:
                self.write()
            if block in self.bad:
                unread.append(Range(block[0], block[1] * BLOCK, BLOCK))
            elif not compare or self.source[block] != self.durable[block]:
                batches.append({block: self.source[block]})
        for batch in batches[:-1]:
            self.send(batch, self.since)
        if unread:
            self.tracker.mark_dirty(unread)
        for batch in batches[-1:]:
            self.send(batch, mark)

    def send(self, content: dict[Block, int], mark: Mark) -> None:
        self.received.update(content)
        self.in_flight.append(Sent(mark, content))
        self.shipped += len(content)

    # -- the target

    def settle(self, count: int, *, heard: bool = True) -> None:
        """So many positions become durable; the agent hears of it or not."""
        for sent in self.in_flight[:count]:
            self.durable.update(sent.content)
            self.durable_mark = sent.mark
            if heard:
                self.tracker.acknowledge(sent.mark)
        del self.in_flight[:count]

    def drain(self) -> None:
        self.settle(len(self.in_flight))

    def converge(self) -> None:
        """Nobody writes any more: the replica is soon the source, by a proved point."""
        before = len(self.cuts)
        for _ in range(60):
            self.clock.advance(1.0)
            self.round(writes=0.0)
            self.drain()
            if len(self.cuts) > before and self.tracker.backlog_bytes() == 0 and self.durable == self.source:
                return
        raise AssertionError("it does not converge")


@pytest.fixture(autouse=True)
def kernel_of_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Watches over the model's kernel. The test sets which one by making a World."""
    current: list[Kernel] = []
    original = Kernel.__init__

    def remember(self: Kernel, *args: object, **more: object) -> None:
        original(self, *args, **more)  # type: ignore[arg-type]
        current[:] = [self]

    monkeypatch.setattr(Kernel, "__init__", remember)
    monkeypatch.setattr(
        module,
        "Watch",
        SimpleNamespace(
            attach=lambda *_, **__: FakeWatch(current[0]), detach=lambda *_, **__: current[0].lose("untracked")
        ),
    )
    monkeypatch.setattr(BlockDevice, "of_path", staticmethod(lambda path: SimpleNamespace()))
    return iter([None])


def live(seed: int, steps: int, *, policy: CutPolicy | None = None, lossy: bool = True) -> World:
    """A random life of a source."""
    world = World(seed, policy=policy)
    world.converge()
    act = world.random
    world.raw_writers = act.choice([0.0, 0.1])  # those that use a disk without a file system
    for _ in range(steps):
        world.clock.advance(act.choice([0.0, 0.01, 0.1, READ_RETRY_SECONDS]))
        match act.randrange(14 if lossy else 11):
            case 0 | 1 | 2 | 3:
                world.round(writes=act.choice([0.0, 0.0, 0.3]))
            case 4 | 5:
                world.settle(act.randrange(len(world.in_flight) + 1))
            case 6 | 7:
                world.write()
            case 8:  # the link breaks; some of what was sent may have arrived unheard of
                world.settle(act.randrange(len(world.in_flight) + 1), heard=False)
                world.connect()
            case 9:  # SIGKILL
                world.settle(act.randrange(len(world.in_flight) + 1), heard=False)
                world.start()
            case 10:
                world.bad = {act.choice(list(world.source))} if act.random() < 0.3 else set()
                world.stillness.fails = act.choice(["", "refused", "thawed early"])
            case 11:
                block = act.choice(list(world.source))
                world.source[block] += 1  # nobody marks it, but the kernel's side knows that something passed by
                world.kernel.condition = act.choice(["tracking-lost", "passthrough"])
            case 12:
                if act.random() < 0.2:
                    world.kernel.lose(act.choice(["rebooted", "tracker-version"]))
                    world.start()
            case 13:
                if act.random() < 0.3:
                    world.tracker.request_rescan("operator")
    world.bad, world.stillness.fails = set(), ""
    world.converge()
    return world


FORCED = CutPolicy(kinds=(PointKind.QUIET, PointKind.FROZEN), frozen_after_seconds=0.5, retry_seconds=0.1)


@pytest.mark.fault(20)
@pytest.mark.fault(23)
@pytest.mark.parametrize("seed", range(150))
def test_every_cut_is_the_source_whatever_breaks(seed: int) -> None:
    world = live(seed, 150, policy=FORCED if seed % 2 else None)
    assert PointKind.QUIET in world.cuts


@pytest.mark.parametrize("seed", range(60))
def test_kills_and_breaks_alone_never_lead_to_a_rescan(seed: int) -> None:
    world = live(seed, 300, lossy=False)
    assert world.rescans == ["untracked"]


@pytest.mark.fault(63)
def test_frozen_cuts_of_all_volumes_come_about_under_steady_writing() -> None:
    world = World(7, policy=FORCED)
    world.converge()
    for _ in range(200):
        world.clock.advance(0.2)
        world.write()
        world.round(writes=1.0)
        world.write()
        world.drain()
    assert world.cuts.count(PointKind.FROZEN) > 5
    assert world.settled
    assert world.tracker.counts.freezes >= world.cuts.count(PointKind.FROZEN)
    assert world.tracker.counts.freeze_seconds_longest == 0.25


def test_a_freeze_that_ended_early_is_no_cut_and_what_was_flipped_is_shipped() -> None:
    world = World(7, policy=FORCED)
    world.converge()
    world.stillness.fails = "thawed early"
    for _ in range(100):
        world.clock.advance(0.2)
        world.write()
        world.round(writes=1.0)
        world.write()
        world.drain()
    assert PointKind.FROZEN not in world.cuts
    assert world.tracker.counts.failed["freeze-too-long"] > 5
    world.clock.advance(20)
    world.write()
    world.round(writes=1.0)
    assert world.tracker.reason == "freeze-too-long"
    world.converge()
    assert world.tracker.reason == "none"


@pytest.mark.fault(26)
def test_a_block_that_cannot_be_read_withholds_every_point_and_says_why() -> None:
    world = World(3)
    world.converge()
    bad = (1, 4)
    world.bad = {bad}
    world.write(bad)
    world.write((2, 1))
    cuts = len(world.cuts)
    for _ in range(20):
        world.clock.advance(READ_RETRY_SECONDS)
        world.round(writes=0.0)
        world.drain()
        assert world.tracker.backlog_bytes() >= BLOCK
    assert world.tracker.reason == "read-error"
    assert len(world.cuts) == cuts
    assert world.durable[2, 1] == world.source[2, 1], "the others go on"
    shipped = world.shipped
    world.bad = set()
    world.converge()
    assert world.shipped == shipped + 1, "only the block itself is left to read"
    assert world.tracker.reason == "none"


@pytest.mark.fault(22)
def test_a_target_that_lost_what_it_had_acknowledged_is_compared() -> None:
    world = World(5)
    world.converge()
    old_mark, old = world.durable_mark, dict(world.durable)
    for _ in range(3):
        world.write()
        world.converge()
    world.durable_mark, world.durable = old_mark, old
    before = len(world.rescans)
    world.connect()
    world.converge()
    assert world.rescans[before:] == ["epoch-changed"]


@pytest.mark.fault(61)
def test_a_wall_clock_that_jumps_changes_no_age() -> None:
    world = World(9)
    world.converge()
    world.clock.advance(5.0)
    world.round(writes=0.0)
    world.write()
    world.round(writes=0.0)
    for jump_seconds in (-1e9, 2e9):
        world.clock.jump_wall(jump_seconds)
        world.clock.advance(1.0)
        age = (world.clock.now_ns() - world.tracker.behind_since_ns()) / 1e9
        assert 0.0 <= age < 10.0
    world.converge()
    assert world.tracker.behind_since_ns() == 0


def test_without_any_cut_for_long_the_state_says_so() -> None:
    world = World(9)
    world.converge()
    for _ in range(40):
        world.clock.advance(1.0)
        world.write()
        world.round(writes=1.0)
        world.write()
        world.drain()
    assert world.tracker.reason == "no-cut"
    world.converge()
    assert world.tracker.reason == "none"
