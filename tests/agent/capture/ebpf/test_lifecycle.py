"""Adoption, doubt, kills at every store, devices that change, and what the kernel refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.states import REASONS
from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program, syscalls
from drengine_agent.capture.ebpf import watch as watch_module
from drengine_agent.capture.ebpf.bits import store_bytes, store_word
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.errors import EBPF_REFUSED, EBPF_UNAVAILABLE
from drengine_agent.capture.ebpf.layout import WatchedVolume
from drengine_agent.capture.ebpf.offsets import Offsets
from drengine_agent.capture.ebpf.pins import PIN_ROOT, folder_of
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.rig import (
    BLOCK,
    MIB,
    blocks_of,
    fresh_source,
    loop_device,
    needs_kernel,
    run,
    watched,
    write,
)

pytestmark = needs_kernel


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        yield device


@pytest.fixture
def source() -> Iterator[str]:
    name = fresh_source()
    yield name
    Watch.detach(name)


def again(source: str, *disks: Path) -> tuple[str, bytes]:
    """Attach and let go: the doubt and the epoch."""
    watch = Watch.attach(source, watched(*disks))
    try:
        assert watch.doubt == "none" or watch.doubt in REASONS
        return watch.doubt, watch.epoch
    finally:
        watch.close()


def test_state_is_adopted_any_number_of_times(disk: Path, source: str) -> None:
    first = again(source, disk)
    assert first[0] == "untracked"
    assert {again(source, disk) for _ in range(3)} == {("none", first[1])}


@pytest.mark.fault(21)
def test_state_of_another_boot_is_not_believed(disk: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, epoch = again(source, disk)
    monkeypatch.setattr(syscalls, "boot_id", lambda: "another")
    doubt, fresh = again(source, disk)
    assert doubt == "rebooted"
    assert fresh != epoch


def test_state_of_other_programs_is_not_believed(disk: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    again(source, disk)
    monkeypatch.setattr(program, "fingerprint", lambda: b"another version.")
    assert again(source, disk)[0] == "tracker-version"


@pytest.mark.fault(25)
def test_another_set_of_volumes_begins_anew(disk: Path, tmp_path: Path, source: str) -> None:
    again(source, disk)
    with loop_device(tmp_path / "second.img", MIB) as second:
        assert again(source, disk, second)[0] == "geometry-changed"
        assert again(source, disk, second)[0] == "none"


@pytest.mark.fault(22)
@pytest.mark.parametrize("pin", ["control", "bits", "link-request-0", "link-request-2", "program-request-1"])
def test_state_with_a_missing_pin_is_not_believed(disk: Path, source: str, pin: str) -> None:
    again(source, disk)
    (folder_of(PIN_ROOT, source) / pin).unlink()
    assert again(source, disk)[0] in ("unclean-stop", "tracking-lost")
    assert again(source, disk)[0] == "none"


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    ("place", "doubt"),
    [
        (at.AT_MAGIC, "unclean-stop"),
        (at.AT_VERSION, "tracker-version"),
        (at.AT_TAGS, "tracking-lost"),
        (at.AT_FAULTS, "tracking-lost"),
        (at.AT_DOUBT, "tracking-lost"),
        (at.AT_BOOT, "rebooted"),
        (at.AT_GEOMETRY, "geometry-changed"),
    ],
)
def test_a_control_value_that_does_not_fit_is_not_believed(disk: Path, source: str, place: int, doubt: str) -> None:
    watch = Watch.attach(source, watched(disk))
    store_bytes(watch._control, place, b"\x13\x07")
    watch.close()
    assert again(source, disk)[0] == doubt


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is done."""


