"""The addresses of a machine are looked at from within, or by asking its network who has them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.qemu.cards import MachineCard
from drengine.failover.drivers.qemu.networks import bubble_of
from drengine.failover.drivers.qemu.seen import seen_addresses
from drengine.linux.namespaces import make_network
from drengine.model.hardware import Card, Server

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("dnsmasq"), reason="takes root and dnsmasq: a drill's bubble"
)
MAC, OTHER = "f2:00:00:00:02:01", "f2:00:00:00:02:02"
CARD = Card(name="eth0", mac=MAC, addresses=("10.9.3.5/24", "10.9.3.6/24", "2001:db8::5/64"), gateway="10.9.3.1")


def request(*cards: Card) -> LaunchRequest:
    run = f"drt-{secrets.token_hex(4)}"
    servers = {"db": Server(names=("db",), cards=cards)}
    return LaunchRequest(
        instance=f"{run}-vm", run=run, source="db", disks=(), isolated=True, settings={}, directory=Path("/nowhere"),
        cards=cards, servers=servers,
    )  # fmt: skip


def plugged(network: str, mac: str = MAC) -> MachineCard:
    return MachineCard(network, mac, "virtio")


def test_what_the_guest_says_counts() -> None:
    assert seen_addresses(request(CARD), (plugged("bridge:br0"),), ["10.1.0.5/24"]) == ["10.1.0.5/24"]


@pytest.mark.parametrize(
    "cards", [(), (plugged("user"),), (plugged("bridge:br0", OTHER),)], ids=["none", "user", "own"]
)
def test_what_is_on_no_network_of_its_own_is_not_looked_for(cards: tuple[MachineCard, ...]) -> None:
    assert seen_addresses(request(CARD), cards, ["10.1.0.5/24"]) is None
    both = request(CARD, Card(mac="f2:00:00:00:02:03", addresses=("10.9.4.5/24",)))
    here = (*cards, plugged("bridge:br0", "f2:00:00:00:02:03"))
    assert seen_addresses(both, here, ["10.9.4.5/24"]) == [*CARD.addresses, "10.9.4.5/24"]


@pytest.fixture
def guest() -> Iterator[LaunchRequest]:
    """A machine of a drill, which is a namespace here, and has one of its two addresses."""
    wanted = request(CARD)
    make_network(wanted.instance)
    bubble_of(wanted).connect(wanted.instance, [Card(name="eth0", mac=MAC, addresses=CARD.addresses[:1])])
    yield wanted
    bubble_of(wanted).leave(wanted.instance)


@needs_root
@pytest.mark.machine
def test_without_its_word_the_network_is_asked_who_has_them(guest: LaunchRequest) -> None:
    assert seen_addresses(guest, (plugged("bubble"),), None) == ["10.9.3.5/24", "2001:db8::5/64"]
    theirs = replace(guest, cards=(Card(mac=OTHER, addresses=("10.9.3.5/24",)),))
    assert seen_addresses(theirs, (plugged("bubble", OTHER),), None) == [], "another card answers"
