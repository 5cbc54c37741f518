"""The guest agent: health, addresses and shutdown by a real guest; what a hostile one says is bounded."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.qemu import driver as module
from drengine.failover.drivers.qemu.agent import (
    ADDRESSES_MAX,
    ANSWER_BYTES_MAX,
    INTERFACES_MAX,
    AgentError,
    GuestAgent,
    GuestInterface,
)
from drengine.failover.drivers.qemu.driver import MARK, QemuDriver
from drengine.model.hardware import Card
from drengine.process import find_marked
from tests.failover.drivers.qemu.guests import linux_guest, missing_for_linux

QEMU_GA = shutil.which("qemu-ga", path="/usr/sbin:/usr/bin") or ""
GUEST = f"""
$B mkdir -p /sbin /var/run /run
printf '#!/bin/busybox sh\necho "SHUT DOWN BY ITS AGENT" >/dev/console; /bin/busybox poweroff -f' > /sbin/shutdown
$B chmod +x /sbin/shutdown
$B ip link set lo up
$B ip link set eth0 up
$B ip addr add 10.0.0.5/24 dev eth0
while [ ! -c /dev/vport*p1 ]; do $B sleep 0.1; done
echo "AGENT STARTS"
while true; do {QEMU_GA} -p /dev/vport*p1; $B sleep 1; done
"""
NUMBER = b'{"return": %d}\n'


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-qemu-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.timeout(240)
@pytest.mark.skipif(bool(missing_for_linux()), reason=f"not installed: {missing_for_linux()}")
@pytest.mark.skipif(not QEMU_GA, reason="qemu-guest-agent is not installed")
def test_a_guest_is_healthy_by_its_agent_tells_its_addresses_and_shuts_down(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = linux_guest(folder, GUEST, has=("net", "agent"), programs=(QEMU_GA,))
    wanted = LaunchRequest(
        instance=f"agent-{secrets.token_hex(4)}",
        run="run-1",
        source="shop",
        disks=(),
        isolated=False,
        settings={**guest, "guest_agent": True, "grace": "100s", "network": "user", "mac": "52:54:00:00:00:01"},
        directory=folder / "instance",
        timeout_seconds=90.0,
    )
    try:
        found = QemuDriver().launch(wanted, lambda _: None)
        assert "AGENT STARTS" in found.details["console"]
        (card,) = found.details["interfaces"]
        assert (card["name"], card["mac"], card["addresses"][0]) == ("eth0", "52:54:00:00:00:01", "10.0.0.5/24")
        assert "10.0.0.5/24" in found.details["addresses"]
        assert QemuDriver().addresses(wanted) is None, "NAT has addresses of its own"
        ruled = (Card(mac="52:54:00:00:00:01", addresses=("10.0.0.5/24",)),)
        bridged = replace(wanted, settings={**wanted.settings, "network": "bridge:b"}, cards=ruled)
        assert "10.0.0.5/24" in (QemuDriver().addresses(bridged) or [])
        monkeypatch.setattr(module, "end_marked", lambda *_, **__: True)  # only the guest may end it
        QemuDriver().quiesce(wanted)
        assert not find_marked(MARK, wanted.instance)
        assert "SHUT DOWN BY ITS AGENT" in (wanted.directory / "console.log").read_text()
    finally:
        monkeypatch.undo()
        QemuDriver().stop(wanted)


@contextmanager
def guest(folder: Path, behave: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A port behind which a guest behaves so, once."""
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    behave(connection)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join()


def number_of(connection: socket.socket) -> int:
    """What the guest is asked to say first."""
    line = connection.makefile("rb").readline()
    assert line.startswith(b"\xff")
    return int(json.loads(line[1:])["arguments"]["id"])


def synced(then: bytes) -> Callable[[socket.socket], None]:
    """A guest that begins as an agent does, and then says something for ever."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(b"\xff" + NUMBER % number_of(connection))
        while then:
            connection.sendall(then)
        while connection.recv(4096):
            pass

    return behave


def test_what_was_left_in_the_port_is_passed_over(folder: Path) -> None:
    def behave(connection: socket.socket) -> None:
        number = number_of(connection)
        connection.sendall(b'{"return": {}}\n{"error": {"class": "GenericError"}}\nrubbish\xff\n')
        connection.sendall(b"\xff" + NUMBER % (number + 1) + b"half\xff" + NUMBER % number + NUMBER % 7)
        while connection.recv(4096):
            pass

    with guest(folder, behave) as path, GuestAgent(path) as agent, pytest.raises(AgentError, match="as an agent does"):
        agent.ping()


HOSTILE = {
    "endless line": (b"x" * (1 << 16), f"longer than {ANSWER_BYTES_MAX >> 10} KiB"),
    "nested": (b"[" * 100_000 + b"\n", "as an agent does"),
    "no JSON": (b"\x00\xff\xfe\n", "as an agent does"),
    "refusal": (b'{"error": {"desc": "' + b"no" * 5000 + b'"}}\n', "refuses: "),
    "another kind": (b'{"return": [1]}\n', "as an agent does"),
    "silence": (b"", "in time|timed out"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_guest_is_given_up(folder: Path, name: str) -> None:
    says, told = HOSTILE[name]
    with guest(folder, synced(says)) as path, GuestAgent(path, seconds=0.5 if not says else 30.0) as agent:
        with pytest.raises(AgentError, match=told) as raised:
            agent.interfaces()
        assert len(str(raised.value)) < 400


def test_a_guest_that_never_says_its_number_is_given_up(folder: Path) -> None:
    def behave(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"\xff" + NUMBER % -1)

    with guest(folder, behave) as path, pytest.raises(AgentError, match=r"in time|timed out"):
        GuestAgent(path, seconds=0.3)


def test_of_what_a_guest_tells_only_so_much_is_kept(folder: Path) -> None:
    address = {"ip-address": "fe80::1", "prefix": 64}
    bad = [{"ip-address": "10.0.0.1; rm", "prefix": 24}, {"ip-address": "10.0.0.1", "prefix": 99}]
    told = [{"name": "e\x1b[31m" + "x" * 200, "ip-addresses": [*bad, *[address] * 70]}] * 40
    with guest(folder, synced(json.dumps({"return": told}).encode() + b"\n")) as path, GuestAgent(path) as agent:
        found = agent.interfaces()
    assert len(found) == INTERFACES_MAX
    assert found[0] == GuestInterface("e?[31m" + "x" * 58, "", ("fe80::1/64",) * (ADDRESSES_MAX - 2))
