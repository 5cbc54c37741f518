"""Opens what a crash left with the real store, and holds it to what had been acknowledged."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.model.extents import ExtentKind
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.store import Store
from drengine.store.views.view import View
from tests.clock import ManualClock
from tests.crash.disk import Tree
from tests.crash.workload import OPTIONS, SOURCE, STORE, Content, Expected, Oracle, Write, batch, changed


class Broken(AssertionError):
    """The store is not what it has to be."""


@dataclass
class Judge:
    """Judges crash states of one recording.

    Attributes:
        rebuilt: states whose catalogue had to be rebuilt before the store opened.
    """

    oracle: Oracle
    scratch: Path
    rebuilt: int = 0
    states: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def judge(self, tree: Tree, begun: int, done: int, *, deeply: bool) -> bool:
        """Check one state; whether it was a new one.

        Args:
            tree: what the crash left.
            begun, done: how many steps had begun, and how many had been acknowledged.
            deeply: also go on writing, compact and rebuild the catalogue.

        Raises:
            Broken: it says what is wrong.
        """
        name = _fingerprint(tree, begun, done)
        if name in self._seen:
            return False
        self._seen.add(name)
        self.states += 1
        before, after = self.oracle.expected[done], self.oracle.expected[begun]
        self._check(tree, before, after)
        if deeply and before.source:
            self._check_life_goes_on(tree, before, after)
            self._check_rebuild(tree, before, after)
        return True

    def _check(self, tree: Tree, before: Expected, after: Expected) -> None:
        directory = self._lay_out(tree)
        try:
            store = Store.open(directory, options=OPTIONS, clock=ManualClock())
        except DrengineError as error:
            if before.created:
                self._rebuild(directory, error)
                store = Store.open(directory, options=OPTIONS, clock=ManualClock())
            else:
                store = Store.create(directory, options=OPTIONS, clock=ManualClock())
        with store:
            self._check_store(store, before, after)

    def _rebuild(self, directory: Path, error: DrengineError) -> None:
        if error.kind.id != "catalogue-damaged":
            raise Broken(f"the store does not open: {error}") from error
        self.rebuilt += 1
        Store.rebuild(directory)

    def _check_store(self, store: Store, before: Expected, after: Expected) -> None:
        sources = store.sources()
        _require(bool(sources) or not before.source, "the source is gone")
        _require(not sources or after.source, "a source appeared from nowhere")
        if not sources:
            return
        (source,) = sources
        states = [state for state in (before, after) if state.source]
        _require(
            (source.generation, source.active_branch) in {(s.generation, s.active) for s in states},
            f"generation {source.generation} and active branch {source.active_branch} belong to no moment",
        )
        branches = {branch.number: branch for branch in store.branches(SOURCE)}
        _require(branches.keys() >= before.durable.keys(), f"of the branches only {sorted(branches)} are left")
        _require(branches.keys() <= after.durable.keys(), f"branches {sorted(branches)} appeared")
        closed = {number for number, branch in branches.items() if branch.closed}
        _require(before.closed <= closed <= after.closed, f"closed branches are {closed}")
        durable = {number: branch.durable_sequence for number, branch in branches.items()}
        for number, sequence in durable.items():
            allowed = {state.durable[number] for state in states if number in state.durable}
            _require(sequence in allowed, f"branch {number} ends at {sequence}, not at one of {sorted(allowed)}")
        self._check_points(store, before, after, durable)
        for number, branch in branches.items():
            if not branch.closed:
                with store.head_view(SOURCE, number) as view:
                    _compare(view, self.oracle.content[number, durable[number]], f"head of branch {number}")

    def _check_points(self, store: Store, before: Expected, after: Expected, durable: dict[int, int]) -> None:
        points = {point.id: point for point in store.points(SOURCE)}
        _require(
            points.keys() >= before.points & after.points,
            f"points {_missing(before, after, points)} are gone",
        )
        _require(points.keys() <= before.points | after.points, f"points appeared: {sorted(points)}")
        for id in after.points - before.points:
            branch, sequence = map(int, id.split("-"))
            _require((durable[branch] >= sequence) == (id in points), f"point {id} and its commit are not one")
        pinned = {id for id, point in points.items() if point.pinned}
        _require(before.pinned & after.pinned <= pinned <= before.pinned | after.pinned, f"pinned are {pinned}")
        for id, point in points.items():
            _require(not point.damaged, f"point {id} is damaged")
            with store.view(point) as view:
                _compare(view, self.oracle.content[point.branch, point.sequence], f"point {id}")

    def _check_life_goes_on(self, tree: Tree, before: Expected, after: Expected) -> None:
        directory = self._lay_out(tree)
        try:
            store = Store.open(directory, options=OPTIONS, clock=ManualClock())
        except DrengineError:
            return  # `_check` has rebuilt it; `_check_rebuild` goes on with that.
        with store:
            self._go_on(store, before, after)
        with Store.open(directory, options=OPTIONS, clock=ManualClock()) as store:
            self._check_kept_points(store)

    def _go_on(self, store: Store, before: Expected, after: Expected) -> None:
        """Write to the active branch, cut, compact: everything visible stays as it was."""
        source = store.source(SOURCE)
        number = source.active_branch
        branch = next(branch for branch in store.branches(SOURCE) if branch.number == number)
        content = self.oracle.content[number, branch.durable_sequence]
        if not content:
            return
        writer = store.writer(SOURCE, generation=source.generation)
        _require(writer.durable.sequence == branch.durable_sequence, "the writer begins elsewhere")
        writes = (Write(1, ExtentKind.DATA, 1024, 2048, 7), Write(2, ExtentKind.ZERO, 0, 512, 0))
        sequence = branch.durable_sequence + 1
        writer.append_batch(sequence, Mark(b"n" * 16, 1), batch(writes), generation=source.generation)
        cut = Cut(store.context.clock.now_ns(), PointKind.QUIET, "after the crash")
        writer.append_cut(sequence + 1, Mark(b"n" * 16, 2), cut, generation=source.generation)
        writer.commit(generation=source.generation)
        writer.close()
        store.compact()
        fresh = changed(content, writes)
        found = [point for point in store.points(SOURCE, branch=number) if point.sequence == sequence + 1]
        _require(len(found) == 1, "the point cut after the crash is not there")
        with store.view(found[0]) as view:
            _compare(view, fresh, "the point cut after the crash")
        self._check_kept_points(store, but=found[0])
        self._check_no_litter(store)

    def _check_kept_points(self, store: Store, but: RecoveryPoint | None = None) -> None:
        for point in store.points(SOURCE):
            expected = self.oracle.content.get((point.branch, point.sequence))
            if point != but and expected is not None and point.label != "after the crash":
                with store.view(point) as view:
                    _compare(view, expected, f"point {point.id} after compaction")

    def _check_no_litter(self, store: Store) -> None:
        """After a compaction nothing is left of what a crash left behind."""
        named = set()
        for branch in store.branches(SOURCE):
            for row in store.context.catalogue.segments(SOURCE, branch.number):
                named.add((branch.number, row.segment, row.revision))
        files = store.context.storage.list("segments/")
        segments = [name for name in files if name.endswith(".seg")]
        _require(len(segments) == len(named), f"{len(segments)} segment files, {len(named)} in the catalogue")

    def _check_rebuild(self, tree: Tree, before: Expected, after: Expected) -> None:
        """Without its catalogue the store is rebuilt, and shows at least what was acknowledged."""
        directory = self._lay_out(tree)
        for path in directory.glob(f"{CATALOGUE_NAME}*"):
            path.unlink()
        Store.rebuild(directory)
        with Store.open(directory, options=OPTIONS, clock=ManualClock()) as store:
            source = store.source(SOURCE) if store.sources() else None
            durable = {}
            if source is None:
                _require(not any(before.durable.values()), "a rebuild lost the source")
                return
            for branch in store.branches(SOURCE):
                durable[branch.number] = branch.durable_sequence
            for number, sequence in before.durable.items():
                _require(
                    durable.get(number, -1) >= sequence or number in before.closed,
                    f"a rebuild ends branch {number} at {durable.get(number)}, not at {sequence}",
                )
            _require(source.generation >= before.generation, "a rebuild lowered the generation")
            points = {point.id for point in store.points(SOURCE)}
            lost = {id for id in before.points & after.points if int(id.split("-")[0]) not in before.closed} - points
            _require(not lost, f"a rebuild lost points {sorted(lost)}")
            self._check_kept_points(store)

    def _lay_out(self, tree: Tree) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        for name, content in sorted(tree.items()):
            if content is None:
                (self.scratch / name).mkdir()
            else:
                (self.scratch / name).write_bytes(content)
        return self.scratch / STORE


def _compare(view: View, content: Content, what: str) -> None:
    sizes = {number: volume.size_bytes for number, volume in view.geometry.items()}
    expected = {number: len(data) for number, data in content.items()}
    _require(sizes == expected, f"{what}: volumes are {sizes}, not {expected}")
    for number, data in content.items():
        found = view.read(number, 0, len(data))
        if found != data:
            at = next(i for i, (a, b) in enumerate(zip(found, data, strict=True)) if a != b)
            raise Broken(f"{what}: volume {number} differs at {at}")


def _missing(before: Expected, after: Expected, points: dict[str, RecoveryPoint]) -> list[str]:
    return sorted((before.points & after.points) - points.keys())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Broken(message)


def _fingerprint(tree: Tree, begun: int, done: int) -> bytes:
    state = hashlib.blake2b(f"{begun} {done}".encode(), digest_size=16)
    for name, content in sorted(tree.items()):
        state.update(name.encode() + (b"\0-" if content is None else b"\0%d\0" % len(content) + content))
    return state.digest()
