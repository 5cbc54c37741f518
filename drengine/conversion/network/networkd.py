"""systemd-networkd: systemd.network(5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drengine.conversion.network.named import HEADER, NamedCard

FILE = "/etc/systemd/network/10-drengine-{name}.network"


def networkd_files(cards: Sequence[NamedCard]) -> Mapping[str, str]:
    """A file for each."""
    return {FILE.format(name=each.name): _network(each) for each in cards}


def _network(card: NamedCard) -> str:
    told = card.card
    lines = ["[Match]", f"MACAddress={card.mac}" if card.mac else f"Name={card.name}", "Type=ether"]
    if told.mtu != 1500:
        lines += ["", "[Link]", f"MTUBytes={told.mtu}"]
    lines += ["", "[Network]"]
    lines += ["DHCP=yes"] if told.dhcp else [f"Address={each}" for each in told.addresses]
    lines += [f"Gateway={told.gateway}"] if told.gateway and not told.dhcp else []
    lines += [f"DNS={each}" for each in told.name_servers]
    lines += [f"Domains={' '.join(told.search)}"] if told.search else []
    for to, via in told.routes.items():
        lines += ["", "[Route]", f"Destination={to}", f"Gateway={via}"]
    return HEADER + "\n".join(lines) + "\n"
