"""Red Hat's ifcfg files, read by NetworkManager's plugin and by the older network scripts: nm-settings-ifcfg-rh(5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from drengine.conversion.network.named import HEADER, NamedCard

PLACE = "/etc/sysconfig/network-scripts"


def ifcfg_files(cards: Sequence[NamedCard]) -> Mapping[str, str]:
    """A file for each, and one for its routes."""
    made: dict[str, str] = {}
    for each in cards:
        made[f"{PLACE}/ifcfg-{each.name}"] = HEADER + "".join(f"{line}\n" for line in _ifcfg(each))
        for kind, v6 in (("route", False), ("route6", True)):
            if routes := each.routes(v6=v6):
                lines = (f"{to} via {via} dev {each.name}\n" for to, via in routes.items())
                made[f"{PLACE}/{kind}-{each.name}"] = "".join(lines)
    return made


def _ifcfg(card: NamedCard) -> Iterator[str]:
    told = card.card
    yield from (f"DEVICE={card.name}", f"NAME={card.name}", "TYPE=Ethernet", "ONBOOT=yes")
    if card.mac:
        yield f"HWADDR={card.mac.upper()}"
    yield f"BOOTPROTO={'dhcp' if told.dhcp else 'none'}"
    if told.mtu != 1500:
        yield f"MTU={told.mtu}"
    for number, address in enumerate(() if told.dhcp else card.v4):
        host, _, prefix = address.partition("/")
        yield from (f"IPADDR{number or ''}={host}", f"PREFIX{number or ''}={prefix}")
    if gateway := card.gateway(v6=False):
        yield f"GATEWAY={gateway}"
    if card.v6 and not told.dhcp:
        yield from ("IPV6INIT=yes", "IPV6_AUTOCONF=no", f"IPV6ADDR={card.v6[0]}")
        if card.v6[1:]:
            yield f'IPV6ADDR_SECONDARIES="{" ".join(card.v6[1:])}"'
        if gateway := card.gateway(v6=True):
            yield f"IPV6_DEFAULTGW={gateway}"
    for number, server in enumerate(told.name_servers, start=1):
        yield f"DNS{number}={server}"
    if told.search:
        yield f'DOMAIN="{" ".join(told.search)}"'
