"""Which network cards the machine has, and on which networks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.qemu.settings import NONE, CardSettings, QemuSettings
from drengine.model.errors import DrengineError
from drengine.wire.payload import digest

_MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000"}


@dataclass(frozen=True, slots=True)
class MachineCard:
    """A card as it is made: `network` and `model` as in the settings, `mac` never empty."""

    network: str
    mac: str
    model: str


def cards_of(request: LaunchRequest, settings: QemuSettings) -> tuple[MachineCard, ...]:
    """The machine's cards, in the order in which the guest finds them; those on the network `none` are left out.

    An address is the runbook's, else the site's rules', else one that the source's name gives: it never changes.

    Raises:
        DrengineError: LAUNCH_SETTINGS, two cards would have the same address.
    """
    wanted = settings.networks or [CardSettings(network=settings.network, mac=settings.mac)]
    if request.isolated or not settings.networks:  # else `networks` says how many there are
        wanted = [*wanted, *[CardSettings(network=settings.network)] * (len(request.cards) - len(wanted))]
    made = []
    for number, card in enumerate(wanted):
        ruled = request.cards[number].mac if number < len(request.cards) else ""
        mac = (card.mac or ruled or steady_mac(request.source, number)).lower()
        made.append(MachineCard(settings.drill_network if request.isolated else card.network, mac, card.model))
    macs = [card.mac for card in made]
    if twice := {mac for mac in macs if macs.count(mac) > 1}:
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver qemu: two cards have the mac {min(twice)}")
    return tuple(card for card in made if card.network != NONE)


def steady_mac(source: str, number: int) -> str:
    """A locally administered address, in the range that QEMU's have."""
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *digest(f"{source} {number}".encode())[:4]))


def card_arguments(cards: tuple[MachineCard, ...], backends: list[dict[str, Any]]) -> list[str]:
    """QEMU's arguments for cards, each with what it is plugged into. None of them boots over its network."""
    if not cards:
        return ["-nic", "none"]
    arguments: list[str] = []
    for number, (card, backend) in enumerate(zip(cards, backends, strict=True)):
        device = {"driver": _MODELS[card.model], "netdev": f"net{number}", "mac": card.mac, "romfile": ""}
        arguments += ["-netdev", json.dumps({**backend, "id": f"net{number}"}), "-device", json.dumps(device)]
    return arguments
