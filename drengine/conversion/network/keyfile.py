"""NetworkManager's keyfiles: nm-settings-keyfile(5)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence

from drengine.conversion.network.named import HEADER, NamedCard

FILE = "/etc/NetworkManager/system-connections/drengine-{name}.nmconnection"
_NAMESPACE = uuid.UUID("0f2ad9c2-9a53-4a5e-8f29-1d1d6d0a4d2b")


def keyfile_files(cards: Sequence[NamedCard]) -> Mapping[str, str]:
    """A file for each."""
    return {FILE.format(name=each.name): _keyfile(each) for each in cards}


def _keyfile(card: NamedCard) -> str:
    lines = ["[connection]", f"id=drengine-{card.name}", f"uuid={uuid.uuid5(_NAMESPACE, card.name + card.mac)}"]
    lines += ["type=ethernet", "autoconnect=true", f"interface-name={card.name}", "", "[ethernet]"]
    lines += [f"mac-address={card.mac}"] if card.mac else []
    lines += [f"mtu={card.card.mtu}"] if card.card.mtu != 1500 else []
    for section, v6 in (("ipv4", False), ("ipv6", True)):
        lines += ["", f"[{section}]", *_family(card, v6=v6)]
    return HEADER + "\n".join(lines) + "\n"


def _family(card: NamedCard, *, v6: bool) -> Iterator[str]:
    told, addresses = card.card, card.v6 if v6 else card.v4
    if told.dhcp or not addresses:
        yield "method=auto" if told.dhcp else f"method={'ignore' if v6 else 'disabled'}"
    else:
        yield "method=manual"
        gateway = card.gateway(v6=v6)
        for number, address in enumerate(addresses, start=1):
            yield f"address{number}={address}" + (f",{gateway}" if gateway and number == 1 else "")
    servers = [each for each in told.name_servers if (":" in each) is v6]
    if servers:
        yield f"dns={';'.join(servers)};"
    if told.search and (told.dhcp or addresses):
        yield f"dns-search={';'.join(told.search)};"
    for number, (to, via) in enumerate(card.routes(v6=v6).items(), start=1):
        yield f"route{number}={to},{via}"
