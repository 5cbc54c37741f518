"""KVM is used only where a guest really runs on it, which is found in bounded time and once a boot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from drengine.failover.drivers.qemu import accelerator
from drengine.failover.drivers.qemu.accelerator import Accelerator, choose_accelerator, probe
from drengine.failover.drivers.qemu.settings import QemuSettings

TIMED_OUT = 124
TRIED = 'echo tried >> "$HOME/tried"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An instance's directory, on a host that has a /dev/kvm."""
    monkeypatch.setattr(accelerator, "KVM", Path("/dev/null"))
    monkeypatch.setenv("HOME", str(tmp_path))
    made = tmp_path / "instance"
    made.mkdir()
    return made


def program(here: Path, script: str) -> QemuSettings:
    """A QEMU that behaves so."""
    file = here.parent / "qemu"
    file.write_text(f"#!/bin/sh\n{TRIED}{script}\n")
    file.chmod(0o755)
    return QemuSettings(program=str(file))


def times_tried(here: Path) -> int:
    return len((here.parent / "tried").read_text().split())


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed")
def test_the_probes_guest_runs_to_its_end_where_instructions_are_carried_out(tmp_path: Path) -> None:
    assert probe(QemuSettings(), tmp_path, "tcg", seconds=60.0) == ("", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed")
def test_what_is_chosen_here_is_kvm_or_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    chosen = choose_accelerator(QemuSettings(), tmp_path / "instance")
    print(chosen)
    assert (chosen.name, bool(chosen.reason)) in {("kvm", False), ("tcg", True)}


@pytest.mark.parametrize(
    ("script", "chosen"),
    [
        ("exit 85", Accelerator("kvm")),
        ("echo no >&2; echo 'invalid MSR' >&2; exit 134", Accelerator("tcg", "a guest does not start: invalid MSR")),
        ("exit 1", Accelerator("tcg", "a guest does not start: exit status 1")),
    ],
)
def test_a_verdict_is_found_once_a_boot(
    here: Path, monkeypatch: pytest.MonkeyPatch, script: str, chosen: Accelerator
) -> None:
    settings = program(here, script)
    assert choose_accelerator(settings, here) == choose_accelerator(settings, here) == chosen
    assert times_tried(here) == 1
    boot = here.parent / "boot"
    boot.write_text("another\n")
    monkeypatch.setattr(accelerator, "BOOT", boot)
    assert choose_accelerator(settings, here) == chosen
    assert times_tried(here) == 2
    assert list(here.iterdir()) == []


def test_a_guest_that_hangs_is_ended_and_tried_again_if_it_got_nothing_of_the_processor(here: Path) -> None:
    settings = program(here, "exec sleep 60")
    for tries in (1, 2):
        assert choose_accelerator(settings, here).reason == "a guest that only counts did not end within 1.7 s"
        assert times_tried(here) == tries


def test_a_guest_that_ran_all_the_time_and_did_not_end_is_certain(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([(TIMED_OUT, 1.6, "")])
    monkeypatch.setattr(accelerator, "_run", lambda *_: next(ends))
    for _ in range(2):
        assert "did not end" in choose_accelerator(QemuSettings(), here).reason


def test_verdicts_that_can_not_be_read_are_found_again(here: Path) -> None:
    settings = program(here, "exit 85")
    (here.parent / accelerator.VERDICTS).write_bytes(b'{"x": 1')
    assert choose_accelerator(settings, here).name == "kvm"


def test_without_the_device_nothing_is_tried(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "KVM", Path("/nowhere/kvm"))
    chosen = choose_accelerator(program(here, "exit 85"), here)
    assert chosen == Accelerator("tcg", f"/nowhere/kvm can't be opened: {os.strerror(2)}")
    assert choose_accelerator(QemuSettings(accelerator="kvm"), here) == Accelerator("kvm")
    assert not (here.parent / "tried").exists()
