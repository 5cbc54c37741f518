"""A restore is complete or says that it is not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.linux.identity import evidence_of, identity_of
from drengine.model.errors import DrengineError
from drengine.store.care.retention import RetentionPolicy
from drengine.store.store import Store
from drengine.target import restore as engine
from drengine.target.destination import check_destination
from drengine.target.restore import Restore
from tests.clock import ManualClock
from tests.recovery.replica import SIZE, make, point_of

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "UNIT_BYTES", 1 << 20)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[tuple[Store, dict[str, bytes]]]:
    contents = make(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        yield store, contents


def restoring(store: Store, point_id: str, destination: Path, **options: object) -> engine.RestoreReport:
    point = point_of(store, point_id)
    with store.view(point) as view:
        work = Restore(
            view,
            point.geometry[0],
            destination,
            identity=store.context.identity + point_id.encode(),
            clock=ManualClock(),
            **options,  # type: ignore[arg-type]
        )
        report = work.run(lambda done, total: None)
        work.forget()
        return report


def test_each_point_is_restored_byte_for_byte_and_sparse(
    replica: tuple[Store, dict[str, bytes]], tmp_path: Path
) -> None:
    store, contents = replica
    for number, (point_id, content) in enumerate(contents.items()):
        destination = tmp_path / f"{number}.img"
        report = restoring(store, point_id, destination)
        assert destination.read_bytes() == content
        assert report.verified and report.size_bytes == SIZE
        assert destination.stat().st_blocks * 512 < SIZE // 2
        assert sorted(path.name for path in tmp_path.glob(f"{number}.img*")) == [f"{number}.img"]


@pytest.mark.fault(58)
def test_a_restore_that_fails_at_any_write_is_never_completed_and_goes_on(
    replica: tuple[Store, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, contents = replica
    point_id, content = list(contents.items())[-1]
    calls = 0
    fail_at, code = 0, errno.ENOSPC
    lock = threading.Lock()

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*arguments: object) -> object:
            nonlocal calls
            with lock:
                calls += 1
                failing = calls == fail_at
            if failing:
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        monkeypatch.setattr(engine.os, name, wrapped)

    for name in ("pwrite", "fdatasync", "fsync", "ftruncate"):
        wrap(name)
    restoring(store, point_id, tmp_path / "probe.img")
    total = calls
    assert total > 10
    for fail_at in range(1, total + 1):
        code = errno.ENOSPC if fail_at % 2 else errno.EIO
        calls = 0
        destination = tmp_path / f"{fail_at}.img"
        try:
            restoring(store, point_id, destination)
        except DrengineError as error:
            assert error.kind.id in ("destination-too-small", "restore-failed"), fail_at
            assert "NOT restored" in error.message
            if fail_at < total:  # the last call syncs the folder: the file has its name by then, and is whole
                assert not destination.exists()
        else:
            pytest.fail(f"completed although call {fail_at} failed")
        calls = -10_000
        restoring(store, point_id, destination)
        assert destination.read_bytes() == content
        destination.unlink()


@pytest.mark.fault(58)
def test_a_destination_that_forgets_is_found_out_and_healed_by_the_next_run(
    replica: tuple[Store, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, contents = replica
    point_id, content = list(contents.items())[-1]
    destination = tmp_path / "disk.img"
    read_back = Restore._read_back

    def rot_then_read(self: Restore, descriptor: int) -> None:
        hole = next(at for at in range(0, SIZE, 4096) if not any(content[at : at + 4096]))
        os.pwrite(descriptor, b"rot", hole)
        read_back(self, descriptor)

    monkeypatch.setattr(Restore, "_read_back", rot_then_read)
    with pytest.raises(DrengineError, match="does not hold"):
        restoring(store, point_id, destination)
    assert not destination.exists()
    monkeypatch.setattr(Restore, "_read_back", read_back)
    report = restoring(store, point_id, destination)
    assert destination.read_bytes() == content
    assert report.resumed_bytes > 0


@pytest.mark.fault(58)
@pytest.mark.parametrize("dropped", [True, False])
def test_what_the_device_has_is_compared_while_the_rest_is_written(
    replica: tuple[Store, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    store, contents = replica
    point_id, content = list(contents.items())[-1]
    monkeypatch.setattr(engine, "READ_BACK_UNITS", 1)
    early: list[int] = []

    def drop(descriptor: int, offset: int, _: int) -> bool:
        early.append(offset)
        return dropped

    monkeypatch.setattr(engine.writeback, "drop", drop)
    restoring(store, point_id, tmp_path / "disk.img")
    assert (tmp_path / "disk.img").read_bytes() == content
    assert early

    def spoil(descriptor: int, offset: int, _: int) -> bool:
        os.pwrite(descriptor, bytes([content[offset] ^ 1]), offset)
        return dropped

    monkeypatch.setattr(engine.writeback, "drop", spoil)
    with pytest.raises(DrengineError, match="does not hold"):
        restoring(store, point_id, tmp_path / "spoilt.img")
    assert not (tmp_path / "spoilt.img").exists()


def test_progress_of_another_point_is_not_taken_over(replica: tuple[Store, dict[str, bytes]], tmp_path: Path) -> None:
    store, contents = replica
    (older, _), (newer, content) = contents.items()
    destination = tmp_path / "disk.img"
    point = point_of(store, older)
    with store.view(point) as view:
        work = Restore(view, point.geometry[0], destination, identity=older.encode(), clock=ManualClock())

        def stop_half_way(done: int, total: int) -> None:
            if done > total // 2:
                work.stop()

        with pytest.raises(DrengineError, match="NOT restored"):
            work.run(stop_half_way)
    report = restoring(store, newer, destination)
    assert report.resumed_bytes == 0
    assert destination.read_bytes() == content


def test_a_damaged_sidecar_only_costs_time(replica: tuple[Store, dict[str, bytes]], tmp_path: Path) -> None:
    store, contents = replica
    point_id, content = list(contents.items())[-1]
    destination = tmp_path / "disk.img"
    point = point_of(store, point_id)
    identity = store.context.identity + point_id.encode()
    with store.view(point) as view:
        work = Restore(view, point.geometry[0], destination, identity=identity, clock=ManualClock())
        with pytest.raises(DrengineError):
            work.run(lambda done, total: work.stop())
    sidecar = tmp_path / ("disk.img" + engine.SIDECAR)
    data = bytearray(sidecar.read_bytes())
    data[-1] ^= 1
    sidecar.write_bytes(data)
    assert restoring(store, point_id, destination).resumed_bytes == 0
    assert destination.read_bytes() == content


@pytest.mark.fault(2)
def test_damaged_data_ends_a_restore_without_a_destination(tmp_path: Path) -> None:
    contents = make(tmp_path / "store")
    segment = next((tmp_path / "store").rglob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 3] ^= 1
    segment.write_bytes(data)
    with Store.open(tmp_path / "store") as store:
        point_id = list(contents)[-1]
        with pytest.raises(DrengineError) as failed:
            restoring(store, point_id, tmp_path / "disk.img")
        assert failed.value.kind.id == "damaged"
    assert not (tmp_path / "disk.img").exists()


@pytest.mark.fault(12)
def test_retention_during_a_restore_leaves_its_point_alone(
    replica: tuple[Store, dict[str, bytes]], tmp_path: Path
) -> None:
    store, contents = replica
    point_id, content = next(iter(contents.items()))
    point = point_of(store, point_id)
    with store.view(point) as view:
        work = Restore(view, point.geometry[0], tmp_path / "disk.img", identity=b"x", clock=ManualClock())
        far = store.context.clock.now_ns() + 400 * 86400 * 10**9

        def retain(done: int, total: int) -> None:
            store.retain(RetentionPolicy(0, ()), far)
            store.compact()

        work.run(retain)
    assert (tmp_path / "disk.img").read_bytes() == content


def test_destinations_that_must_not_be_written_are_refused_and_untouched(
    replica: tuple[Store, dict[str, bytes]], tmp_path: Path
) -> None:
    store, contents = replica
    volume = point_of(store, next(iter(contents))).geometry[0]
    where = tmp_path / "store"
    busy, link = tmp_path / "busy.img", tmp_path / "link.img"
    busy.write_bytes(b"mine")
    link.symlink_to(busy)
    own = tmp_path / "own.img"
    own.write_bytes(b"own")
    with own.open("rb") as opened:
        protected = type(volume)(1, "data", identity_of(evidence_of(opened.fileno())), SIZE)

    def refused(path: Path, kind: str, *, force: bool = True, of: object = volume) -> None:
        with pytest.raises(DrengineError) as error:
            check_destination(path, of, where, overwrite=force)  # type: ignore[arg-type]
        assert error.value.kind.id == kind, error.value

    refused(where / "disk.img", "destination-refused")
    refused(where / "segments" / "x.img", "destination-refused")
    refused(link, "destination-refused")
    refused(tmp_path / "nowhere" / "disk.img", "destination-refused")
    refused(tmp_path, "destination-refused")
    refused(Path("/dev/null"), "destination-refused")
    refused(own, "destination-refused", of=protected)
    refused(busy, "destination-exists", force=False)
    with busy.open("r+b") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        refused(busy, "destination-refused")
    check_destination(busy, volume, where, overwrite=True)
    assert busy.read_bytes() == b"mine"


@pytest.mark.fault(58)
def test_a_restore_that_is_killed_at_random_moments_resumes_until_it_is_whole(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    contents = make(tmp_path / "store", seed=seed)
    point_id, content = list(contents.items())[-1]
    destination = tmp_path / "disk.img"
    slow = (
        "import sys, time, drengine.target.restore as r, drengine.cli.main as m\n"
        "real = r._write_at\n"
        "def slowly(*a):\n    time.sleep(0.01); real(*a)\n"
        "r._write_at = slowly\nr.SAVE_SECONDS = 0.01\nr.UNIT_BYTES = 1 << 18\n"
        "print('go', flush=True)\nm.run()\n"
    )
    arguments = (
        "restore",
        point_id,
        "--store",
        str(tmp_path / "store"),
        "--to",
        f"data={destination}",
        "--json",
    )
    killed = 0
    for attempt in range(30):
        process = subprocess.Popen(
            [sys.executable, "-c", slow, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        try:
            out, err = process.communicate(timeout=60 if attempt >= 4 else rng.uniform(0.05, 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            out, err = process.communicate()
            killed += 1
            assert "completed" not in out or destination.exists()  # killed on its way out
            if destination.exists():
                break
            continue
        assert process.returncode == 0, err
        assert json.loads(out)["completed"] is True
        break
    print(f"killed {killed} times")
    assert destination.read_bytes() == content


def test_ctrl_c_leaves_a_state_that_the_next_run_takes_up(tmp_path: Path) -> None:
    contents = make(tmp_path / "store")
    point_id, content = list(contents.items())[-1]
    destination = tmp_path / "disk.img"
    slow = (
        "import os, time, drengine.target.restore as r, drengine.cli.main as m\n"
        "real = r.Restore._write_unit\n"
        "def slowly(*a):\n    time.sleep(0.05); os.write(1, b'unit\\n'); return real(*a)\n"
        "r.Restore._write_unit = slowly\nr.UNIT_BYTES = 1 << 17\nm.run()\n"
    )
    quick = "import drengine.target.restore as r, drengine.cli.main as m\nr.UNIT_BYTES = 1 << 17\nm.run()\n"
    arguments = ("restore", point_id, "--store", str(tmp_path / "store"), "--to", f"data={destination}")
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "unit\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 67, err
    assert "NOT restored" in err and "completed" not in out
    again = subprocess.run(
        [sys.executable, "-c", quick, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["volumes"][0]["resumed_bytes"] > 0
    assert destination.read_bytes() == content
