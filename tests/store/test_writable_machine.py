"""A writable branch against a disk in memory: any order of writes, flushes, cuts, crashes, full disks and threads; and
a kill at every call into the storage.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine.store.blobs.faulty import Call, Fault, FaultyStorage
from drengine.store.blobs.local import LocalStorage
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.errors import STORE_FULL
from drengine.store.log.writable import WritableView
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import (
    MEMORY_DIRECTORY,
    Disk,
    EncryptedMachine,
    Source,
    check_head,
    check_point,
    crash,
    scratch,
)

SIZE = 300_000
OPTIONS = StoreOptions(
    segment_bytes_max=120_000, segment_extents_max=60, write_buffer_bytes=40_000, uncommitted_bytes_max=150_000
)
WAIT_SECONDS = 60


def promoted(path: Path, clock: ManualClock) -> tuple[Store, FaultyStorage, Disk]:
    """A store whose branch 2 grew from a point with some data."""
    storage = FaultyStorage(LocalStorage(path / "store"))
    store = Store.create(path / "store", options=OPTIONS, clock=clock, storage=storage)
    source = Source(store, seed=5, disk=SIZE)
    source.write_random(6)
    point = source.cut()
    source.commit()
    source.writer.close()
    store.promote(source.point(point), expected_generation=1)
    return store, storage, source.points[point]


class WritableMachine(RuleBasedStateMachine):
    """One promoted branch that is always open for writing."""

    def __init__(self) -> None:
        super().__init__()
        parent = MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
        self.path = Path(tempfile.mkdtemp(prefix="drengine-writable-", dir=parent))
        self.clock = ManualClock()
        self.pool = ThreadPoolExecutor(4)

    @initialize()
    def begin(self) -> None:
        self.store, self.storage, self.disk = promoted(self.path, self.clock)
        self.points: list[tuple[object, Disk]] = []
        self.flushed()
        self.open()

    def teardown(self) -> None:
        self.storage.plan = None
        self.pool.shutdown()
        self.view.close()
        self.store.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def open(self) -> None:
        self.view: WritableView = self.store.writable("web1", 2, generation=2)

    def flushed(self) -> None:
        """What the disk has now is durable. `states` are that and all that came later, any of which a full buffer may
        have made durable by itself.
        """
        self.states = [bytes(self.disk.data[1])]

    def found(self) -> None:
        """What is durable: one of the states since the last flush, from which the disk goes on."""
        with self.store.head_view("web1", 2) as head:
            found = bytes(head.read(1, 0, SIZE))
        assert found in self.states
        self.disk.data[1][:] = found
        check_head(self.store, "web1", 2, self.disk)
        self.flushed()

    @rule(at=st.integers(0, SIZE - 1), length=st.integers(1, 90_000), fill=st.integers(0, 255), now=st.booleans())
    def write(self, at: int, length: int, fill: int, now: bool) -> None:
        length = min(length, SIZE - at)
        data = bytes((fill + i) & 255 if fill else 0 for i in range(256)) * (length // 256 + 1)
        self.change(self.view.write_now if now else self.view.write, at, data[:length], data[:length])

    @rule(at=st.integers(0, SIZE), length=st.integers(0, SIZE), discard=st.booleans(), now=st.booleans())
    def clear(self, at: int, length: int, discard: bool, now: bool) -> None:
        length = min(length, SIZE - at)
        view = self.view
        calls = ((view.zero, view.zero_now), (view.discard, view.discard_now))
        self.change(calls[discard][now], at, length, bytes(length))

    def change(self, call: Callable[..., bool | None], at: int, what: bytes | int, shown: bytes) -> None:
        if call(1, at, what) is not False:
            self.disk.write(1, at, shown)
            self.states.append(bytes(self.disk.data[1]))

    @rule()
    def flush(self) -> None:
        self.view.flush()
        self.flushed()

    @rule()
    def cut(self) -> None:
        self.points.append((self.view.cut(PointKind.WRITE_ORDER), self.disk.copy()))
        self.flushed()
        assert not self.view.is_uncut

    @rule(seed=st.integers(0, 1 << 30), count=st.integers(1, 12))
    def threads(self, seed: int, count: int) -> None:
        """Each writes and reads a part of its own, and flushes now and then; all begin together."""
        together, share = Barrier(4), SIZE // 4

        def work(number: int) -> list[tuple[int, bytes]]:
            rng, done = random.Random(f"{seed} {number}"), []
            together.wait(WAIT_SECONDS)
            for _ in range(count):
                at = number * share + rng.randrange(share - 1)
                data = rng.randbytes(rng.randrange(1, min(9000, (number + 1) * share - at) + 1))
                self.view.write(1, at, data)
                done.append((at, data))
                assert self.view.read(1, at, len(data)) == data
                if rng.random() < 0.3:
                    self.view.flush()
            return done

        for made in [self.pool.submit(work, number) for number in range(4)]:
            for at, data in made.result(WAIT_SECONDS):
                self.disk.write(1, at, data)
        self.flush()

    @rule(after=st.integers(0, 5), applied=st.integers(0, 5000), at=st.integers(0, SIZE - 20_000))
    def full(self, after: int, applied: int, at: int) -> None:
        """The disk is full from some call on; whatever fails leaves all as it was, and a later flush makes it good."""
        begin = len(self.storage.calls)

        def plan(call: Call) -> Fault | None:
            writes = call.operation in ("append", "create", "sync")
            fails = writes and call.name.endswith(".seg") and call.number > begin + after
            return Fault(errno.ENOSPC, applied if call.operation == "append" else 0) if fails else None

        self.storage.plan = plan
        for number in range(3):
            data = bytes([number + 1]) * 20_000
            with suppress_full():
                self.change(self.view.write, at, data, data)
            with suppress_full():
                self.view.flush()
                self.flushed()
            assert self.view.read(1, 0, SIZE) == self.disk.data[1]
        self.storage.plan = None

    @rule(kill=st.booleans())
    def end(self, kill: bool) -> None:
        if kill:
            crash(self.view._writer)
        else:
            self.view.close()
        self.found()
        self.open()

    @rule(after=st.integers(0, 6))
    def break_down(self, after: int) -> None:
        """A call fails with EIO: the view is of no more use."""
        begin = len(self.storage.calls)
        self.storage.plan = lambda call: Fault(errno.EIO) if call.number > begin + after else None
        with suppress(DrengineError):
            self.view.flush()
            self.flushed()
        self.storage.plan = None
        assert self.view.read(1, 0, SIZE) == self.disk.data[1]
        self.view.close()
        self.found()
        self.open()

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @invariant()
    def what_was_written_is_read(self) -> None:
        assert self.view.read(1, 0, SIZE) == self.disk.data[1]
        assert b"".join(
            self.disk.data[1][at : at + length] if kind == "data" else bytes(length)
            for at, length, kind in self.view.extents(1)
        ) == bytes(self.disk.data[1])

    @invariant()
    def points_stay(self) -> None:
        for point, disk in self.points[-2:]:
            check_point(self.store, point, disk)  # type: ignore[arg-type]


class suppress_full(suppress):
    """Let STORE_FULL pass by."""

    def __init__(self) -> None:
        super().__init__(DrengineError)

    def __exit__(self, kind, error, trace) -> bool:  # type: ignore[no-untyped-def]
        return isinstance(error, DrengineError) and error.kind is STORE_FULL


WritableMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestWritableMachine = pytest.mark.fault(4)(WritableMachine.TestCase)


class Killed(BaseException):
    """The process ends here."""


def live(view: WritableView, seed: int, states: list[bytes], flushed: list[int], disk: bytearray) -> None:
    """Write and flush; `states` gets the disk after each change, `flushed` which of them flushes made durable."""
    rng = random.Random(seed)
    for _ in range(9):
        for _ in range(rng.randrange(1, 16)):
            at = rng.randrange(0, SIZE - 20_000)
            data = rng.randbytes(rng.randrange(1, 9000)) if rng.random() < 0.8 else bytes(rng.randrange(1, 9000))
            # A write that crosses a block is two rows of the log, and a crash may leave the first.
            cut = min(len(data), -at % 65536 or 65536)
            disk[at : at + cut] = data[:cut]
            states.append(bytes(disk))
            disk[at : at + len(data)] = data
            states.append(bytes(disk))
            view.write(1, at, data)
        view.flush()
        flushed.append(len(states) - 1)


@pytest.mark.fault(4)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # threads are killed as well
@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_call_loses_nothing_flushed_and_tears_nothing(seed: int) -> None:
    number, finished, tried = 0, False, 0
    with scratch() as path:
        clock = ManualClock()
        store, _, start = promoted(path, clock)
        store.close()
        while not finished:
            number += 1
            directory = path / "killed"
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(path / "store", directory)
            storage = FaultyStorage(LocalStorage(directory))
            store = Store.open(directory, options=OPTIONS, clock=clock, storage=storage)
            disk = bytearray(start.data[1])
            states, flushed = [bytes(disk)], [0]
            view = store.writable("web1", 2, generation=2)
            begin = len(storage.calls)

            def plan(call: Call, begin: int = begin, number: int = number) -> Fault | None:
                if call.number >= begin + number:
                    raise Killed
                return None

            storage.plan = plan
            try:
                live(view, seed, states, flushed, disk)
                finished = True
            except Killed:
                tried += 1
            storage.plan = None
            crash(view._writer)
            store.close()
            if not finished:
                done = [call for call in storage.calls[begin:] if call.number < begin + number]
                tear_last_append(directory, done, number)
            judge(directory, clock, states, flushed)
    assert tried > 20


def tear_last_append(directory: Path, done: list[Call], seed: int) -> None:
    """Take away a part of what was appended last, if that was not synced."""
    if done and done[-1].operation == "append":
        name = directory / done[-1].name
        os.truncate(name, name.stat().st_size - random.Random(seed).randrange(done[-1].size + 1))


def judge(directory: Path, clock: ManualClock, states: list[bytes], flushed: list[int]) -> None:
    """The store shows exactly a flush; rebuilt without its catalogue, a state at or behind that."""
    with Store.open(directory, options=OPTIONS, clock=clock) as store, store.head_view("web1", 2) as head:
        found = head.read(1, 0, SIZE)
    # The flush under way counts once its transaction is there.
    assert found in (states[flushed[-1]], states[-1])
    for file in directory.glob(f"{CATALOGUE_NAME}*"):
        file.unlink()
    Store.rebuild(directory, options=OPTIONS, clock=clock)
    with Store.open(directory, options=OPTIONS, clock=clock) as store:
        if len(store.branches("web1")) > 1:
            with store.head_view("web1", 2) as head:
                assert head.read(1, 0, SIZE) in states[flushed[-1] :]
        else:
            assert flushed == [0]


class EncryptedWritableMachine(EncryptedMachine, WritableMachine):
    """The same on an encrypted store, a few times."""


EncryptedWritableMachine.TestCase.settings = settings(WritableMachine.TestCase.settings, max_examples=8)
TestEncryptedWritableMachine = EncryptedWritableMachine.TestCase
