"""Which interface of the guest a card becomes.

A card is given its interface's name by its MAC address (a .link file of udev), so the guest's own configuration, its
firewall and its programs find the name that they know. Names like eth0 are the kernel's: of several cards each might be
the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drengine.model.hardware import Card, Machine

HEADER = "# Written by drengine, which made this disk fit for another machine.\n"
LINK = "/etc/systemd/network/10-drengine-{name}.link"
_DRIVERS = {"virtio": "virtio_net", "ena": "ena", "e1000": "e1000 e1000e", "xen": "vif"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_KERNELS_NAME = re.compile(r"eth\d+")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class NamedCard:
    """A card and the interface that it becomes. `mac` is lower-case; empty: the only card, found by its driver."""

    name: str
    mac: str
    card: Card

    @property
    def v4(self) -> tuple[str, ...]:
        """Its IPv4 addresses."""
        return tuple(each for each in self.card.addresses if ":" not in each)

    @property
    def v6(self) -> tuple[str, ...]:
        """Its IPv6 addresses."""
        return tuple(each for each in self.card.addresses if ":" in each)

    def gateway(self, *, v6: bool) -> str:
        """The default route's gateway of one family; empty: none."""
        return self.card.gateway if self.card.gateway and (":" in self.card.gateway) is v6 else ""

    def routes(self, *, v6: bool) -> dict[str, str]:
        """Routes of one family."""
        return {to: via for to, via in self.card.routes.items() if (":" in to) is v6}


def named_cards(cards: Sequence[Card]) -> tuple[list[NamedCard], list[str]]:
    """The cards under their names, and notes about those that can't be told apart: they are left out."""
    named, notes, taken = [], list[str](), set[str]()
    for number, card in enumerate(cards):
        mac = card.mac.lower() if _MAC.fullmatch(card.mac.lower()) else ""
        if not mac and len(cards) > 1:
            notes.append(f"card {number + 1} has no MAC address, by which it could be told from the others: left out")
            continue
        name = card.name if _NAME.fullmatch(card.name) else ""
        if not name or name in taken or (len(cards) > 1 and _KERNELS_NAME.fullmatch(name)):
            name = f"lan{number}"
        taken.add(name)
        named.append(NamedCard(name, mac, card))
    return named, notes


def link_files(cards: Sequence[NamedCard], machine: Machine) -> Mapping[str, str]:
    """What gives each card its name."""
    return {LINK.format(name=each.name): link_file(each.name, each.mac, machine) for each in cards}


def link_file(name: str, mac: str, machine: Machine) -> str:
    """A .link file: by MAC address, or for the only card by its driver."""
    match = f"MACAddress={mac}" if mac else f"Driver={_DRIVERS.get(machine.card, '*')}"
    return f"{HEADER}[Match]\n{match}\nType=ether\n\n[Link]\nName={name}\n"
