"""Machines on bridges: they see each other, their addresses stay, and whoever is killed leaves no device behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import until
from drengine.failover.drivers.driver import Instance, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.qemu import driver as module
from drengine.failover.drivers.qemu.cards import cards_of, steady_mac
from drengine.failover.drivers.qemu.driver import MARK, QemuDriver
from drengine.failover.drivers.qemu.settings import CardSettings, QemuSettings
from drengine.linux.namespaces import in_network
from drengine.linux.taps import open_port
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card
from drengine.process import find_marked
from tests.failover.drivers.qemu.deaths import die_at
from tests.failover.drivers.qemu.guests import linux_guest, missing_for_linux

pytestmark = pytest.mark.machine

BRIDGES = ("br0", "br1")
SCRIPT = """
for card in /sys/class/net/eth*; do echo "$($B basename $card) $($B cat $card/address)"; done
$B ip link set eth0 up
$B ip addr add 10.9.0.$host/24 dev eth0
while ! $B ping -c 1 -W 1 10.9.0.$peer >/dev/null; do $B sleep 0.2; done
echo "PEER SEEN"
while true; do $B sleep 60; done
"""
BARE = {"accelerator": "tcg", "memory_mib": 64, "grace": "0.2s", "network": "bridge:br0"}


def request(directory: Path, settings: dict[str, Any], **more: Any) -> LaunchRequest:
    values: dict[str, Any] = {"source": "shop", "isolated": False, "disks": (), "timeout_seconds": 90.0, **more}
    instance = f"net-{secrets.token_hex(4)}"
    return LaunchRequest(instance=instance, run="run-1", settings=settings, directory=directory / instance, **values)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-qemu-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def network() -> Iterator[str]:
    """A namespace with two bridges, and nothing else."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("only root can make networks, by ip(8)")
    name = f"dr-qemu-{secrets.token_hex(3)}"
    ip("netns", "add", name)
    try:
        for bridge in BRIDGES:
            ip("-n", name, "link", "add", bridge, "mtu", "1400", "type", "bridge")
            ip("-n", name, "link", "set", bridge, "up")
        yield name
    finally:
        ip("netns", "del", name)


def ip(*argv: str) -> str:
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True).stdout


def ports(network: str, bridge: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip("-n", network, "-json", "link", "show", "master", bridge))
    return found


needs_linux = pytest.mark.skipif(bool(missing_for_linux()), reason=f"not installed: {missing_for_linux()}")
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed")


@needs_linux
@pytest.mark.timeout(240)
def test_machines_on_one_bridge_see_each_other_under_addresses_that_stay(folder: Path, network: str) -> None:
    guest = linux_guest(folder, SCRIPT, has=("net",))
    cards = [{"network": f"bridge:{bridge}"} for bridge in BRIDGES]
    wanted = {}
    for number, (source, peer) in enumerate({"shop": 2, "db": 1}.items(), 1):
        append = f"{guest['append']} host={number} peer={peer}"
        settings = {**guest, "append": append, "networks": cards, "ready": "PEER SEEN"}
        wanted[source] = request(folder, settings, source=source)
    wanted["shop"] = replace(wanted["shop"], settings={**wanted["shop"].settings, "ready": ""})
    try:
        in_network(network, lambda: QemuDriver().launch(wanted["shop"], lambda _: None))
        found = in_network(network, lambda: QemuDriver().launch(wanted["db"], lambda _: None))
        for number, _ in enumerate(cards):
            assert f"eth{number} {steady_mac('db', number)}" in found.details["console"]
        assert found.details["machine"]["macs"] == (steady_mac("db", 0), steady_mac("db", 1))
        assert [port["mtu"] for bridge in BRIDGES for port in ports(network, bridge)] == [1400] * 4
        assert "inet6" not in ip("-n", network, "addr", "show", ports(network, "br0")[0]["ifname"])
        os.kill(find_marked(MARK, wanted["shop"].instance)[0], signal.SIGKILL)
        QemuDriver().stop(wanted["db"])
        until(lambda: not any(ports(network, bridge) for bridge in BRIDGES), "the machines' ports are gone")
    finally:
        for each in wanted.values():
            QemuDriver().stop(each)


