"""Firmware as the runbook says, else as the source booted; UEFI variables are the instance's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.qemu import firmware
from drengine.failover.drivers.qemu.driver import QemuDriver
from drengine.failover.drivers.qemu.firmware import firmware_arguments, firmware_needs, firmware_of
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.failover.needs import ReadableFile
from drengine.model.errors import DrengineError
from drengine.model.hardware import Machine
from drengine.model.inventory import Inventory


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Firmware of a host, and an instance's directory."""
    for name in ("CODE", "VARS"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(
        firmware,
        "PAIRS",
        ((Path("/nowhere"), Path("/nowhere")), (tmp_path / "CODE", tmp_path / "VARS")),
    )
    (tmp_path / "instance").mkdir()
    return tmp_path / "CODE", tmp_path / "instance"


@pytest.mark.parametrize(
    ("told", "boot_mode", "kernel", "found"),
    [
        ("", "", "", "bios"),
        ("", "uefi", "", "uefi"),
        ("", "uefi", "/boot/vmlinuz", "bios"),
        ("uefi", "bios", "", "uefi"),
        ("bios", "uefi", "", "bios"),
        ("/opt/OVMF.fd", "uefi", "", "/opt/OVMF.fd"),
    ],
)
def test_the_runbook_then_the_source(told: str, boot_mode: str, kernel: str, found: str) -> None:
    inventory = Inventory(taken_ns=1, boot_mode=boot_mode)
    assert firmware_of(QemuSettings(firmware=told, kernel=kernel), inventory) == found
    assert firmware_of(QemuSettings(firmware=told or "bios"), None) == (told or "bios")


def test_variables_are_copied_once_and_never_written_where_they_came_from(installed: tuple[Path, Path]) -> None:
    code, directory = installed
    told = firmware_arguments("uefi", directory)
    assert str(code) in told[1]
    assert '"filename": "variables.fd"' in told[3]
    variables = directory / "variables.fd"
    assert variables.read_bytes() == b"VARS"
    variables.write_bytes(b"the guest's")
    assert firmware_arguments("uefi", directory) == told
    assert variables.read_bytes() == b"the guest's"


def test_an_image_is_given_as_it_is(tmp_path: Path) -> None:
    assert firmware_arguments("/opt/OVMF.fd", tmp_path) == ["-bios", "/opt/OVMF.fd"]
    assert firmware_arguments("bios", tmp_path) == []


def test_without_firmware_a_launch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "PAIRS", ((Path("/nowhere/CODE"), Path("/nowhere/VARS")),))
    with pytest.raises(DrengineError, match="no UEFI firmware is installed; looked for /nowhere/CODE") as raised:
        firmware_arguments("uefi", tmp_path)
    assert raised.value.kind is LAUNCH_FAILED
    assert "edk2-ovmf" in raised.value.hint
    assert firmware_needs("uefi") == (ReadableFile("/nowhere/CODE"), ReadableFile("/nowhere/VARS"))


def test_what_is_needed_and_what_the_guest_will_find(installed: tuple[Path, Path]) -> None:
    code, _ = installed
    inventory = Inventory(taken_ns=1, boot_mode="uefi")
    assert ReadableFile(str(code)) in QemuDriver().needs({}, inventory)
    assert ReadableFile(str(code)) not in QemuDriver().needs({}, None)
    assert QemuDriver().machine({"disk_bus": "nvme"}, inventory) == Machine(disk_bus="nvme", firmware="uefi")
    assert QemuDriver().machine({"networks": [{"model": "e1000"}]}, None) == Machine(card="e1000")
