"""Debian's ifupdown: interfaces(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from drengine.conversion.network.named import HEADER, NamedCard

FILE = "/etc/network/interfaces"
_STANZA = re.compile(r"^\s*iface\s+(\S+)", re.MULTILINE)


def interfaces_of(text: str) -> set[str]:
    """The interfaces that a file configures, loopback excepted."""
    return set(_STANZA.findall(text)) - {"lo"}


def ifupdown_files(cards: Sequence[NamedCard]) -> Mapping[str, str]:
    """One file for all of them."""
    lines = ["auto lo", "iface lo inet loopback"]
    for each in cards:
        lines += ["", f"auto {each.name}", *_stanzas(each)]
    return {FILE: HEADER + "\n".join(lines) + "\n"}


def _stanzas(card: NamedCard) -> Iterator[str]:
    name, more = card.name, list(_common(card))
    if card.card.dhcp:
        yield f"iface {name} inet dhcp"
        yield from more
        return
    for family, addresses in (("inet", card.v4), ("inet6", card.v6)):
        v6 = family == "inet6"
        for number, address in enumerate(addresses):
            yield f"iface {name} {family} static"
            yield f"    address {address}"
            if number == 0:
                gateway = card.gateway(v6=v6)
                yield from [f"    gateway {gateway}"] if gateway else []
                yield from more
                for to, via in card.routes(v6=v6).items():
                    yield f"    up ip route replace {to} via {via} dev {name}"
                more = []
    if not card.card.addresses:
        yield f"iface {name} inet manual"


def _common(card: NamedCard) -> Iterator[str]:
    if card.card.mtu != 1500:
        yield f"    mtu {card.card.mtu}"
    if card.card.name_servers:
        yield f"    dns-nameservers {' '.join(card.card.name_servers)}"
    if card.card.search:
        yield f"    dns-search {' '.join(card.card.search)}"