@pytest.mark.fault(22)
@pytest.mark.parametrize("act", ["flip", "clear", "add"])
def test_a_kill_at_any_store_loses_no_bit_and_needs_no_rescan(
    disk: Path, source: str, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Before each act: two blocks pending (or active), two active. Whatever stage was reached, all come out again."""
    finished = False
    for limit in range(1, 12):
        watch = Watch.attach(source, watched(disk))
        if watch.has_pending:
            watch.clear_pending()
        for block in (1, 2000):
            write(disk, block * BLOCK, BLOCK)
        if act != "flip":
            watch.flip()
            for block in (7, 3000):
                write(disk, block * BLOCK, BLOCK)
        answer = watch.answer
        stores = 0

        def store(view: object, place: int, value: int, limit: int = limit) -> None:
            nonlocal stores
            stores += 1
            if stores == limit:
                raise Killed
            store_word(view, place, value)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(watch_module, "store_word", store)
            try:
                if act == "flip":
                    watch.flip()
                elif act == "add":
                    watch.add_pending([watch.pending()[0]])
                else:
                    watch.clear_pending()
                finished = True
            except Killed:
                pass
        watch.close()
        watch = Watch.attach(source, watched(disk))
        try:
            assert watch.doubt == "none"
            assert watch.answer >= answer
            found = blocks_of(watch.pending())
            if watch.has_pending:
                watch.clear_pending()
            watch.flip()
            found |= blocks_of(watch.pending())
            wanted = {1, 2000} if act == "flip" else {7, 3000} if act == "clear" else {1, 2000, 7, 3000}
            assert wanted <= {block for _, block in found}
        finally:
            watch.close()
        if finished:
            break
    assert finished


CHILD = """
import sys
from pathlib import Path
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.rig import watched
watch = Watch.attach(sys.argv[1], watched(Path(sys.argv[2])))
print(watch.doubt, flush=True)
while True:
    if watch.has_pending:
        watch.clear_pending(keep=watch.pending())
    else:
        watch.flip()
"""


@pytest.mark.fault(22)
def test_sigkill_while_it_flips_loses_nothing(disk: Path, source: str) -> None:
    """The child flips and keeps everything; killed at an arbitrary moment, again and again, no block goes missing."""
    wanted: set[int] = set()
    for turn in range(8):
        child = subprocess.Popen([sys.executable, "-c", CHILD, source, str(disk)], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == ("none" if turn else "untracked")
            for block in range(turn * 100, turn * 100 + 40):
                write(disk, block * BLOCK, BLOCK)
                wanted.add(block)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            if child.stdout:
                child.stdout.close()
    watch = Watch.attach(source, watched(disk))
    try:
        found = blocks_of(watch.pending())
        watch.clear_pending()
        watch.flip()
        assert wanted <= {block for _, block in found | blocks_of(watch.pending())}
    finally:
        watch.close()


@pytest.mark.fault(25)
def test_a_disk_that_grows_is_noticed(disk: Path, tmp_path: Path, source: str) -> None:
    watch = Watch.attach(source, watched(disk))
    try:
        assert watch.check() == "none"
        os.truncate(tmp_path / "disk.img", 96 * MIB)
        run("losetup", "--set-capacity", disk)
        assert watch.check() == "geometry-changed"
    finally:
        watch.close()
    assert again(source, disk)[0] == "geometry-changed"


@pytest.mark.fault(27)
def test_another_disk_under_the_same_number_is_noticed(tmp_path: Path, source: str) -> None:
    with loop_device(tmp_path / "one.img", 8 * MIB) as disk:
        watch = Watch.attach(source, watched(disk))
        try:
            run("losetup", "--detach", disk)
            assert watch.check() == "volume-missing"
            (tmp_path / "two.img").write_bytes(bytes(8 * MIB))
            run("losetup", "--direct-io=on", disk, tmp_path / "two.img")
            assert BlockDevice.of_path(disk).number == watch._volumes[0].device.number
            assert watch.check() == "volume-replaced"
        finally:
            watch.close()
        assert again(source, disk)[0] == "tracking-lost"


def test_programs_that_the_verifier_refuses_are_an_error_with_the_end_of_its_log(
    disk: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Offsets.of
    monkeypatch.setattr(Offsets, "of", lambda types: replace(real(types), request_sector=1 << 14))
    with pytest.raises(DrengineError) as refused:
        Watch.attach(source, watched(disk))
    assert refused.value.kind is EBPF_UNAVAILABLE
    assert "struct request" in refused.value.message
    assert len(refused.value.message) < 2500
    assert Watch.inspect(source) is None
    monkeypatch.undo()
    assert again(source, disk)[0] == "untracked"


@pytest.mark.parametrize(
    ("call", "turn"),
    [("map_create", 2), ("program_load", 1), ("program_load", 3), ("raw_tracepoint_open", 2), ("pin", 1), ("pin", 6)],
)
def test_a_beginning_that_fails_leaves_nothing_behind(
    disk: Path, source: str, monkeypatch: pytest.MonkeyPatch, call: str, turn: int
) -> None:
    real, calls = getattr(syscalls, call), 0

    def failing(*args: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls >= turn:
            raise OSError(12, "no memory")
        return real(*args, **named)

    monkeypatch.setattr(syscalls, call, failing)
    with pytest.raises(DrengineError) as refused:
        Watch.attach(source, watched(disk))
    assert refused.value.kind is EBPF_UNAVAILABLE
    monkeypatch.undo()
    assert not folder_of(PIN_ROOT, source).exists()


def test_what_is_no_device_or_too_small_is_refused(tmp_path: Path, disk: Path, source: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(DrengineError) as refused:
            BlockDevice.of_path(path)
        assert refused.value.kind is EBPF_REFUSED
    device = BlockDevice.of_path(disk)
    for size in (0, device.size_bytes + 1):
        with pytest.raises(DrengineError) as refused:
            Watch.attach(source, [WatchedVolume(1, device, size)])
        assert refused.value.kind is EBPF_REFUSED
    with pytest.raises(DrengineError, match="DAX"):
        Watch.attach(source, [WatchedVolume(1, replace(device, refusal="DAX"), 4096)])


def test_reading_a_disks_serial_again_and_again_marks_nothing_and_raises_no_doubt(source: str) -> None:
    """What monitoring does: pass-through commands that read."""
    serial = Path("/sys/block/vda/serial")
    if not serial.exists():
        pytest.skip("needs a virtio disk: its serial number is asked for by a pass-through command")
    watch = Watch.attach(source, watched("/dev/vda"))
    try:
        before = watch.statistics()
        for _ in range(50):
            serial.read_bytes()
        after = watch.statistics()
        assert after.passed_in - before.passed_in >= 50
        assert after.passed_out == before.passed_out
        assert watch.check() == "none"
    finally:
        watch.close()


def test_tracking_survives_a_source_name_with_dots_and_detach_is_complete(disk: Path, tmp_path: Path) -> None:
    name = fresh_source() + ".example.org"
    again(name, disk)
    assert Watch.inspect(name) is not None
    assert Watch.detach(name)
    assert not Watch.detach(name)
    assert Watch.inspect(name) is None
