"""The `qemu` driver keeps the contract with real virtual machines, and never lets a drill out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.qemu.cards import cards_of
from drengine.failover.drivers.qemu.disks import disk_arguments
from drengine.failover.drivers.qemu.driver import QemuDriver
from drengine.failover.drivers.qemu.settings import CardSettings, QemuSettings
from drengine.model.errors import DrengineError
from drengine.nbd.blockdev import nbd_node

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed")
BARE = {"accelerator": "tcg", "memory_mib": 64, "grace": "0.2s"}
"""A machine without a disk: the BIOS looks for one for ever, which is running enough for the contract."""


def request(directory: Path, settings: dict[str, Any], **more: Any) -> LaunchRequest:
    values = {"isolated": True, "disks": (), "timeout_seconds": 20.0, **more}
    return LaunchRequest(
        instance=f"test-{secrets.token_hex(4)}",
        run="run-1",
        source="shop",
        settings=settings,
        directory=directory,
        **values,
    )


@needs_qemu
class TestContract(LaunchDriverContract):
    def driver(self) -> QemuDriver:
        return QemuDriver()

    def request(self, directory: Path) -> LaunchRequest:
        return request(directory, BARE)

    def failing(self, directory: Path) -> LaunchRequest:
        return request(directory, {**BARE, "ready": "never said"}, timeout_seconds=1.0)


def test_a_drill_never_uses_the_network_of_the_failover() -> None:
    settings = QemuSettings(networks=[CardSettings(network="bridge:prod"), CardSettings(network="user")])
    drill, failover = (request(Path("/nowhere"), {}, isolated=isolated) for isolated in (True, False))
    assert cards_of(drill, settings) == ()
    assert [card.network for card in cards_of(failover, settings)] == ["bridge:prod", "user"]


def test_the_boot_disk_comes_first_and_names_stay_values() -> None:
    disks = (
        Disk("log", 1, "nbd://127.0.0.1:10809/shop/log%232"),
        Disk("root,readonly=on", 1, "nbd+unix:///a%22,b?socket=/run/x,y.sock"),
    )
    nodes, devices = blocks(QemuSettings(boot="root,readonly=on"), disks)
    assert [device["serial"] for device in devices] == ["root,readonly=on", "log"]
    assert [device["bootindex"] for device in devices] == [1, 2]
    assert [node["export"] for node in nodes] == ['a",b', "shop/log#2"]
    assert nodes[0]["server"] == {"type": "unix", "path": "/run/x,y.sock"}


def blocks(settings: QemuSettings, disks: tuple[Disk, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nodes and the devices that the disks become."""
    told = [json.loads(each) for each in disk_arguments(request(Path("/nowhere"), {}, disks=disks), settings)[1::2]]
    return [each for each in told if each["driver"] == "nbd"], [each for each in told if "serial" in each]


@pytest.mark.fault(76)
@pytest.mark.parametrize("bus", ["virtio", "nvme", "scsi"])
def test_a_disk_of_larger_sectors_looks_like_one_to_the_machine(bus: Any) -> None:
    disks = (Disk("a", 1, "nbd://127.0.0.1:1/a"), Disk("b", 1, "nbd://127.0.0.1:1/b", 4096))
    _, devices = blocks(QemuSettings(disk_bus=bus), disks)
    assert "logical_block_size" not in devices[0]
    assert (devices[1]["logical_block_size"], devices[1]["physical_block_size"]) == (4096, 4096)


def test_a_bus_that_can_not_have_larger_sectors_is_refused() -> None:
    with pytest.raises(DrengineError, match="volume b has sectors of 4096 bytes"):
        blocks(QemuSettings(disk_bus="sata"), (Disk("b", 1, "nbd://127.0.0.1:1/b", 4096),))


@pytest.mark.parametrize("uri", ["http://x/y", "nbd:///x", ""])
def test_what_is_no_nbd_address_is_refused(uri: str) -> None:
    with pytest.raises(DrengineError, match="no NBD address"):
        nbd_node(uri)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"network": "bridge:a,b=c"}, "is none of"),
        ({"drill_network": "vde"}, "is none of"),
        ({"networks": [{"network": "bridge:"}]}, "is none of"),
        ({"networks": [{}], "mac": "52:54:00:00:00:01"}, "`networks` stands for several"),
        ({"networks": [{"mac": "52:54:00:00:00:0a"}, {"mac": "52:54:00:00:00:0A"}]}, "two of its cards"),
        ({"networks": [{"model": "ena"}]}, r"networks\[0\]\.model"),
        ({"mac": "01:00:5e:00:00:01"}, "no address of one network card"),
        ({"mac": "52:54:00:00:00"}, "no address of one network card"),
        ({"firmware": "efi"}, "none of bios, uefi, and no path"),
        ({"disk_bus": "floppy"}, "disk_bus"),
        ({"guest_agent": "maybe"}, "guest_agent"),
        ({"cpus": -1}, "negative"),
        ({"accelerator": "magic"}, "magic"),
        ({"memory_mib": "lots"}, "memory_mib"),
        ({"grace": "soon"}, "soon"),
    ],
)
@needs_qemu
def test_settings_that_can_not_work_are_refused_before_the_worst_day(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(DrengineError, match=told) as raised:
        QemuDriver().check_settings(settings)
    assert raised.value.kind is LAUNCH_SETTINGS


@needs_qemu
def test_a_console_of_any_size_is_read_as_far_as_it_is_needed(tmp_path: Path) -> None:
    wanted = request(tmp_path / "i", {**BARE, "ready": "READY"})
    try:
        QemuDriver().launch(replace(wanted, settings=BARE), lambda _: None)
        with (wanted.directory / "console.log").open("ab") as console:
            console.write(b"READY\n")
            console.truncate(1 << 40)  # more than can be read
            console.seek(0, os.SEEK_END)
            console.write(b"last words")
        found = QemuDriver().inspect(wanted)
        assert found.healthy
        assert found.details["console"].endswith("last words")
        assert len(found.details["console"]) <= 4096
    finally:
        QemuDriver().stop(wanted)


@needs_qemu
@pytest.mark.fault(58)
def test_a_machine_whose_disk_is_not_served_fails_with_qemus_words(tmp_path: Path) -> None:
    wanted = replace(request(tmp_path / "i", BARE), disks=(Disk("d", 1, "nbd+unix:///x?socket=/no/such/socket"),))
    with pytest.raises(DrengineError, match="no/such/socket"):
        for _ in range(100):
            QemuDriver().launch(wanted, lambda _: None)
    QemuDriver().stop(wanted)
