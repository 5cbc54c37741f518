"""Machines of one drill share a bubble: they find each other by name, and it ends with the last of them."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.bubble import bubble_faults
from drengine.bubble.bubble import left_bubbles
from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.qemu import driver as module
from drengine.failover.drivers.qemu.driver import MARK, QemuDriver
from drengine.failover.drivers.qemu.networks import bubble_of
from drengine.model.hardware import Card, Server
from drengine.process import find_marked
from tests.failover.drivers.qemu.deaths import die_at
from tests.failover.drivers.qemu.guests import linux_guest, missing_for_linux

MISSING = missing_for_linux() or ("" if os.geteuid() == 0 else "root") or ", ".join(bubble_faults(taps=True))
pytestmark = [pytest.mark.machine, pytest.mark.skipif(bool(MISSING), reason=f"missing: {MISSING}")]

SCRIPT = """
$B mkdir -p /etc
$B cat > /tmp/lease <<'END'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
/bin/busybox ip addr add $ip/$mask dev eth0
/bin/busybox ip route add default via $router
echo $dns > /tmp/dns
echo "LEASE $ip/$mask via $router" > /tmp/lease.told
END
$B chmod +x /tmp/lease
$B ip link set eth0 up
while ! $B udhcpc -i eth0 -n -q -t 5 -T 1 -s /tmp/lease >/dev/null 2>&1; do :; done
while ! $B nslookup $peer.example.org $($B cat /tmp/dns) | $B grep -q "Address.*$address"; do $B sleep 0.2; done
while ! $B ping -c 1 -W 1 $address >/dev/null; do $B sleep 0.2; done
$B ping -c 1 -W 1 1.1.1.1 >/dev/null && echo "A WAY OUT"
$B cat /tmp/lease.told
echo "FOUND $peer"
while true; do $B sleep 60; done
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-qemu-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def server(name: str, number: int) -> Server:
    card = Card(
        name="eth0",
        mac=f"f2:00:00:00:00:{number:02x}",
        dhcp=True,
        addresses=(f"10.9.{number}.5/24",),
        gateway=f"10.9.{number}.1",
        name_servers=("10.9.1.53",),
        search=("example.org",),
    )
    return Server(names=(name,), cards=(card,))


SERVERS = {"db": server("db", 1), "web": server("web", 2)}


def request(folder: Path, source: str, settings: dict[str, Any], run: str) -> LaunchRequest:
    instance = f"{source}-{secrets.token_hex(4)}"
    return LaunchRequest(
        instance=instance,
        run=run,
        source=source,
        disks=(),
        isolated=True,
        settings={**settings, "network": "bridge:prod", "drill_network": "bubble"},
        directory=folder / instance,
        timeout_seconds=90.0,
        cards=SERVERS[source].cards,
        servers=SERVERS,
    )


@pytest.mark.timeout(240)
def test_machines_of_a_drill_find_each_other_and_nobody_else(folder: Path) -> None:
    guest = linux_guest(folder, SCRIPT, has=("net",))
    run = f"run-{secrets.token_hex(4)}"
    wanted = {}
    for source, peer, address in (("db", "web", "10.9.2.5"), ("web", "db", "10.9.1.5")):
        append = f"{guest['append']} peer={peer} address={address}"
        wanted[source] = request(folder, source, {**guest, "append": append, "ready": f"FOUND {peer}"}, run)
    try:
        unready = replace(wanted["db"], settings={**wanted["db"].settings, "ready": ""})
        QemuDriver().launch(unready, lambda _: None)
        for source in ("web", "db"):
            console = str(QemuDriver().launch(wanted[source], lambda _: None).details["console"])
            card = SERVERS[source].cards[0]
            assert f"LEASE {card.addresses[0]} via {card.gateway}" in console
            assert "A WAY OUT" not in console
        QemuDriver().stop(wanted["db"])
        assert bubble_of(wanted["web"]).name in left_bubbles(), "web is still in it"
    finally:
        for each in wanted.values():
            QemuDriver().stop(each)
    assert bubble_of(wanted["web"]).name not in left_bubbles()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["plugged", "card_arguments", "start_marked"])
def test_an_orchestrator_that_is_killed_in_a_drill_leaves_no_bubble(folder: Path, step: str, after: bool) -> None:
    wanted = request(folder, "db", {"accelerator": "tcg", "memory_mib": 64}, f"run-{secrets.token_hex(4)}")
    try:
        die_at(module, step, lambda: QemuDriver().launch(wanted, lambda _: None), after=after)
        QemuDriver().launch(wanted, lambda _: None)
        assert len(find_marked(MARK, wanted.instance)) == 1
    finally:
        QemuDriver().stop(wanted)
    assert bubble_of(wanted).name not in left_bubbles()
    assert list(folder.iterdir()) == []
