"""Networks of workloads on a recovery host: a drill's bubble that they share, and addresses that move to the host."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.bubble import Bubble
from drengine.bubble.bubble import RESOLVERS
from drengine.control.attach import AttachOrder, StandbySettings
from drengine.control.messages import Verb
from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.standby import StandbyDriver
from drengine.linux.links import links
from drengine.linux.namespaces import in_network, is_network, make_network, remove_network
from drengine.linux.neighbours import who_has
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card, Server
from drengine_agent.standby.allow import AllowOptions
from drengine_agent.standby.errors import ADDRESS_TAKEN
from drengine_agent.standby.examine import _network as network_findings
from drengine_agent.standby.network import WorkloadNetwork
from drengine_agent.standby.workload import Workload
from tests.agent.standby.test_standby import command, host, needs_root, ordering
from tests.bubble.test_bubble import MISSING, reaches, told

pytestmark = [pytest.mark.machine, needs_root, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")]

DB = Card(name="eth0", mac="f2:00:00:00:01:01", addresses=("10.9.3.5/24",), gateway="10.9.3.1", search=("example.org",))
WEB = Card(name="eth0", mac="f2:00:00:00:01:02", addresses=("10.9.4.7/24",), gateway="10.9.4.1")
SERVERS = {"db": Server(names=("db",), cards=(DB,)), "web": Server(names=("web",), cards=(WEB,))}
PORT = 5432
LISTEN = """
import socket, sys, time
server = socket.create_server(("", int(sys.argv[1])))
open(sys.argv[2], "w").close()
time.sleep(600)
"""


def order(run: str, source: str, card: Card, *, isolated: bool = True, **settings: Any) -> AttachOrder:
    return AttachOrder(
        instance=f"{source}-{secrets.token_hex(4)}",
        source=source,
        disks={},
        settings=StandbySettings(**settings),
        isolated=isolated,
        timeout_seconds=15.0,
        run=run,
        cards=(card,),
        servers=SERVERS,
    )


@pytest.fixture
def run() -> Iterator[str]:
    name = f"drt-{secrets.token_hex(4)}"
    yield name
    Bubble(name, {}).drop()


async def test_workloads_of_a_drill_see_each_other_and_checks_inside_see_them(run: str, tmp_path: Path) -> None:
    (tmp_path / "listen.py").write_text(LISTEN)
    began = tmp_path / "began"
    start = f"{sys.executable} {tmp_path}/listen.py {PORT} {began} >/dev/null 2>&1 &"
    listens = {"start": ["sh", "-c", start], "stop": ["true"], "health": ["test", "-e", str(began)]}
    db, web = order(run, "db", DB, network="bubble", **listens), order(run, "web", WEB, network="bubble")
    here = host(tmp_path / "state")
    workloads = [Workload(each, tmp_path / "state/instances" / each.instance) for each in (db, web)]
    try:
        assert [each.start(lambda _: None)["addresses"] for each in workloads] == [["10.9.3.5/24"], ["10.9.4.7/24"]]
        workloads[0].start(lambda _: None)
        asked = {"instance": web.instance, "seconds": 5.0, "tcp": {"host": "10.9.3.5", "port": PORT}}
        seen = await here.check(command(Verb.CHECK, asked), lambda _: None)
        assert seen["seen"] == "10.9.3.5:5432 accepts connections"
        assert told(workloads[1].network, "db.example.org").split()[0] == "10.9.3.5"
        workloads[0].stop()
        assert is_network(Bubble(run, {}).name)
        assert workloads[1].healthy(5.0), "another's end is not its own"
    finally:
        for each in workloads:
            each.stop()
    assert not is_network(Bubble(run, {}).name)
    for each in workloads:
        assert not is_network(each.network)
        assert not (RESOLVERS / each.network).exists()


def test_the_driver_tells_the_host_who_is_in_the_drill_and_what_it_sees_there(run: str, tmp_path: Path) -> None:
    request = LaunchRequest(
        instance=f"db-{secrets.token_hex(4)}",
        run=run,
        source="db",
        disks=(),
        isolated=True,
        settings={"network": "bubble"},
        directory=tmp_path,
        host="recovery-1",
        timeout_seconds=20.0,
        order=ordering(tmp_path / "state"),
        cards=(DB,),
        servers=SERVERS,
    )
    driver = StandbyDriver()
    alone = replace(request, instance=f"db-{secrets.token_hex(4)}", settings={"network": "none"})
    try:
        driver.launch(request, lambda _: None)
        assert driver.addresses(request) == ["10.9.3.5/24"]
        assert told(f"dr-{request.instance}", "web").split()[0] == "10.9.4.7"
        driver.launch(alone, lambda _: None)
        assert driver.addresses(alone) is None
    finally:
        driver.stop(alone)
        driver.stop(request)
    assert not is_network(Bubble(run, {}).name)


def test_a_host_that_knows_no_interface_is_told_of_none() -> None:
    order = AttachOrder(instance="i", source="s", disks={}, settings=StandbySettings(stop=["true"]), isolated=True)
    assert msgspec.to_builtins(order)["settings"] == {"stop": ["true"]}


def test_drills_of_two_runs_do_not_see_each_other(run: str, tmp_path: Path) -> None:
    other = f"{run}-2"
    same = [WorkloadNetwork(order(name, "db", DB, network="bubble"), tmp_path) for name in (run, other)]
    try:
        for each in same:
            each.make()
            assert each.addresses() == ["10.9.3.5/24"], "both have the address that the rules give"
        second = in_network(same[1].name, lambda: socket.create_server(("10.9.3.5", 0)))
        with second:
            port = second.getsockname()[1]
            assert reaches(same[1].name, "10.9.3.5", port)
            assert not reaches(same[0].name, "10.9.3.5", port)
    finally:
        for each in same:
            each.leave()
        Bubble(other, {}).drop()


@pytest.fixture
def lan(run: str) -> Iterator[tuple[str, str]]:
    """A recovery host and somebody else on its network; the names of their networks."""
    names = f"{run}-host", f"{run}-lan"
    for name in names:
        make_network(name)

    def cable() -> None:
        with links() as found:
            found.pair("eth1", "eth1", names[1])
            found.up("eth1")
            found.add_address("eth1", "10.9.3.2/24")

    def other() -> None:
        with links() as found:
            found.up("eth1")
            for address in ("10.9.3.3/24", "2001:db8:9::3/64"):
                found.add_address("eth1", address)

    in_network(names[0], cable)
    in_network(names[1], other)
    yield names
    for name in names:
        remove_network(name)


def moved(run: str, *addresses: str, **more: Any) -> AttachOrder:
    return order(run, "db", Card(addresses=addresses), isolated=False, interface="eth1", **more)


def addresses_of(network: str) -> set[str]:
    def look() -> set[str]:
        with links() as found:
            return set(found.addresses("eth1"))

    return in_network(network, look)


def test_addresses_move_to_the_host_and_its_neighbours_know_at_once(
    run: str, lan: tuple[str, str], tmp_path: Path
) -> None:
    here, there = lan
    workload = Workload(moved(run, "10.9.3.5/24", "2001:db8:9::5/64"), tmp_path / "instance")
    with in_network(there, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))) as hearing:
        hearing.bind(("eth1", 0x0003))
        details = in_network(here, lambda: workload.start(lambda _: None))
        heard = _announcements(hearing)
    assert {"10.9.3.5", "2001:db8:9::5"} <= heard
    assert set(details["addresses"]) >= {"10.9.3.5/24", "2001:db8:9::5/64"}
    with in_network(here, lambda: socket.create_server(("10.9.3.5", 0))) as server:
        assert reaches(there, "10.9.3.5", server.getsockname()[1])
    again = Workload.load(tmp_path / "instance")
    assert again is not None
    in_network(here, lambda: again.start(lambda _: None))
    in_network(here, again.stop)
    assert addresses_of(here) == {"10.9.3.2/24"}, "what was there stays"


def _announcements(hearing: socket.socket) -> set[str]:
    """Addresses that somebody told to be its own: by ARP of the address for itself, by a neighbour advertisement."""
    found = set[str]()
    hearing.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            packet = hearing.recv(200)
            if packet[12:14] == b"\x08\x06" and packet[28:32] == packet[38:42]:
                found.add(socket.inet_ntoa(packet[28:32]))
            elif packet[12:14] == b"\x86\xdd" and packet[54] == 136:
                found.add(socket.inet_ntop(socket.AF_INET6, packet[62:78]))
    return found


@pytest.mark.parametrize("address", ["10.9.3.3/24", "2001:db8:9::3/64"])
def test_an_address_that_somebody_has_is_not_taken_over(
    run: str, lan: tuple[str, str], tmp_path: Path, address: str
) -> None:
    here, there = lan
    workload = Workload(moved(run, address, start=["touch", str(tmp_path / "started")], stop=["true"]), tmp_path / "i")
    with pytest.raises(DrengineError, match="is in use on eth1") as refused:
        in_network(here, lambda: workload.start(lambda _: None))
    assert refused.value.kind is ADDRESS_TAKEN
    assert not (tmp_path / "started").exists()
    in_network(here, workload.stop)
    assert addresses_of(here) == {"10.9.3.2/24"}
    assert address in addresses_of(there)


def test_an_address_that_the_host_has_already_stays_the_hosts(run: str, lan: tuple[str, str], tmp_path: Path) -> None:
    workload = Workload(moved(run, "10.9.3.2/24"), tmp_path / "instance")
    in_network(lan[0], lambda: workload.start(lambda _: None))
    in_network(lan[0], workload.stop)
    assert addresses_of(lan[0]) == {"10.9.3.2/24"}


def test_a_drill_takes_no_address_over(run: str, lan: tuple[str, str], tmp_path: Path) -> None:
    wanted = order(run, "db", DB, network="host", interface="eth1")
    in_network(lan[0], WorkloadNetwork(wanted, tmp_path).make)
    assert addresses_of(lan[0]) == {"10.9.3.2/24"}


def test_who_was_killed_between_note_and_address_leaves_nothing(run: str, lan: tuple[str, str], tmp_path: Path) -> None:
    network = WorkloadNetwork(moved(run, "10.9.3.5/24"), tmp_path)
    (tmp_path / "addresses.json").write_text('["10.9.3.5/24"]')
    in_network(lan[0], network.leave)
    in_network(lan[0], network.make)
    in_network(lan[0], network.leave)
    assert addresses_of(lan[0]) == {"10.9.3.2/24"}
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_arp_finds_who_answers(lan: tuple[str, str]) -> None:
    def mac() -> str:
        with links() as found:
            link = found.find("eth1")
            assert link is not None
            return link.mac

    assert in_network(lan[0], lambda: who_has("eth1", "10.9.3.3", seconds=2.0)) == in_network(lan[1], mac)
    assert in_network(lan[0], lambda: who_has("eth1", "10.9.3.99", seconds=0.2)) == ""


def test_the_host_says_before_whether_it_could(run: str, lan: tuple[str, str]) -> None:
    def faults(wanted: AttachOrder) -> list[str]:
        return in_network(lan[0], lambda: [each.fault for each in network_findings(wanted)])

    assert faults(order(run, "db", DB, network="bubble")) == [""]
    assert faults(moved(run, "10.9.3.5/24")) == [""]
    assert faults(order(run, "db", DB, isolated=False, interface="eth7")) == ["there is no interface eth7 that is up"]
    assert faults(order(run, "db", DB, network="none")) == []


def test_a_hosts_own_file_says_which_interfaces_take_addresses(run: str) -> None:
    AllowOptions().require(moved(run))
    AllowOptions(interfaces=("eth1",)).require(moved(run))
    with pytest.raises(Exception, match=r"\[allow\] interfaces"):
        AllowOptions(interfaces=("eth0",)).require(moved(run))
