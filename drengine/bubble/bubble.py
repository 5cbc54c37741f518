"""Making a drill's network on this host, joining it, and taking it away; see the package.

Everything is found again by its name, which follows from the run alone: the namespace by `/run/netns`, dnsmasq by its
mark, its files by their directory. So whoever was killed at any step is followed by somebody who does the rest, and
several processes of one host (a recovery host's agent, an orchestrator) share the bubble of a run. Who makes, joins or
removes one holds a lock of the host meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_interface
from pathlib import Path

from drengine.bubble.contents import OTHERS, OWN, Contents, contents, resolver
from drengine.bubble.errors import BUBBLE_FAILED
from drengine.durable import replace_durably
from drengine.linux.links import NAME_CHARACTERS_MAX, links
from drengine.linux.namespaces import in_network, in_new_network, is_network, make_network, remove_network
from drengine.linux.taps import open_port, open_tap
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card, Server
from drengine.process import end_marked, find_marked, start_marked
from drengine.process.programs import program_fault

MARK = "DRENGINE_BUBBLE"
PREFIX = "drb-"
BRIDGE = "bubble"
RUNTIME = Path("/run/drengine-bubbles")
"""Gone after a reboot, as the namespaces are."""
RESOLVERS = Path("/etc/netns")
"""`ip netns exec NAME` shows a program /etc/netns/NAME/resolv.conf in the place of /etc/resolv.conf."""
GRACE_SECONDS = 2.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.02
SAID_BYTES_MAX = 500
COMMON = f"""\
keep-in-foreground
log-facility=-
no-resolv
no-hosts
no-poll
address=/#/
dhcp-authoritative
no-ping
enable-ra
dhcp-range={OTHERS[16]},{OTHERS[250]},{OTHERS.netmask},600
"""
"""Of dnsmasq: it asks nobody else, and a name that it does not know is none."""


class Bubble:
    """The network of one run's drill on this host.

    A server joins it by `connect`, which puts cards into a namespace of the server's own, or by `tap`, which gives a
    virtual machine a card. Both make the bubble first if it is not there. Who ends calls `leave`. Calls block, and all
    of them may be repeated.

    Attributes:
        name: of its namespace, for `in_network` and `ip netns exec`.
    """

    def __init__(self, run: str, servers: Mapping[str, Server], *, runtime: Path = RUNTIME) -> None:
        """
        Args:
            run: its id.
            servers: all that the run recovers, by source (`LaunchRequest.servers`): their gateways, names, leases.
            runtime: where files of all bubbles of this host lie.
        """
        self.name = PREFIX + _short(run, 5)
        self._servers = servers
        self._runtime = runtime
        self._directory = runtime / self.name

    @classmethod
    def named(cls, name: str, *, runtime: Path = RUNTIME) -> Bubble:
        """One that is there, by its namespace's name: it may be left and dropped."""
        made = cls("", {}, runtime=runtime)
        made.name, made._directory = name, runtime / name
        return made

    def ensure(self) -> None:
        """Make it, or what is missing of it.

        Raises:
            DrengineError: BUBBLE_FAILED.
        """
        with self._alone():
            self._make()

    def connect(self, network: str, cards: Sequence[Card]) -> None:
        """Give a named network, which is there, cards in the bubble, with their names, MACs, addresses and routes.

        `ip netns exec NETWORK` finds the name servers of the cards. `leave` takes the network away with all that.

        Raises:
            DrengineError: BUBBLE_FAILED.
        """
        with self._alone():
            self._make()
            for number, card in enumerate(cards):
                there, port = card_name(card, number), port_name(network, number)

                in_network(self.name, partial(_plug, port, there, network, card))
                in_network(network, partial(_set_up, there, card))
            (RESOLVERS / network).mkdir(parents=True, exist_ok=True)
            replace_durably(RESOLVERS / network / "resolv.conf", resolver(cards).encode(), mode=0o644)

    def tap(self, machine: str, number: int) -> int:
        """A card of a virtual machine, in the bubble.

        It is a descriptor to be handed to the machine (`descriptors` of `start_marked`, `-netdev tap,fd=N`), and closed
        here then. The tap ends when nobody holds it any more. The machine itself may run anywhere.

        Args:
            machine: its instance's name.
            number: of the card among the machine's; its MAC and addresses are the machine's own affair.

        Raises:
            DrengineError: BUBBLE_FAILED; a machine holds it already.
        """
        port = port_name(machine, number)
        with self._alone():
            self._make()
            return in_network(self.name, lambda: open_port(port, BRIDGE))

    def leave(self, member: str) -> None:
        """Take a network or a machine out, with the network's name; whoever leaves last takes the bubble away. No error
        if it is no member, or there is no bubble.

        Raises:
            DrengineError: BUBBLE_FAILED.
        """
        with self._alone():
            if is_network(self.name):
                in_network(self.name, partial(_unplug, member))
            remove_network(member)
            shutil.rmtree(RESOLVERS / member, ignore_errors=True)
            with contextlib.suppress(OSError):  # others' are there, or none was
                RESOLVERS.rmdir()
            self._drop_unused()

    def drop_unused(self) -> None:
        """Remove it if no server is in it.

        Raises:
            DrengineError: BUBBLE_FAILED.
        """
        with self._alone():
            self._drop_unused()

    def drop(self) -> None:
        """Remove it with everything in it. No error if there is nothing.

        Raises:
            DrengineError: BUBBLE_FAILED.
        """
        with self._alone():
            self._drop()

    def _make(self) -> None:
        wanted = contents(self._servers)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o711)  # dnsmasq reads `hosts` as nobody
        make_network(self.name)
        in_network(self.name, lambda: _furnish(wanted))
        self._serve(wanted)

    def _serve(self, wanted: Contents) -> None:
        """dnsmasq with just these files: it ends before they change, so one that runs has read what lies there."""
        hosts, config = self._directory / "hosts", self._directory / "dnsmasq.conf"
        lines = f"addn-hosts={hosts}\ndhcp-leasefile={self._directory / 'leases'}\n"
        files = {hosts: wanted.hosts, config: COMMON + lines + wanted.services}
        if any(_read(path) != text for path, text in files.items()):
            self._end_services()
            for path, text in files.items():
                replace_durably(path, text.encode(), mode=0o644)
        if not self._services():
            output = self._directory / "output"
            output.unlink(missing_ok=True)
            start_marked(
                ["ip", "netns", "exec", self.name, "dnsmasq", f"--conf-file={config}", "--pid-file="],
                MARK,
                self.name,
                output=output,
                directory=self._directory,
            )
        deadline = time.monotonic() + ANSWER_SECONDS
        while not in_network(self.name, _answers):
            if time.monotonic() > deadline or not self._services():
                said = (_read(self._directory / "output") or "nothing")[-SAID_BYTES_MAX:]
                raise DrengineError(BUBBLE_FAILED, f"dnsmasq does not answer in {self.name}; it said: {said.strip()}")
            time.sleep(LOOK_SECONDS)

    def _services(self) -> list[int]:
        return find_marked(MARK, self.name, self._directory)

    def _end_services(self) -> None:
        end_marked(MARK, self.name, self._directory, grace_seconds=GRACE_SECONDS)

    def _drop_unused(self) -> None:
        if not is_network(self.name) or not in_network(self.name, _ports):
            self._drop()

    def _drop(self) -> None:
        self._end_services()
        remove_network(self.name)
        shutil.rmtree(self._directory, ignore_errors=True)  # the last: by its key dnsmasq is found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else on this host makes, joins or removes a bubble meanwhile. What the kernel refuses is told."""
        try:
            self._runtime.mkdir(exist_ok=True, mode=0o711)
            with (self._runtime / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise DrengineError(BUBBLE_FAILED, f"{self.name}: {error.strerror or error}") from error


def sweep_bubbles(*, runtime: Path = RUNTIME) -> None:
    """Remove bubbles of this host in which no server is any more, as a crash may have left them.

    Raises:
        DrengineError: BUBBLE_FAILED.
    """
    for name in left_bubbles(runtime=runtime):
        Bubble.named(name, runtime=runtime).drop_unused()


def left_bubbles(*, runtime: Path = RUNTIME) -> list[str]:
    """Names of all bubbles on this host, whole or not: each one's directory is made first and removed last."""
    return sorted(each.name for each in runtime.glob(f"{PREFIX}*"))


def bubble_faults(*, taps: bool = False) -> list[str]:
    """Why no bubble could be made on this host; empty: it could. `taps`: with virtual machines in it. All that is tried
    ends with the look.
    """

    def attempt() -> None:
        with links() as found:
            found.bridge(BRIDGE)
            if taps:
                os.close(open_tap("tap"))

    faults = [fault for name in ("dnsmasq", "ip") if (fault := program_fault(name))]
    try:
        in_new_network(attempt)
    except OSError as error:
        faults.append(f"the kernel lets us make no network of its own: {error.strerror or error}")
    return faults


def port_name(member: str, number: int) -> str:
    """The name of the port for a member's card in the bubble; those of one member begin alike."""
    return f"p{_short(member, 4)}.{number}"


def card_name(card: Card, number: int) -> str:
    """The name of a card in a namespace of its own: the source's, where the kernel takes it."""
    fits = 0 < len(card.name) <= NAME_CHARACTERS_MAX and card.name not in (".", "..", "lo", "all", "default")
    plain = all(each.isascii() and (each.isalnum() or each in "._-@") for each in card.name)
    return card.name if fits and plain else f"eth{number}"


def _short(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def _furnish(wanted: Contents) -> None:
    """The bridge with its addresses. It forwards between the servers' networks, which leads nowhere else."""
    with links() as found:
        found.up("lo")
        found.bridge(BRIDGE)
        there = found.addresses(BRIDGE)
        for each in there.keys() - set(wanted.addresses):
            found.remove_address(BRIDGE, each)
        for each in wanted.addresses:
            found.add_address(BRIDGE, each)
    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            Path("/proc/sys/net", switch).write_text("1")


def _plug(port: str, there: str, network: str, card: Card) -> None:
    with links() as found:
        found.pair(port, there, network, mac=card.mac, mtu=card.mtu)
        found.put_into(port, BRIDGE)
        found.up(port)


def _set_up(name: str, card: Card) -> None:
    """A card in its server's namespace."""
    with links() as found:
        found.up("lo")
        found.up(name)
        for each in card.addresses:
            found.add_address(name, each)
        if card.gateway:
            found.add_route(name, "default", card.gateway)
        for to, via in card.routes.items():
            found.add_route(name, to, via)


def _ports() -> list[str]:
    """Names of the bridge's ports."""
    with links() as found:
        bridge = found.find(BRIDGE)
        return [each.name for each in found.all() if bridge and each.master == bridge.index]


def _unplug(member: str) -> None:
    """Take a member's ports away. They would go with its network, and the kernel takes its time for that."""
    theirs = [each for each in _ports() if each.startswith(port_name(member, 0)[:-1])]
    with links() as found:
        for each in theirs:
            found.remove(each)


def _answers() -> bool:
    """Whether dnsmasq listens; asked inside the bubble."""
    try:
        with socket.create_connection((str(ip_interface(OWN).ip), 53), timeout=1.0):
            return True
    except OSError:
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
