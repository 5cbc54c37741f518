"""Who waits for whom on a writable branch: storage stands still where a test says, and nothing is left to luck."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from drengine.model.points import PointKind
from drengine.store.blobs.faulty import Call, Fault, FaultyStorage
from drengine.store.blobs.local import LocalStorage
from drengine.store.errors import FENCED, STORE_FULL
from drengine.store.log.writable import WritableView
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source, check_point, error_of, scratch

SIZE = 1 << 20
WAIT_SECONDS = 60
"""Only a failing test waits so long."""

OPTIONS = replace(TINY, segment_bytes_max=8 << 20, segment_extents_max=10_000, uncommitted_bytes_max=64 << 10)


@dataclass
class Gate:
    """Holds the first call of an operation until it is opened, then fails it if told so; tests wait for it to come."""

    operation: str
    fault: Fault | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, call: Call) -> Fault | None:
        if call.operation == self.operation and call.name.endswith((".seg", ".map")) and not self.reached.is_set():
            self.reached.set()
            assert self.opened.wait(WAIT_SECONDS)
            return self.fault
        return None


@dataclass
class Bench:
    """A promoted branch that is open for writing."""

    storage: FaultyStorage
    source: Source
    view: WritableView
    clock: ManualClock
    pool: ThreadPoolExecutor

    def start(self, call: Callable[[], object]) -> Future[object]:
        return self.pool.submit(call)

    @contextmanager
    def standing(self, operation: str, fault: Fault | None = None) -> Iterator[Gate]:
        self.storage.plan = gate = Gate(operation, fault)
        try:
            yield gate
        finally:
            self.storage.plan = None
            gate.opened.set()

    def syncs(self) -> int:
        return sum(call.operation == "sync" and call.name.endswith(".seg") for call in self.storage.calls)

    def reopened(self) -> WritableView:
        """As after a clean stop without a flush."""
        self.view.close()
        self.view = self.source.store.writable("web1", 2, generation=2)
        return self.view


@pytest.fixture
def bench() -> Iterator[Bench]:
    with scratch() as path, ThreadPoolExecutor(8) as pool:
        clock, storage = ManualClock(), FaultyStorage(LocalStorage(path / "store"))
        store = Store.create(path / "store", options=OPTIONS, clock=clock, storage=storage)
        source = Source(store, disk=SIZE)
        source.write(1, 0, b"old" * 5000)
        point = source.cut()
        source.commit()
        source.writer.close()
        store.promote(source.point(point), expected_generation=1)
        made = Bench(storage, source, store.writable("web1", 2, generation=2), clock, pool)
        yield made
        storage.plan = None
        made.view.close()
        store.close()


def result(future: Future[object]) -> object:
    return future.result(WAIT_SECONDS)


@pytest.mark.parametrize("operation", ["append", "sync"])
def test_reads_and_writes_go_on_while_a_flush_stands_still(bench: Bench, operation: str) -> None:
    view = bench.view
    view.write(1, 0, b"first")
    view.flush()
    with bench.standing(operation) as gate:
        view.write(1, 3, b"SECOND")
        flush = bench.start(view.flush)
        assert gate.reached.wait(WAIT_SECONDS)
        assert view.read(1, 0, 12) == b"firSECONDold"
        view.write(1, 6, b"third")
        assert view.write_now(1, 100, b"fourth") and view.zero_now(1, 50, 10) and view.discard_now(1, 60, 10)
        assert view.read(1, 0, 12) == b"firSECthirdd"
        assert view.read(1, 44, 26) == b"doldol" + bytes(20)
        assert view.read(1, 100, 6) == b"fourth"
        assert not flush.done()
    result(flush)
    assert bench.reopened().read(1, 0, 12) == b"firSECONDold"


def test_a_read_that_stands_still_keeps_nobody_waiting(bench: Bench) -> None:
    with bench.standing("read_at") as gate:
        read = bench.start(lambda: bench.view.read(1, 0, 6))
        assert gate.reached.wait(WAIT_SECONDS)
        assert bench.view.write_now(1, 0, b"new")
        bench.view.flush()
        assert not read.done()
    assert result(read) in (b"oldold", b"newold")
    assert bench.view.read(1, 0, 6) == b"newold"


def test_flushes_that_wait_share_one_commit_which_covers_all_of_them(bench: Bench) -> None:
    view = bench.view
    view.write(1, 0, b"0")
    with bench.standing("sync") as gate:
        first = bench.start(view.flush)
        assert gate.reached.wait(WAIT_SECONDS)
        begun, syncs = view._commits_begun, bench.syncs()
        together = threading.Barrier(6)

        def write_and_flush(number: int) -> None:
            view.write(1, number, b"%d" % number)
            together.wait(WAIT_SECONDS)
            view.flush()

        others = [bench.start(lambda number=number: write_and_flush(number)) for number in range(1, 6)]  # type: ignore[misc]
        together.wait(WAIT_SECONDS)
        # They wait inside the condition: nobody can be notified before the gate opens.
        while len(view._changed._waiters) < 5:  # type: ignore[attr-defined]
            threading.Event().wait(0.001)
        assert not any(flush.done() for flush in (first, *others))
    for flush in (first, *others):
        result(flush)
    assert view._commits_begun == begun + 1
    assert bench.syncs() == syncs + 1
    assert bench.reopened().read(1, 0, 6) == b"012345"


def test_a_flush_is_not_served_by_a_commit_that_began_before_it(bench: Bench) -> None:
    view = bench.view
    view.write(1, 0, b"A")
    with bench.standing("sync") as gate:
        first = bench.start(view.flush)
        assert gate.reached.wait(WAIT_SECONDS)
        view.write(1, 1, b"B")
        second = bench.start(view.flush)
    result(first)
    result(second)
    assert bench.reopened().read(1, 0, 3) == b"ABd"


def test_a_failed_commit_fails_its_own_flush_and_the_next_one_makes_all_durable_in_order(bench: Bench) -> None:
    view = bench.view
    view.write(1, 0, b"AA")
    with bench.standing("sync", Fault(errno.ENOSPC)) as gate:
        first = bench.start(view.flush)
        assert gate.reached.wait(WAIT_SECONDS)
        view.write(1, 1, b"BB")
        second = bench.start(view.flush)
        while not view._changed._waiters:  # type: ignore[attr-defined]
            threading.Event().wait(0.001)
    with pytest.raises(Exception) as told:
        result(first)
    assert error_of(STORE_FULL, told.value)
    result(second)
    assert bench.reopened().read(1, 0, 3) == b"ABB"


def test_a_write_waits_for_room_and_write_now_does_not(bench: Bench) -> None:
    view, part = bench.view, b"x" * 20_000
    view.write(1, 0, b"begin")
    with bench.standing("sync") as gate:
        flush = bench.start(view.flush)
        assert gate.reached.wait(WAIT_SECONDS)
        number = 0
        while view.write_now(1, number * 20_000, part):
            number += 1
        assert number == 3  # 64 KiB hold no more
        waiting = bench.start(lambda: view.write(1, number * 20_000, part))
        assert not view.write_now(1, number * 20_000, part)
        assert view.read(1, number * 20_000, 4) == bytes(4)
        assert not waiting.done()
    result(flush)
    result(waiting)
    assert view.read(1, 0, 80_000) == b"x" * 80_000
    view.flush()
    assert bench.reopened().read(1, 0, 80_000) == b"x" * 80_000


def test_a_write_larger_than_the_buffer_goes_through(bench: Bench) -> None:
    data = bytes(range(1, 256)) * 2000
    bench.view.write(1, 0, b"first")
    bench.view.write(1, 7, data)
    assert bench.view.read(1, 7, len(data)) == data
    bench.view.flush()
    assert bench.reopened().read(1, 0, len(data) + 7) == b"firstdo" + data


def test_a_full_disk_refuses_a_write_whole_once_the_buffer_is_full(bench: Bench) -> None:
    view, part = bench.view, b"y" * 20_000
    bench.storage.plan = lambda call: Fault(errno.ENOSPC) if call.operation in ("create", "append") else None
    written = 0
    with pytest.raises(Exception) as told:
        while True:
            view.write(1, written * 20_000, part)
            written += 1
    assert error_of(STORE_FULL, told.value)
    assert written == 3
    assert view.read(1, 0, 80_000) == part * 3 + bytes(20_000)
    bench.storage.plan = None
    view.write(1, 60_000, part)
    view.flush()
    assert bench.reopened().read(1, 0, 80_000) == part * 4


def test_a_fenced_branch_refuses_small_writes_soon_and_flushes_at_once(bench: Bench) -> None:
    view, store = bench.view, bench.source.store
    point = view.cut(PointKind.WRITE_ORDER)
    with Store.open(store.context.directory, clock=bench.clock) as elsewhere:
        elsewhere.promote(point, expected_generation=2)
    bench.clock.advance(0.2)
    assert not view.write_now(1, 0, b"late")
    with pytest.raises(Exception) as told:
        view.write(1, 0, b"late")
    assert error_of(FENCED, told.value)
    assert view.read(1, 0, 4) == b"oldo"
    for refused in (view.flush, lambda: view.write(1, 0, b"late"), lambda: view.cut(PointKind.WRITE_ORDER)):
        with pytest.raises(Exception) as told:
            refused()
        assert error_of(FENCED, told.value)
    assert not view.write_now(1, 0, b"late")


def test_a_cut_shows_what_was_written_before_it_and_nothing_after(bench: Bench) -> None:
    view, disk = bench.view, bench.source.disk.copy()
    view.write(1, 0, b"before")
    disk.write(1, 0, b"before")
    with bench.standing("sync") as gate:
        cut = bench.start(lambda: view.cut(PointKind.WRITE_ORDER))
        assert gate.reached.wait(WAIT_SECONDS)
        view.write(1, 0, b"after!")
        assert view.is_uncut
    check_point(bench.source.store, result(cut), disk)  # type: ignore[arg-type]
    assert view.is_uncut
    view.flush()
    assert view.is_uncut
    view.cut(PointKind.WRITE_ORDER)
    assert not view.is_uncut


def test_flushes_do_not_wait_for_the_layers_of_closed_segments(bench: Bench) -> None:
    view, rng = bench.view, random.Random(1)
    with bench.standing("put") as gate:
        for number in range(20):  # 1 MiB each; a segment is closed at 8 MiB
            data = rng.randbytes(SIZE - number)
            view.write(1, number, data)
            view.flush()
        assert gate.reached.wait(WAIT_SECONDS)
        assert view.read(1, 19, SIZE - 19) == data
        close = bench.start(view.close)
        assert not close.done()
    result(close)
    assert bench.reopened().read(1, 19, SIZE - 19) == data


def test_closing_waits_for_the_flush_under_way(bench: Bench) -> None:
    bench.view.write(1, 0, b"flushed")
    with bench.standing("sync") as gate:
        flush = bench.start(bench.view.flush)
        assert gate.reached.wait(WAIT_SECONDS)
        close = bench.start(bench.view.close)
        assert not close.done()
    result(flush)
    result(close)
    assert bench.reopened().read(1, 0, 7) == b"flushed"
