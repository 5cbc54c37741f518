"""Sources of which no agent told what they are made of: their disks are looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.conversion.looked import LookedDisk, inventory_of_disks
from drengine.model.inventory import Inventory
from drengine.terminal import main
from tests.conversion.mini import make_mini, needs_helper
from tests.conversion.sources import make_source
from tests.failover.drivers.qemu.guests import bios_disk, missing_for_uefi, uefi_disk
from tests.failover.engine.disks import disks_served

RUNBOOK = """
version: 1
name: shop
objectives: {rto: 1h}
sources:
  shop:
    fence: {command: ["true"]}
    launch:
      driver: qemu
      settings: {accelerator: tcg, memory_mib: 128, grace: 0.2s%s}
      timeout: 2m
waves: [{name: all, sources: [shop]}]
"""
campaign = pytest.mark.campaign


def grub(disk: Path) -> None:
    """Boot code as GRUB's looks."""
    with disk.open("r+b") as file:
        file.write(b"\xeb\x63".ljust(0x180, b"\x90") + b"GRUB ")


def looked(*disks: Path) -> Inventory | None:
    def read(file: Path) -> Callable[[int, int], bytes]:
        return lambda offset, length: file.read_bytes()[offset : offset + length]

    return inventory_of_disks(LookedDisk(each.name, each.stat().st_size, 512, read(each)) for each in disks)


def drilled(directory: Path, disk: Path, capsys: pytest.CaptureFixture[str], ready: str = "") -> dict[str, Any]:
    """What each step of a drill told, by its kind."""
    make_source(directory / "store", disk, "", is_told=False)
    (directory / "shop.yaml").write_text(RUNBOOK % (f", ready: {ready!r}" if ready else ""))
    given = ["--store", str(directory / "store"), "--state", str(directory / "state"), "--json"]
    with disks_served(directory / "store", directory / "nbd.sock"):
        code = main(app, ["drill", str(directory / "shop.yaml"), *given, "--export", f"unix:{directory / 'nbd.sock'}"])
    out, err = capsys.readouterr()
    told = json.loads((out or err).strip().splitlines()[-1])
    assert code == 0, told
    return {step["kind"]: step["data"] for step in told["steps"]}


def test_disks_show_how_a_server_boots_and_from_which_of_them(tmp_path: Path) -> None:
    data, bios, both = (make_mini(tmp_path / name) for name in ("data", "bios", "both"))
    for each in (bios, both):
        grub(each)
    assert looked() is None and looked(data) is None
    found = looked(data, bios)
    assert found is not None and found.boot_mode == "bios"
    assert [(disk.volume, disk.is_root) for disk in found.disks] == [("data", False), ("bios", True)]


@pytest.mark.skipif(bool(missing_for_uefi()), reason=f"not installed: {missing_for_uefi()}")
def test_a_disk_with_a_system_partition_boots_by_uefi_unless_grub_starts_it_otherwise(tmp_path: Path) -> None:
    uefi_disk(tmp_path / "uefi", "HELLO")
    found = looked(tmp_path / "uefi")
    assert found is not None and found.boot_mode == "uefi" and found.disks[0].table == "gpt"
    grub(tmp_path / "uefi")
    found = looked(tmp_path / "uefi")
    assert found is not None and found.boot_mode == "bios"


def test_any_bytes_are_no_disk_that_boots_or_one(tmp_path: Path) -> None:
    for content in (b"", b"\x55\xaa", bytes(510) + b"\x55\xaa", b"\xff" * 4096, b"GR"):
        (tmp_path / "disk").write_bytes(content)
        assert looked(tmp_path / "disk") is None


@campaign
@pytest.mark.timeout(600)
def test_a_source_of_which_nothing_is_told_is_converted_after_its_disks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_helper()
    disk = make_mini(tmp_path / "disk.raw")
    grub(disk)
    converted = drilled(tmp_path, disk, capsys)["convert"]
    assert converted["system"] == "Mini Linux" and not converted["skipped"]
    assert {"/etc/fstab", "/boot/grub/grub.cfg"} <= {each["path"] for each in converted["changes"]}


@campaign
@pytest.mark.timeout(600)
def test_disks_that_hold_no_system_we_know_are_launched_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_helper()
    if missing_for_uefi():
        pytest.skip(f"not installed: {missing_for_uefi()}")
    uefi_disk(tmp_path / "disk.raw", "BOOTED BY UEFI")
    told = drilled(tmp_path, tmp_path / "disk.raw", capsys)
    assert "no file system with /etc/fstab" in told["convert"]["skipped"]
    assert told["launch"]["details"]["machine"]["firmware"] == "uefi"


@campaign
def test_a_disk_without_a_boot_loader_is_not_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bios_disk(tmp_path / "disk.raw", "SPOKE")  # a sector that boots, and no partition
    told = drilled(tmp_path, tmp_path / "disk.raw", capsys, "SPOKE")
    assert "none of its disks boots" in told["convert"]["skipped"]
