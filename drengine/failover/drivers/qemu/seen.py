"""Which addresses a machine has: by its guest's own words, or, without those, who answers for them on its networks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from ipaddress import ip_interface

from drengine.bubble import BRIDGE as BUBBLE_BRIDGE
from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.qemu.cards import MachineCard
from drengine.failover.drivers.qemu.networks import bubble_of
from drengine.failover.drivers.qemu.settings import BRIDGE, BUBBLE
from drengine.linux.namespaces import in_network
from drengine.linux.neighbours import who_has
from drengine.model.hardware import Card

ASK_SECONDS = 0.5


def seen_addresses(
    request: LaunchRequest, plugged: tuple[MachineCard, ...], told: Iterable[str] | None
) -> list[str] | None:
    """Addresses with prefix lengths; None: nobody can look, or there is nothing to look at.

    Those of cards that are on no network, or on QEMU's own, are not looked for and count as there. So do those of IPv6
    and DHCP where only the guest could tell.

    Args:
        request, plugged: the machine's, and its cards that are on a network.
        told: what the guest's agent says; None: it has none.
    """
    networks = {card.mac: card.network for card in plugged}
    looked_at = [card for card in request.cards if networks.get(card.mac, "").startswith((BRIDGE, BUBBLE))]
    others = [each for card in request.cards if card not in looked_at for each in card.addresses]
    if not looked_at:
        return None
    if told is not None:
        return [*others, *told]
    try:
        return [*others, *(each for card in looked_at for each in _answered(request, card, networks[card.mac]))]
    except OSError:
        return None  # only root may ask


def _answered(request: LaunchRequest, card: Card, network: str) -> list[str]:
    inside = network == BUBBLE
    where, link = (bubble_of(request).name, BUBBLE_BRIDGE) if inside else ("", network.removeprefix(BRIDGE))
    found = []
    for each in card.addresses:
        address = ip_interface(each).ip
        asked = partial(who_has, link, str(address), seconds=ASK_SECONDS)
        if address.version == 6 or card.dhcp or in_network(where, asked) == card.mac:
            found.append(each)
    return found
