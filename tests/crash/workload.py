"""A short life of a store, scripted from a seed: run in a child process that is recorded, told again by the oracle.

The child writes a line to standard output before and after each step. What it has written after a step was
acknowledged: a crash at any later moment must not undo it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from drengine.model.extents import NO_DIGEST, Batch, Extent, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, PointSelector, RecoveryPoint, VolumeGeometry
from drengine.store.care.retention import RetentionPolicy
from drengine.store.log.writable import WritableView
from drengine.store.log.writer import BranchWriter
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from drengine.wire.payload import digest, make_batch
from tests.clock import ManualClock
from tests.store.harness import encrypted

SOURCE = "web"
STORE = "store"
OPTIONS = StoreOptions(segment_bytes_max=6 << 10, segment_extents_max=48)
POLICY = RetentionPolicy.parse("all for 60s, every 30s for 5m")
BLOCK = 4096

ENCRYPTED = "DRENGINE_TEST_ENCRYPTED"
"""Set: the store is encrypted."""

Content = dict[int, bytes]
"""Bytes of each volume."""


class Write(NamedTuple):
    """One change of a volume; `seed` makes the bytes of DATA."""

    volume: int
    kind: ExtentKind
    offset: int
    length: int
    seed: int

    def data(self) -> bytes:
        """Bytes of a DATA change: the first half does not compress."""
        half = self.length // 2
        return random.Random(self.seed).randbytes(half) + bytes([self.seed % 255 + 1]) * (self.length - half)


@dataclass(frozen=True)
class Step:
    """One call into the store."""

    do: str
    writes: tuple[Write, ...] = ()
    sizes: tuple[int, ...] = ()
    branch: int = 0
    point: str = ""
    seconds: int = 1


def script(seed: int, *, rounds: int = 12) -> list[Step]:
    """The steps of a life."""
    chosen = random.Random(seed)
    sizes = [96 * 1024, 40 * 1024 + 512]

    def writes(count: int) -> tuple[Write, ...]:
        made = []
        for _ in range(count):
            volume = chosen.randrange(len(sizes))
            kind = chosen.choices((ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.DISCARD), (8, 1, 1))[0]
            offset = chosen.randrange(0, sizes[volume] - 512, 512)
            length = min(chosen.choice((512, BLOCK, BLOCK, 2 * BLOCK)), sizes[volume] - offset, 65536 - offset % 65536)
            made.append(Write(volume + 1, kind, offset, length, chosen.randrange(1 << 30)))
        return tuple(made)

    def replicate(count: int) -> list[Step]:
        steps = []
        for number in range(count):
            steps += [Step("batch", writes(chosen.randint(1, 3))) for _ in range(chosen.randint(1, 3))]
            if chosen.random() < 0.7:
                steps.append(Step("cut", seconds=chosen.randint(1, 40)))
            if number == count // 2 and chosen.random() < 0.5:
                sizes[1] = chosen.choice((24 * 1024, 56 * 1024 + 100))
                steps.append(Step("geometry", sizes=tuple(sizes)))
            if chosen.random() < 0.8:
                steps.append(Step("commit"))
        return [*steps, Step("cut"), Step("commit")]

    def use(branch: int) -> list[Step]:
        return [
            Step("open writable", branch=branch),
            Step("write", writes(3)),
            Step("flush"),
            Step("write", writes(2)),
            Step("cut writable"),
            Step("close writable"),
        ]

    return [
        Step("create"),
        Step("source"),
        Step("open writer", branch=1),
        Step("geometry", sizes=tuple(sizes)),
        *replicate(rounds),
        Step("pin", point="oldest"),
        Step("retain", seconds=chosen.randint(10, 200)),
        Step("compact"),
        *([Step("rotate key")] if ENCRYPTED in os.environ else []),
        *replicate(2),
        Step("close writer"),
        Step("branch", point="middle"),
        *use(2),
        Step("open writer", branch=1),
        *replicate(2),
        Step("batch", writes(2)),
        Step("close writer"),
        Step("reopen"),
        Step("close branch", branch=2),
        Step("promote", point="latest"),
        *use(3),
        Step("retain", seconds=chosen.randint(60, 400)),
        Step("unpin", point="oldest"),
        Step("compact"),
        Step("open writer", branch=3),
        *replicate(2),
        Step("close writer"),
    ]


class Runner:
    """Carries out the steps in a store below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / STORE
        self.clock = ManualClock()
        self.store: Store | None = None
        self.writer: BranchWriter | None = None
        self.writable: WritableView | None = None

    def run(self, step: Step) -> Any:
        """Do one step; what it returns tells the oracle what only the store decides."""
        self.clock.advance(step.seconds)
        return getattr(self, "_" + step.do.replace(" ", "_"))(step)

    def _create(self, step: Step) -> None:
        self.store = Store.create(self.path, options=OPTIONS, clock=self.clock)

    def _reopen(self, step: Step) -> None:
        assert self.store
        self.store.close()
        self.store = Store.open(self.path, options=OPTIONS, clock=self.clock)

    def _source(self, step: Step) -> None:
        assert self.store
        self.store.ensure_source(SOURCE)

    def _open_writer(self, step: Step) -> None:
        assert self.store
        generation = self.store.source(SOURCE).generation
        self.writer = self.store.writer(SOURCE, generation=generation, branch=step.branch)

    def _close_writer(self, step: Step) -> None:
        assert self.writer
        self.writer.close()

    def _geometry(self, step: Step) -> None:
        writer, sequence, mark = self._next()
        writer.append_geometry(sequence, mark, geometry(step.sizes), generation=writer.generation)

    def _batch(self, step: Step) -> None:
        writer, sequence, mark = self._next()
        writer.append_batch(sequence, mark, batch(step.writes), generation=writer.generation)

    def _cut(self, step: Step) -> None:
        writer, sequence, mark = self._next()
        cut = Cut(self.clock.now_ns(), PointKind.QUIET, f"label-{sequence}")
        writer.append_cut(sequence, mark, cut, generation=writer.generation)

    def _commit(self, step: Step) -> None:
        assert self.writer
        self.writer.commit(generation=self.writer.generation)

    def _open_writable(self, step: Step) -> None:
        assert self.store
        branch = next(branch for branch in self.store.branches(SOURCE) if branch.number == step.branch)
        self.writable = self.store.writable(SOURCE, step.branch, generation=branch.generation)

    def _write(self, step: Step) -> None:
        assert self.writable
        for write in step.writes:
            if write.kind == ExtentKind.DATA:
                self.writable.write(write.volume, write.offset, write.data())
            elif write.kind == ExtentKind.ZERO:
                self.writable.zero(write.volume, write.offset, write.length)
            else:
                self.writable.discard(write.volume, write.offset, write.length)

    def _flush(self, step: Step) -> int:
        assert self.writable
        self.writable.flush()
        return self.writable.position.sequence

    def _cut_writable(self, step: Step) -> int:
        assert self.writable
        return self.writable.cut(PointKind.WRITE_ORDER, "mine").sequence

    def _close_writable(self, step: Step) -> None:
        assert self.writable
        self.writable.close()

    def _pin(self, step: Step) -> str:
        assert self.store
        point = self._point(step.point)
        self.store.pin(point, "kept")
        return point.id

    def _unpin(self, step: Step) -> None:
        assert self.store
        self.store.unpin(self._point(step.point))

    def _retain(self, step: Step) -> list[str]:
        assert self.store
        return [point.id for point in self.store.retain(POLICY, self.clock.now_ns())]

    def _compact(self, step: Step) -> None:
        assert self.store
        self.store.compact()

    def _rotate_key(self, step: Step) -> None:
        assert self.store
        self.store.rotate_key(SOURCE)

    def _branch(self, step: Step) -> list[Any]:
        assert self.store
        point = self._point(step.point)
        return [self.store.create_branch(point, role="drill", label="drill").number, point.id]

    def _close_branch(self, step: Step) -> None:
        assert self.store
        self.store.close_branch(SOURCE, step.branch)

    def _promote(self, step: Step) -> list[Any]:
        assert self.store
        point = self._point(step.point)
        info = self.store.promote(point, expected_generation=self.store.source(SOURCE).generation, label="failover")
        return [info.number, point.id]

    def _point(self, which: str) -> RecoveryPoint:
        assert self.store
        if which == "latest":
            return self.store.find_point(SOURCE, PointSelector())
        points = self.store.points(SOURCE, branch=1)
        return points[0 if which == "oldest" else len(points) // 2]

    def _next(self) -> tuple[BranchWriter, int, Mark]:
        assert self.writer
        sequence = self.writer.appended_sequence + 1
        return self.writer, sequence, Mark(b"e" * 16, sequence)


def geometry(sizes: tuple[int, ...]) -> tuple[VolumeGeometry, ...]:
    """Volumes 1, 2, ... of these sizes."""
    return tuple(VolumeGeometry(n + 1, f"disk-{n + 1}", f"id-{n + 1}", size) for n, size in enumerate(sizes))


def batch(writes: tuple[Write, ...]) -> Batch:
    """The changes as they come from the wire."""
    extents, plain = [], b""
    for write in writes:
        data = write.data() if write.kind == ExtentKind.DATA else b""
        # A DATA extent never crosses a block boundary: `script` sees to it.
        hashed = digest(data) if data else NO_DIGEST
        extents.append(Extent(write.volume, write.kind, write.offset, write.length, hashed))
        plain += data
    return make_batch(extents, plain, 1)


@dataclass(frozen=True)
class Expected:
    """What must be there after a step.

    Attributes:
        created, source: the store, and its source, are there.
        durable: durable sequence of each branch.
        points: ids of the points that are kept, in any order.
        pinned: ids of those pinned.
        generation, active: of the source.
        closed: closed branches.
    """

    created: bool = False
    source: bool = False
    durable: dict[int, int] = field(default_factory=dict)
    points: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    generation: int = 1
    active: int = 1
    closed: frozenset[int] = frozenset()


class Oracle:
    """What the store must show, told from the script and the child's answers."""

    def __init__(self, steps: list[Step], results: dict[int, Any]) -> None:
        self.expected = [Expected()]
        """Before the first step, then after each one."""
        self.content: dict[tuple[int, int], Content] = {}
        """Of each branch at each sequence that can become durable."""
        self._branch = 0
        self._sequence = 0
        self._now: Content = {}
        self._cuts: list[str] = []
        for number, step in enumerate(steps):
            result = results.get(number)
            self.expected.append(
                self._after(self.expected[-1], step, result) if number in results else self.expected[-1]
            )

    def _after(self, before: Expected, step: Step, result: Any) -> Expected:
        match step.do:
            case "create":
                return replace(before, created=True)
            case "source":
                self.content[1, 0] = {}
                return replace(before, source=True, durable={1: 0})
            case "open writer" | "open writable":
                self._branch, self._sequence = step.branch, before.durable[step.branch]
                self._now, self._cuts = self.content[self._branch, self._sequence], []
            case "geometry":
                sizes = enumerate(step.sizes, 1)
                self._now = {v: self._now.get(v, b"")[:size].ljust(size, b"\0") for v, size in sizes}
                self._advance()
            case "batch":
                self._now = changed(self._now, step.writes)
                self._advance()
            case "cut":
                self._advance()
                self._cuts.append(f"{self._branch}-{self._sequence}")
            case "write":
                self._now = changed(self._now, step.writes)
            case "flush" | "cut writable":
                self._sequence = result
                self.content[self._branch, self._sequence] = self._now
                self._cuts = [f"{self._branch}-{result}"] if step.do == "cut writable" else []
                return self._committed(before)
            case "commit":
                return self._committed(before)
            case "pin":
                return replace(before, pinned=before.pinned | {result})
            case "unpin":
                return replace(before, pinned=frozenset())
            case "retain":
                return replace(before, points=before.points - set(result))
            case "branch" | "promote":
                number, base = result
                base_branch, base_sequence = map(int, base.split("-"))
                self.content[number, base_sequence] = self.content[base_branch, base_sequence]
                grown = replace(before, durable={**before.durable, number: base_sequence})
                if step.do == "branch":
                    return grown
                return replace(grown, generation=before.generation + 1, active=number)
            case "close branch":
                return replace(before, closed=before.closed | {step.branch})
        return before

    def _advance(self) -> None:
        self._sequence += 1
        self.content[self._branch, self._sequence] = self._now

    def _committed(self, before: Expected) -> Expected:
        points, self._cuts = before.points | set(self._cuts), []
        return replace(before, durable={**before.durable, self._branch: self._sequence}, points=points)


def changed(content: Content, writes: tuple[Write, ...]) -> Content:
    """The volumes after these changes."""
    fresh = {volume: bytearray(data) for volume, data in content.items()}
    for write in writes:
        data = write.data() if write.kind == ExtentKind.DATA else bytes(write.length)
        fresh[write.volume][write.offset : write.offset + write.length] = data
    return {volume: bytes(data) for volume, data in fresh.items()}


def main() -> None:
    """The child: DIRECTORY SEED ROUNDS."""
    directory, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with encrypted() if ENCRYPTED in os.environ else nullcontext():
        runner = Runner(directory)
        for number, step in enumerate(script(seed, rounds=rounds)):
            _say("begin", number, None)
            _say("done", number, runner.run(step))


def _say(what: str, number: int, result: Any) -> None:
    os.write(1, json.dumps([what, number, result]).encode() + b"\n")


if __name__ == "__main__":
    main()
