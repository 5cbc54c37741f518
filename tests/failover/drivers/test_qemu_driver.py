"""The `qemu` driver keeps the contract with real virtual machines, and never lets a drill out."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.qemu import QemuDriver, QemuSettings, machine_arguments, nbd_node
from drengine.model.errors import DrengineError

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


def arguments(settings: QemuSettings, **more: Any) -> list[str]:
    return machine_arguments(request(Path("/nowhere"), {}, **more), settings)


def test_a_drill_never_uses_the_network_of_the_failover() -> None:
    settings = QemuSettings(network="bridge:prod", drill_network="none")
    assert "none" in arguments(settings, isolated=True)
    assert not any("prod" in each for each in arguments(settings, isolated=True))
    assert any('"br": "prod"' in each for each in arguments(settings, isolated=False))


def test_the_boot_disk_comes_first_and_names_stay_values() -> None:
    disks = (
        Disk("log", 1, "nbd://127.0.0.1:10809/shop/log%232"),
        Disk("root,readonly=on", 1, "nbd+unix:///a%22,b?socket=/run/x,y.sock"),
    )
    told = arguments(QemuSettings(boot="root,readonly=on"), disks=disks)
    nodes = [json.loads(each) for each in told if each.startswith('{"driver": "nbd"')]
    devices = [json.loads(each) for each in told if '"bootindex"' in each]
    assert [device["serial"] for device in devices] == ["root,readonly=on", "log"]
    assert [node["export"] for node in nodes] == ['a",b', "shop/log#2"]
    assert nodes[0]["server"] == {"type": "unix", "path": "/run/x,y.sock"}


@pytest.mark.fault(76)
def test_a_disk_of_larger_sectors_looks_like_one_to_the_machine() -> None:
    disks = (Disk("a", 1, "nbd://127.0.0.1:1/a"), Disk("b", 1, "nbd://127.0.0.1:1/b", 4096))
    devices = [json.loads(each) for each in arguments(QemuSettings(), disks=disks) if '"bootindex"' in each]
    assert "logical_block_size" not in devices[0]
    assert (devices[1]["logical_block_size"], devices[1]["physical_block_size"]) == (4096, 4096)


@pytest.mark.parametrize("uri", ["http://x/y", "nbd:///x", ""])
def test_what_is_no_nbd_address_is_refused(uri: str) -> None:
    with pytest.raises(DrengineError, match="no NBD address"):
        nbd_node(uri)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"network": "bridge:a,b=c"}, "is none of"),
        ({"drill_network": "vde"}, "is none of"),
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
@pytest.mark.fault(58)
def test_a_machine_whose_disk_is_not_served_fails_with_qemus_words(tmp_path: Path) -> None:
    wanted = replace(request(tmp_path / "i", BARE), disks=(Disk("d", 1, "nbd+unix:///x?socket=/no/such/socket"),))
    with pytest.raises(DrengineError, match="no/such/socket"):
        for _ in range(100):
            QemuDriver().launch(wanted, lambda _: None)
    QemuDriver().stop(wanted)
