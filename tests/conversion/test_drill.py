"""A disk of a SATA server is drilled on other hardware: converted, booted to its login prompt with its new address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.conversion.helper import MARK
from drengine.failover.drivers.qemu.driver import MARK as INSTANCE_MARK
from drengine.process import find_marked
from drengine.terminal import main
from tests.conversion.sources import make_source, point_digest
from tests.failover.engine.disks import disks_served
from tests.images.debian import debian_disk, debian_on_lvm

pytestmark = [pytest.mark.timeout(3600), pytest.mark.campaign]

NEW_ADDRESS = "10.0.2.10"
RUNBOOK = """
version: 1
name: shop
objectives: {{rto: 1h}}
addresses:
  rules: [{{from: 192.168.50.0/24, to: 10.0.2.0/24, gateway: 10.0.2.2}}]
sources:
  shop:
    fence: {{command: ["true"]}}
    launch:
      driver: qemu
      settings:
        accelerator: tcg
        disk_bus: {bus}
        drill_network: user
        ready: "Debian at {address}"
      timeout: 20m
      conversion: {{accelerator: tcg}}
waves: [{{name: all, sources: [shop]}}]
"""


@dataclass
class Place:
    """Where a store lies and commands are typed."""

    directory: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *argv: str) -> tuple[int, Any]:
        given = ["--store", str(self.directory / "store"), "--state", str(self.directory / "state"), "--json"]
        given += ["--export", f"unix:{self.directory / 'nbd.sock'}"]
        code = main(app, [*argv, *given])
        out, err = self.capture.readouterr()
        return code, json.loads((out or err).strip().splitlines()[-1])


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    yield Place(tmp_path, capsys)


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
@pytest.mark.parametrize("bus", ["virtio", "nvme"])
def test_a_sata_server_boots_on_other_disks_with_its_new_address(place: Place, bus: str, firmware: str) -> None:
    drilled(place, debian_disk(firmware), bus, firmware)


def test_a_system_with_dracut_boots_as_well(place: Place) -> None:
    changed = drilled(place, debian_disk("bios", dracut=True), "virtio", "bios")
    assert ("initramfs", "/etc/dracut.conf.d/drengine.conf") in changed
    assert ("kernel-command-line", "/boot/loader/entries/debian.conf") in changed


def test_a_root_on_lvm_is_found_and_boots(place: Place) -> None:
    drilled(place, debian_on_lvm(), "virtio", "bios", names_hardware=False)


def drilled(place: Place, disk: Path, bus: str, firmware: str, *, names_hardware: bool = True) -> set[tuple[str, str]]:
    """What was changed for it."""
    point = make_source(place.directory / "store", disk, firmware)
    before = point_digest(place.directory / "store", point)
    (place.directory / "shop.yaml").write_text(RUNBOOK.format(bus=bus, address=NEW_ADDRESS))

    with disks_served(place.directory / "store", place.directory / "nbd.sock"):
        code, told = place.run("drill", str(place.directory / "shop.yaml"))

    assert code == 0, told
    steps = {step["kind"]: step for step in told["steps"]}
    launched, converted = steps["launch"]["data"], steps["convert"]["data"]
    assert NEW_ADDRESS in launched["details"]["console"]
    changed = {(change["what"], change["path"]) for change in converted["changes"]}
    assert ("network", "/etc/network/interfaces") in changed
    assert (("fstab", "/etc/fstab") in changed) is names_hardware
    assert point_digest(place.directory / "store", point) == before
    assert not find_marked(MARK, launched["instance"]) + find_marked(INSTANCE_MARK, launched["instance"])
    assert not list((place.directory / "state" / "instances").iterdir())
    return changed
