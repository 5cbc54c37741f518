"""A disk that fails at any call: nothing acknowledged is lost and nothing torn is shown."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import Cut, PointKind
from drengine.store.blobs import LocalStorage, MemoryStorage
from drengine.store.blobs.faulty import Fault, FaultyStorage, fail_from
from drengine.store.care.retention import RetentionPolicy
from drengine.store.errors import DAMAGED, FENCED, STORE_FULL, STORE_IO, STORE_READ_ONLY
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.sampling import SOME_OR_ALL, sampled
from tests.store.harness import Disk, Source, batch, check_head, check_point, crash, geometry, mark, scratch

SMALL = StoreOptions(segment_bytes_max=9000, write_buffer_bytes=70_000)
ERRNOS = [errno.ENOSPC, errno.EIO]
EXPECTED_KINDS = (STORE_FULL, STORE_IO, STORE_READ_ONLY, DAMAGED)


def raises(kind):
    return pytest.raises(DrengineError, check=lambda error: error.kind is kind)


@dataclass
class Step:
    """One stream position: what is sent and what the disk is after it."""

    kind: str
    payload: object
    disk: Disk


def stream(count: int = 24) -> list[Step]:
    """A deterministic stream; position n is element n - 1."""
    source, disk, steps = random.Random(5), Disk(), []
    volumes = geometry(root=20_000, data=7_001)
    disk.reshape(volumes)
    steps.append(Step("geometry", volumes, disk.copy()))
    for number in range(count):
        if number % 4 == 3:
            steps.append(Step("cut", Cut(number, PointKind.QUIET), disk.copy()))
            continue
        write = (1 + number % 2, source.randrange(2000), source.randbytes(source.randrange(1, 5000)))
        disk.write(*write)
        steps.append(Step("batch", batch(write), disk.copy()))
    return steps


STREAM = stream()


def send(writer, sequence: int) -> None:
    step = STREAM[sequence - 1]
    act = {"geometry": writer.append_geometry, "batch": writer.append_batch, "cut": writer.append_cut}
    act[step.kind](sequence, mark(sequence), step.payload, generation=1)


def replicate(store: Store, errors: list[DrengineError], until: int = len(STREAM)) -> int:
    """Send the stream as an agent would, after an error from the durable position on; returns what was acknowledged."""
    acknowledged, writer = 0, None
    for _ in range(60):
        try:
            writer = writer or store.writer("web1", generation=1)
            acknowledged = max(acknowledged, writer.durable.sequence)
            while writer.durable.sequence < until:
                while writer.appended_sequence < until and (writer.appended_sequence + 1) % 3:
                    send(writer, writer.appended_sequence + 1)
                if writer.appended_sequence < until:
                    send(writer, writer.appended_sequence + 1)
                acknowledged = max(acknowledged, writer.commit(generation=1).sequence)
        except DrengineError as error:
            errors.append(error)
            assert error.kind in EXPECTED_KINDS, error
            if writer is not None:
                durable = writer.durable.sequence
                assert durable >= acknowledged
                if error.kind is STORE_FULL:
                    assert writer.appended_sequence == durable, "what was not committed was not kept"
                    continue
                with pytest.raises(DrengineError):
                    send(writer, durable + 1)
                writer.close()
                writer = None
        else:
            writer.close()
            return acknowledged
    raise AssertionError(f"no end: {errors[-3:]}")


def check(store: Store, acknowledged: int) -> None:
    report = store.scrub()
    assert not report.records_damaged and not report.points_damaged
    durable = store.context.catalogue.branch("web1", 1).durable_sequence
    assert durable >= acknowledged
    for point in store.points("web1"):
        check_point(store, point, STREAM[point.sequence - 1].disk)
    cuts = [number for number, step in enumerate(STREAM, 1) if step.kind == "cut" and number <= durable]
    assert [point.sequence for point in store.points("web1")] == cuts
    if durable:
        check_head(store, "web1", 1, STREAM[durable - 1].disk)


def faulty_store(path: Path) -> tuple[Store, FaultyStorage]:
    storage = FaultyStorage(LocalStorage(path / "store"))
    store = Store.create(path / "store", options=SMALL, clock=ManualClock(), storage=storage)
    store.ensure_source("web1")
    storage.calls.clear()
    return store, storage


def count_calls() -> int:
    with scratch() as path:
        store, storage = faulty_store(path)
        replicate(store, [])
        store.close()
        return len(storage.calls)


@pytest.mark.fault(5)
@pytest.mark.fault(6)
@pytest.mark.fault(8)
@pytest.mark.parametrize("applied", [0, 700])
@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_an_error_at_any_call_of_ingest_loses_nothing_acknowledged(number, applied, every):
    total = count_calls()
    met = set()
    for call in sampled(range(1, total + 1), every):
        with scratch() as path:
            store, storage = faulty_store(path)
            storage.calls.clear()
            storage.plan = fail_from(call, Fault(number, applied))
            errors: list[DrengineError] = []
            acknowledged = replicate(store, errors)
            met |= {error.kind for error in errors}
            storage.plan = None
            store.close()
            with Store.open(path / "store", options=SMALL) as again:
                assert acknowledged == len(STREAM)
                check(again, acknowledged)
    assert (STORE_FULL if number == errno.ENOSPC else STORE_IO) in met


@pytest.mark.fault(5)
@pytest.mark.parametrize("operation", ["append", "sync", "sync_dir"])
def test_after_an_io_error_the_writer_never_tries_again(operation):
    with scratch() as path:
        store, storage = faulty_store(path)
        replicate(store, [], until=5)
        writer = store.writer("web1", generation=1)
        storage.calls.clear()
        storage.plan = lambda call: Fault(errno.EIO) if call.operation == operation else None
        with raises(STORE_IO):
            send(writer, 6)
            writer.commit(generation=1)
        storage.plan = None
        for _ in range(3):
            with raises(STORE_IO):
                send(writer, 6)
            with raises(STORE_IO):
                writer.commit(generation=1)
        assert writer.durable.sequence == 5
        writer.close()
        assert replicate(store, []) == len(STREAM)
        check(store, len(STREAM))


@pytest.mark.fault(6)
def test_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_space():
    with scratch() as path:
        store, storage = faulty_store(path)
        replicate(store, [], until=5)
        writer = store.writer("web1", generation=1)
        storage.plan = lambda call: Fault(errno.ENOSPC) if call.operation in ("append", "create", "put") else None
        for _ in range(5):
            with raises(STORE_FULL):
                send(writer, 6)
            assert writer.durable.sequence == writer.appended_sequence == 5
        assert not [name for name in storage.inner.list("segments") if "00000009" in name]
        storage.plan = None
        send(writer, 6)
        assert writer.commit(generation=1).sequence == 6
        writer.close()
        check(store, 6)


@pytest.mark.fault(6)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_small_file_system_fills_up_and_replication_goes_on_when_there_is_space():
    with scratch() as path:
        disk = path / "disk"
        disk.mkdir()
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
        )
        if mount.returncode:
            pytest.skip(f"no small file system can be mounted here: {mount.stderr.decode().strip()}")
        try:
            store = Store.create(disk / "store", options=SMALL, clock=ManualClock())
            store.ensure_source("web1")
            filler = disk / "filler"
            for room in (0, 3, 5, 9, 17, 40):
                space = shutil.disk_usage(disk).free - room * 4096
                filler.write_bytes(bytes(max(0, space)))
                writer = store.writer("web1", generation=1)
                acknowledged = writer.durable.sequence
                try:
                    while writer.appended_sequence < len(STREAM):
                        send(writer, writer.appended_sequence + 1)
                        acknowledged = writer.commit(generation=1).sequence
                except DrengineError as error:
                    assert error.kind is STORE_FULL, error
                    assert writer.durable.sequence == acknowledged
                filler.unlink()
                writer.close()
                check(store, acknowledged)
            assert replicate(store, []) == len(STREAM)
            check(store, len(STREAM))
            store.close()
        finally:
            subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.fault(6)
def test_a_full_disk_loses_nothing_that_was_written_to_a_branch():
    with scratch() as path:
        store, storage = faulty_store(path)
        replicate(store, [])
        point = store.points("web1")[-1]
        branch = store.promote(point, expected_generation=1)
        disk = STREAM[point.sequence - 1].disk.copy()
        view = store.writable("web1", branch.number, generation=2)
        for number in range(8):
            if number == 3:
                storage.plan = lambda call: Fault(errno.ENOSPC, 20) if call.operation == "append" else None
            data = os.urandom(3000)
            view.write(1, number * 1500, data)
            disk.write(1, number * 1500, data)
            if number in (1, 7):
                if number == 7:
                    with raises(STORE_FULL):
                        view.flush()
                    with raises(STORE_FULL):
                        view.cut(PointKind.QUIET)
                    storage.plan = None
                view.flush()
            assert view.read(1, 0, 20_000) == disk.data[1]
        made = view.cut(PointKind.WRITE_ORDER)
        view.close()
        check_point(store, made, disk)
        assert store.scrub().records_damaged == []


@pytest.mark.fault(7)
@pytest.mark.fault(12)
@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_an_error_at_any_call_of_retention_and_compaction_keeps_what_is_live(number, every):
    def prepare(path: Path) -> tuple[Store, FaultyStorage, Source]:
        storage = FaultyStorage(LocalStorage(path / "store"))
        clock = ManualClock()
        store = Store.create(path / "store", options=SMALL, clock=clock, storage=storage)
        source = Source(store, root=20_000)
        for step in range(7):
            source.write(1, 0, os.urandom(4000))
            source.write(1, 5000 + step * 10, b"stays" * 30)
            source.cut()
            source.commit()
            clock.advance(3600)
        storage.calls.clear()
        return store, storage, source

    def maintain(store: Store) -> None:
        store.retain(RetentionPolicy(keep_all_seconds=4000, steps=()), store.context.clock.now_ns())
        store.compact()

    with scratch() as path:
        store, storage, source = prepare(path)
        maintain(store)
        total, final = len(storage.calls), store.stats().stored_bytes
        source.writer.close()
        store.close()
    failed = 0
    for call in sampled(range(1, total + 1), every):
        for applied in (0, 1):
            with scratch() as path:
                store, storage, source = prepare(path)
                storage.plan = fail_from(call, Fault(number, applied))
                try:
                    maintain(store)
                except DrengineError as error:
                    failed += 1
                    assert error.kind in EXPECTED_KINDS, error
                storage.plan = None
                source.check()
                maintain(store)
                source.check()
                assert not store.scrub().records_damaged
                assert abs(store.stats().stored_bytes - final) < 500
                on_disk = sum(
                    (path / "store" / name).stat().st_size
                    for name in storage.inner.list("segments")
                    if name.endswith(".seg")
                )
                assert on_disk == store.stats().stored_bytes, "nothing is left behind"
                source.writer.close()
                store.close()
    assert failed > 5


@pytest.mark.fault(4)
@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_a_kill_between_any_two_calls_leaves_old_or_new(every):
    """The process stops at a call: all earlier ones happened, none after. (Lost caches are the replay campaign's.)"""

    class Killed(BaseException):
        pass

    total = count_calls()
    for call in sampled(range(1, total + 1), every):
        with scratch() as path:
            store, storage = faulty_store(path)
            storage.calls.clear()
            writers = []
            original = store.writer

            def remembering(*args, original=original, writers=writers, **named):
                writers.append(original(*args, **named))
                return writers[-1]

            store.writer = remembering

            def kill(asked, call=call):
                if asked.number >= call:
                    raise Killed

            storage.plan = kill
            with pytest.raises(Killed):
                replicate(store, [])
            storage.plan = None
            acknowledged = 0
            for writer in writers:
                acknowledged = writer.durable.sequence
                crash(writer)
            store.close()
            with Store.open(path / "store", options=SMALL) as again:
                check(again, acknowledged)
                assert replicate(again, []) == len(STREAM)
                check(again, len(STREAM))
            (path / "store" / "catalogue.sqlite").unlink()
            assert Store.rebuild(path / "store", options=SMALL).lost == []
            with Store.open(path / "store", options=SMALL) as rebuilt:
                check(rebuilt, len(STREAM))


@pytest.mark.fault(18)
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_disk_that_turns_read_only_is_said_and_nothing_is_acknowledged(number):
    with scratch() as path:
        store, storage = faulty_store(path)
        replicate(store, [], until=5)
        writer = store.writer("web1", generation=1)
        storage.plan = lambda call: Fault(number) if call.operation in ("create", "append", "put") else None
        with raises(STORE_READ_ONLY):
            send(writer, 6)
        assert writer.durable.sequence == 5
        writer.close()
        storage.plan = None
        check(store, 5)


@pytest.mark.parametrize("append", [True, False])
def test_the_store_works_on_any_storage(append):
    with scratch() as path:
        storage = MemoryStorage(append=append)
        store = Store.create(path / "store", options=SMALL, clock=ManualClock(), storage=storage)
        store.ensure_source("web1")
        assert replicate(store, []) == len(STREAM)
        check(store, len(STREAM))
        point = store.points("web1")[1]
        store.promote(point, expected_generation=1)
        view = store.writable("web1", 2, generation=2)
        disk = STREAM[point.sequence - 1].disk.copy()
        for number in range(5):
            view.write(1, number * 100, b"branch" * 50)
            disk.write(1, number * 100, b"branch" * 50)
            assert view.read(1, 0, 20_000) == disk.data[1]
        view.flush()
        assert view.read(1, 0, 20_000) == disk.data[1]
        view.close()
        store.compact()
        check_head(store, "web1", 2, disk)
        with raises(FENCED):
            store.writer("web1", generation=1)
        store.close()