STEPS = ("cards_of", "check_memory", "choose_accelerator", "replace_durably", "firmware_arguments", "hydrated",
         "plugged", "card_arguments", "machine_arguments", "start_marked", "find_marked")  # fmt: skip


@needs_qemu
@pytest.mark.parametrize("after", [False, True])
def test_an_orchestrator_that_is_killed_at_any_step_leaves_one_machine_or_none(
    folder: Path, network: str, after: bool
) -> None:
    def launch() -> Instance:
        return in_network(network, lambda: QemuDriver().launch(wanted, lambda _: None))

    for step in STEPS:
        wanted = request(folder, BARE)
        try:
            die_at(module, step, launch, after=after)
            running = len(find_marked(MARK, wanted.instance, wanted.directory))
            assert running == int((step, after) == ("start_marked", True))
            assert len(ports(network, "br0")) == running, f"{step}: a port of nobody"
            assert launch().healthy
            assert len(ports(network, "br0")) == len(find_marked(MARK, wanted.instance)) == 1, step
        finally:
            QemuDriver().stop(wanted)
        until(lambda: not ports(network, "br0"), "the machine's port is gone")
        assert not wanted.directory.exists(), step
    assert [each.name for each in folder.iterdir()] == []


def test_a_bridge_that_is_not_there_is_named(folder: Path, network: str) -> None:
    wanted = request(folder, {**BARE, "network": "bridge:nowhere"})
    with pytest.raises(DrengineError, match="into the bridge nowhere: No such device") as raised:
        in_network(network, lambda: QemuDriver().launch(wanted, lambda _: None))
    assert raised.value.kind is LAUNCH_FAILED
    with pytest.raises(OSError, match=r"Operation not supported|Invalid argument"):
        in_network(network, lambda: open_port("drtest", "lo"))  # is no bridge
    QemuDriver().stop(wanted)
    assert "dr" not in ip("-n", network, "link")


def cards(request: LaunchRequest, settings: QemuSettings) -> list[tuple[str, str]]:
    return [(card.network, card.mac) for card in cards_of(request, settings)]


def test_addresses_are_the_runbooks_then_the_rules_then_the_names(tmp_path: Path) -> None:
    ruled = request(tmp_path, {}, cards=(Card(mac="52:54:00:00:00:01"), Card(mac="52:54:00:00:00:02"), Card()))
    three = QemuSettings(networks=[CardSettings(network=f"bridge:{each}", mac=mac) for each, mac in
                                   (("a", ""), ("b", "52:54:00:00:00:0F"), ("c", ""))])  # fmt: skip
    assert cards(ruled, three) == [
        ("bridge:a", "52:54:00:00:00:01"),
        ("bridge:b", "52:54:00:00:00:0f"),
        ("bridge:c", steady_mac("shop", 2)),
    ]
    assert cards(ruled, QemuSettings(network="user"))[2] == ("user", steady_mac("shop", 2))
    assert steady_mac("shop", 2) != steady_mac("shop", 1) != steady_mac("db", 1)


def test_in_a_drill_every_card_is_on_the_drills_network(tmp_path: Path) -> None:
    drill = request(tmp_path, {}, isolated=True, cards=(Card(), Card()))
    settings = QemuSettings(network="bridge:prod", drill_network="bridge:lab")
    assert [network for network, _ in cards(drill, settings)] == ["bridge:lab", "bridge:lab"]


def test_as_many_cards_as_the_runbook_names_and_no_address_twice(tmp_path: Path) -> None:
    ruled = request(tmp_path, {}, cards=(Card(mac="52:54:00:00:00:01"), Card()))
    assert cards(ruled, QemuSettings(networks=[CardSettings(network="user")])) == [("user", "52:54:00:00:00:01")]
    same = QemuSettings(networks=[CardSettings(), CardSettings(mac="52:54:00:00:00:01")])
    with pytest.raises(DrengineError, match="two cards have the mac 52:54:00:00:00:01") as raised:
        cards_of(ruled, same)
    assert raised.value.kind is LAUNCH_SETTINGS
