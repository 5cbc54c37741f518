"""The network of a drill: servers see each other, names and DHCP are answered, and not one packet gets out."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.bubble import BUBBLE_FAILED, Bubble, bubble_faults, sweep_bubbles
from drengine.bubble.bubble import BRIDGE, MARK, RESOLVERS, left_bubbles, port_name
from drengine.linux.links import links
from drengine.linux.namespaces import NAMED, in_network, is_network, make_network, remove_network
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card, Server
from drengine.process import find_marked

MISSING = [tool for tool in ("ip", "dnsmasq") if not shutil.which(tool)]
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(os.geteuid() != 0 or bool(MISSING), reason=f"takes root; not installed: {MISSING or 'nothing'}"),
]


def card(name: str, number: int, address: str, gateway: str, *more: str, dhcp: bool = False) -> Card:
    return Card(
        name=name,
        mac=f"f2:00:00:00:00:{number:02x}",
        dhcp=dhcp,
        addresses=(address, *more),
        gateway=gateway,
        name_servers=("10.9.0.53",),
        search=("example.org",),
    )


DB = card("eth0", 1, "10.9.3.5/24", "10.9.3.1", "2001:db8:9::5/64")
WEB = card("ens5", 2, "10.9.4.7/24", "10.9.4.1")
ASKS = card("eth0", 3, "10.9.3.9/24", "10.9.3.1", dhcp=True)
SERVERS = {
    "db": Server(names=("db", "shop-db"), cards=(DB,)),
    "web": Server(names=("web",), cards=(WEB,)),
    "asks": Server(names=("asks",), cards=(ASKS,)),
}


@pytest.fixture
def bubble(tmp_path: Path) -> Iterator[Bubble]:
    made = Bubble(f"run-{os.getpid()}", SERVERS, runtime=tmp_path / "run")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)  # dnsmasq reads its file of hosts as nobody
    yield made
    for name in ("db", "web"):
        made.leave(member(name))
    made.drop()


def member(name: str) -> str:
    return f"drt-{os.getpid()}-{name}"


def join(bubble: Bubble, name: str, card: Card) -> str:
    network = member(name)
    make_network(network)
    bubble.connect(network, [card])
    return network


@contextlib.contextmanager
def listening(network: str, host: str) -> Iterator[int]:
    """A service in a network; gives its port."""

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family)

    with in_network(network, listen) as server:
        yield server.getsockname()[1]


def reaches(network: str, host: str, port: int) -> bool:
    def connect() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            return True
        return False

    return in_network(network, connect)


def told(network: str, *names: str) -> str:
    """What the system's resolver says of a name, as programs of the workload would hear it."""
    argv = ["ip", "netns", "exec", network, "getent", "hosts", *names]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


def test_servers_see_each_other_also_beyond_their_own_network(bubble: Bubble) -> None:
    db, web = join(bubble, "db", DB), join(bubble, "web", WEB)
    with listening(db, "10.9.3.5") as port:
        assert reaches(web, "10.9.3.5", port)
    with listening(web, "10.9.4.7") as port:
        assert reaches(db, "10.9.4.7", port)
    with listening(bubble.name, "10.9.3.1") as port:
        assert reaches(db, "10.9.3.1", port), "their gateway is there"


def test_names_of_the_run_are_known_and_no_others(bubble: Bubble) -> None:
    db = join(bubble, "db", DB)
    assert told(db, "web").split() == ["10.9.4.7", "web.example.org"]
    assert told(db, "shop-db.example.org").split() == ["2001:db8:9::5", "shop-db.example.org"]
    assert told(db, "aws.amazon.com") == ""


def test_cards_are_as_they_were_told(bubble: Bubble) -> None:
    db = join(bubble, "db", DB)

    def look() -> tuple[str, set[str]]:
        with links() as found:
            card = found.find("eth0")
            assert card is not None
            return card.mac, set(found.addresses("eth0"))

    assert in_network(db, look) == (DB.mac, set(DB.addresses))


def test_whoever_asks_gets_the_address_that_is_expected(bubble: Bubble) -> None:
    bubble.ensure()
    network = member("web")
    make_network(network)
    bubble.connect(network, [Card(name="eth0", mac=ASKS.mac)])
    assert in_network(network, lambda: _lease(ASKS.mac)) == ("10.9.3.9", "10.9.3.1", "10.9.0.53")


