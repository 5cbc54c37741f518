"""A machine is as large as the runbook says, else as its source was, and is not started where it does not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.qemu import machine
from drengine.failover.drivers.qemu.disks import serial_numbers
from drengine.failover.drivers.qemu.driver import QemuDriver
from drengine.failover.drivers.qemu.machine import Size, size_of
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.failover.needs import Memory
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory

SOURCE = Inventory(taken_ns=1, memory_bytes=(4 << 30) - (170 << 20), cpus=1)


@pytest.mark.parametrize(
    ("settings", "inventory", "size"),
    [
        (QemuSettings(), None, Size(1024, 1)),
        (QemuSettings(), Inventory(taken_ns=1), Size(1024, 1)),
        (QemuSettings(), SOURCE, Size(4096, 1)),
        (QemuSettings(memory_mib=512, cpus=3), SOURCE, Size(512, 3)),
        (QemuSettings(memory_mib=512), Inventory(taken_ns=1, cpus=9999), Size(512, os.cpu_count() or 1)),
    ],
)
def test_the_runbook_then_the_source(settings: QemuSettings, inventory: Inventory | None, size: Size) -> None:
    assert size_of(settings, inventory) == size


def test_the_sources_memory_is_asked_for_before_it_is_needed() -> None:
    assert Memory(4 << 30) in QemuDriver().needs({}, SOURCE)


def test_a_machine_that_does_not_fit_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: (4 << 30) - 1)
    wanted = LaunchRequest(
        instance="i",
        run="run-1",
        source="shop",
        disks=(),
        isolated=True,
        settings={},
        directory=tmp_path / "i",
        inventory=SOURCE,
    )
    with pytest.raises(DrengineError, match=r"would take 4\.0 GiB of 4\.0 GiB that are available") as raised:
        QemuDriver().launch(wanted, lambda _: None)
    assert raised.value.kind is LAUNCH_FAILED
    assert "memory_mib" in raised.value.hint
    assert not wanted.directory.exists()


def test_no_two_disks_have_the_same_serial_number() -> None:
    volumes = ["root", "a-volume-with-a-long-name-1", "a-volume-with-a-long-name-2"]
    assert serial_numbers(volumes) == ["root", "a-volume-with-a--1", "a-volume-with-a--2"]
    assert all(len(serial) <= 20 for serial in serial_numbers([f"{'v' * 30}{number}" for number in range(200)]))
