"""Disks boot by BIOS and by UEFI on every bus that the driver has, and the disk that should boot does."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import until
from drengine.failover.drivers.driver import Disk, Instance, LaunchRequest
from drengine.failover.drivers.qemu.driver import QemuDriver
from drengine.model.inventory import Inventory
from tests.failover.drivers.qemu.guests import bios_disk, missing_for_uefi, uefi_disk
from tests.failover.drivers.qemu.served import served

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed"),
]
needs_uefi = pytest.mark.skipif(bool(missing_for_uefi()), reason=f"not installed: {missing_for_uefi()}")
SETTINGS = {"accelerator": "tcg", "memory_mib": 256, "grace": "0.2s"}
BUSES = ("virtio", "nvme", "sata", "scsi")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-qemu-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def request(folder: Path, disks: tuple[Disk, ...], **settings: Any) -> LaunchRequest:
    return LaunchRequest(
        instance=f"boot-{secrets.token_hex(4)}",
        run="run-1",
        source="shop",
        disks=disks,
        isolated=True,
        settings={**SETTINGS, **settings},
        directory=folder / "instance",
        timeout_seconds=120.0,
    )


@contextmanager
def launched(wanted: LaunchRequest) -> Iterator[Instance]:
    try:
        yield QemuDriver().launch(wanted, lambda _: None)
    finally:
        QemuDriver().stop(wanted)


@pytest.mark.parametrize("bus", BUSES)
def test_the_disk_that_should_boots_by_bios(folder: Path, bus: str) -> None:
    files = {name: folder / name for name in ("data", "root")}
    for name, file in files.items():
        bios_disk(file, f"{name} BOOTED")
    with served(folder / "s", files) as disks:
        wanted = request(folder, disks, disk_bus=bus, boot="root", ready="BOOTED")
        with launched(wanted) as found:
            assert "root BOOTED" in found.details["console"]


def test_a_guest_that_reboots_goes_on(folder: Path) -> None:
    bios_disk(folder / "root", "BOOTED", then="b0fee664")  # mov $0xfe, %al; out %al, $0x64: reset
    with served(folder / "s", {"root": folder / "root"}) as disks:
        wanted = request(folder, disks, ready="BOOTED")
        with launched(wanted) as found:
            until(lambda: str(QemuDriver().inspect(wanted).details["console"]).count("BOOTED") > 1, "the second boot")
            assert QemuDriver().inspect(wanted).details["pids"] == found.details["pids"]


@needs_uefi
@pytest.mark.parametrize(
    "bus", ["nvme", *(pytest.param(bus, marks=pytest.mark.campaign) for bus in BUSES if bus != "nvme")]
)
def test_a_disk_boots_by_uefi(folder: Path, bus: str) -> None:
    uefi_disk(folder / "root", "UEFI REACHED")
    with served(folder / "s", {"root": folder / "root"}) as disks:
        wanted = request(folder, disks, disk_bus=bus, ready="UEFI REACHED")
        inventory = Inventory(taken_ns=1, boot_mode="uefi")
        with launched(replace(wanted, inventory=inventory)) as found:
            assert found.details["machine"]["firmware"] == "uefi"
            assert "virtual machine on tcg: 256 MiB, 1 CPU, uefi, no card\n" in found.details["output"]
        assert not wanted.directory.exists()