def _lease(mac: str) -> tuple[str, str, str]:
    """Address, router and name server that DHCP offers; the smallest client there can be."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    asked = b"\x01\x01\x06\x00" + b"drts" + b"\x00\x00\x80\x00" + bytes(16) + hardware.ljust(16, b"\0") + bytes(192)
    asked += bytes.fromhex("63825363") + b"\x35\x01\x01" + b"\x37\x03\x01\x03\x06" + b"\xff"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.bind(("", 68))
        client.settimeout(10)
        client.sendto(asked, ("255.255.255.255", 67))
        offer = client.recv(2000)
    options, at = dict[int, bytes](), 240
    while offer[at] != 255:
        options[offer[at]] = offer[at + 2 : at + 2 + offer[at + 1]]
        at += 2 + offer[at + 1]
    return tuple(socket.inet_ntoa(each[:4]) for each in (offer[16:20], options[3], options[6]))  # type: ignore[return-value]


def test_not_one_packet_gets_out(bubble: Bubble) -> None:
    db = join(bubble, "db", DB)
    seen, ended = list[bytes](), threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as watching:  # every card of this host
        watching.settimeout(0.05)

        def watch() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    seen.append(watching.recv(200))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for target in ("8.8.8.8", "10.9.77.1", "2001:4860:4860::8888", _own_address()):
            assert not reaches(db, target, 53)
        in_network(db, lambda: _shout("255.255.255.255"))
        told(db, "s3.us-east-1.amazonaws.com")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as proof:
            proof.sendto(b"drt-proof", ("127.0.0.1", 9))
        while not any(b"drt-proof" in packet for packet in seen):
            threading.Event().wait(0.01)
        ended.set()
        watcher.join()
    ours = [bytes.fromhex(DB.mac.replace(":", "")), socket.inet_aton("10.9.3.5"), b"drt-shout"]
    assert [packet for packet in seen if any(mark in packet for mark in ours)] == []

    def ways_out() -> list[str]:
        with links() as found:
            return [each.name for each in found.all() if each.name not in ("lo", BRIDGE, port_name(db, 0))]

    assert in_network(bubble.name, ways_out) == []


def _own_address() -> str:
    """An address of this host itself, which is nobody's in there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        asking.connect(("203.0.113.1", 9))
        return str(asking.getsockname()[0])
    return "127.0.0.2"


def _shout(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.sendto(b"drt-shout", (address, 9))


def test_a_virtual_machines_card_is_one_of_the_bubble(bubble: Bubble) -> None:
    db = join(bubble, "db", DB)
    tap = bubble.tap("vm", 0)
    port = port_name("vm", 0)

    def ports() -> set[str]:
        with links() as found:
            bridge = found.find(BRIDGE)
            assert bridge is not None
            return {each.name for each in found.all() if each.master == bridge.index}

    assert in_network(bubble.name, ports) == {port, port_name(db, 0)}
    with pytest.raises(DrengineError) as refused:
        bubble.tap("vm", 0)
    assert refused.value.kind is BUBBLE_FAILED, "a machine that runs has it"
    os.close(tap)
    assert in_network(bubble.name, ports) == {port_name(db, 0)}


def test_the_last_one_takes_it_away(bubble: Bubble, tmp_path: Path) -> None:
    db, web = join(bubble, "db", DB), join(bubble, "web", WEB)
    with listening(web, "10.9.4.7") as port:
        bubble.leave(db)
        assert not is_network(db)
        assert reaches(bubble.name, "10.9.4.7", port)
    bubble.leave(web)
    _nothing_is_left(bubble, tmp_path)
    bubble.leave(web)


def _nothing_is_left(bubble: Bubble, tmp_path: Path) -> None:
    assert left_bubbles(runtime=tmp_path / "run") == []
    assert not is_network(bubble.name)
    assert find_marked(MARK, bubble.name) == []
    assert not (RESOLVERS / member("db")).exists()
    assert not [each for each in Path("/proc").glob("[0-9]*/comm") if _read(each) == "dnsmasq\n" and _in(each, bubble)]


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _in(comm: Path, bubble: Bubble) -> bool:
    with contextlib.suppress(OSError):
        return bubble.name.encode() in (comm.parent / "cmdline").read_bytes()
    return False


def test_what_nobody_is_in_is_swept_away(bubble: Bubble, tmp_path: Path) -> None:
    bubble.ensure()
    other = Bubble(f"other-{os.getpid()}", SERVERS, runtime=tmp_path / "run")
    tap = other.tap("vm", 0)
    sweep_bubbles(runtime=tmp_path / "run")
    assert left_bubbles(runtime=tmp_path / "run") == [other.name]
    assert is_network(other.name)
    os.close(tap)
    sweep_bubbles(runtime=tmp_path / "run")
    _nothing_is_left(bubble, tmp_path)


def test_other_servers_change_what_it_offers(bubble: Bubble, tmp_path: Path) -> None:
    db = join(bubble, "db", DB)
    first = find_marked(MARK, bubble.name, tmp_path / "run" / bubble.name)
    bubble.ensure()
    assert find_marked(MARK, bubble.name, tmp_path / "run" / bubble.name) == first, "nothing to do"
    moved = SERVERS | {"web": Server(names=("web",), cards=(Card(addresses=("10.9.4.8/24",), gateway="10.9.4.2"),))}
    Bubble(f"run-{os.getpid()}", moved, runtime=tmp_path / "run").ensure()
    assert told(db, "web").split()[0] == "10.9.4.8"
    os.kill(find_marked(MARK, bubble.name, tmp_path / "run" / bubble.name)[0], signal.SIGKILL)
    bubble.ensure()
    assert told(db, "web").split()[0] == "10.9.4.7"


STEPS = (
    "drengine.bubble.bubble:make_network",
    "drengine.linux.namespaces:in_new_network",
    "drengine.bubble.bubble:_furnish",
    "drengine.linux.links:Links.add_address",
    "drengine.bubble.bubble:replace_durably",
    "drengine.bubble.bubble:start_marked",
    "drengine.bubble.bubble:_answers",
    "drengine.bubble.bubble:_plug",
    "drengine.linux.links:Links.put_into",
    "drengine.bubble.bubble:_set_up",
    "drengine.bubble.bubble:end_marked",
    "drengine.bubble.bubble:remove_network",
    "drengine.bubble.bubble:_unplug",
)
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from tests.bubble.test_bubble import DB, SERVERS, make_network, member
from drengine.bubble import Bubble
step, when, parent, runtime = sys.argv[1:]
own, os.getpid = os.getpid(), lambda: int(parent)
module, _, name = step.partition(":")
place = importlib.import_module(module)
*path, last = name.split(".")
for each in path:
    place = getattr(place, each)
real = getattr(place, last)
def dies(*given, **named):
    if when == "after":
        real(*given, **named)
    os.kill(own, signal.SIGKILL)
setattr(place, last, dies)
bubble = Bubble(f"run-{parent}", SERVERS, runtime=Path(runtime))
make_network(member("db"))
bubble.connect(member("db"), [DB])
bubble.leave(member("db"))
"""


SOME = {f"drengine.bubble.bubble:{name}" for name in ("make_network", "start_marked", "_plug", "remove_network")}
KILLS = [
    pytest.param(step, when, marks=[] if when == "after" and step in SOME else [pytest.mark.campaign])
    for step in STEPS
    for when in ("before", "after")
]


@pytest.mark.parametrize(("step", "when"), KILLS)
def test_whoever_is_killed_at_a_step_is_followed_by_one_that_does_the_rest(
    bubble: Bubble, tmp_path: Path, step: str, when: str
) -> None:
    argv = [sys.executable, "-c", KILLED, step, when, str(os.getpid()), str(tmp_path / "run")]
    ended = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    db = join(bubble, "db", DB)
    assert told(db, "web").split()[0] == "10.9.4.7"
    with listening(bubble.name, "10.9.3.1") as port:
        assert reaches(db, "10.9.3.1", port)
    bubble.leave(db)
    _nothing_is_left(bubble, tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../netns", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    for act in (make_network, remove_network):
        with pytest.raises(OSError, match="name a network"):
            act(name)


def test_a_name_that_a_crash_left_is_used_again() -> None:
    name = member("stale")
    NAMED.mkdir(exist_ok=True)
    (NAMED / name).touch()
    assert not is_network(name)
    try:
        make_network(name)
        assert is_network(name)
    finally:
        remove_network(name)
    assert not (NAMED / name).exists()
    remove_network(name)


def test_a_host_that_can_make_one_says_so_and_one_that_cannot_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bubble_faults(taps=Path("/dev/net/tun").exists()) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert [each.split()[0] for each in bubble_faults()] == ["dnsmasq", "ip"]
