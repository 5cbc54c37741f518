"""What a drill's network has to offer, from the servers in it: a pure function, so that all who join it agree.

What comes from a source may hold anything. Only what is an address, a MAC or a host's name goes into the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network

from drengine.model.hardware import Card, Server

OTHERS = ip_network("192.0.2.0/24")
"""For whoever asks for an address and is no server of the run; documentation's own network, so nobody's (RFC 5737)."""
OWN = f"{OTHERS[1]}/{OTHERS.prefixlen}"
LEASE_SECONDS = 3600

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9])?", re.ASCII | re.IGNORECASE)

Address = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Contents:
    """What belongs into a bubble.

    Attributes:
        addresses: of its bridge, with prefix lengths: gateways and name servers that are no server of the run.
        hosts: a line for each address, with its names, as in /etc/hosts.
        services: the lines of dnsmasq's configuration that depend on the servers.
    """

    addresses: tuple[str, ...]
    hosts: str
    services: str


def contents(servers: Mapping[str, Server]) -> Contents:
    """For all servers of a run, whether they are launched already or not."""
    cards = [card for _, server in sorted(servers.items()) for card in server.cards]
    taken = {each.ip for card in cards for each in _addresses(card)}
    own: dict[str, Address] = {OWN: ip_interface(OWN)}
    for card in cards:
        networks = [each.network for each in _addresses(card)]
        for text in (card.gateway, *card.routes.values(), *card.name_servers):
            address = _ip(text)
            if address is None or address in taken or address.is_link_local or address.is_loopback:
                continue
            around = next((each for each in networks if address in each), None)
            made = ip_interface(f"{address}/{around.prefixlen if around else address.max_prefixlen}")
            if around or all(made.ip != each.ip for each in own.values()):
                own.setdefault(str(made), made)
    for card in cards:
        for each in _addresses(card) if card.dhcp else ():
            if not any(mine.ip in each.network and mine.network == each.network for mine in own.values()):
                free = next((last for last in _from_the_end(each) if last not in taken), None)
                if free is not None:
                    own.setdefault(f"{free}/{each.network.prefixlen}", ip_interface(f"{free}/{each.network.prefixlen}"))
    return Contents(tuple(sorted(own)), "".join(_hosts(servers)), "".join(_dhcp(servers)))


def resolver(cards: Iterable[Card]) -> str:
    """What a server's /etc/resolv.conf says; where it is told no name server, the bubble is."""
    found = [str(_ip(each)) for card in cards for each in card.name_servers if _ip(each)] or [str(ip_interface(OWN).ip)]
    search = [each for card in cards for each in card.search if _NAME.fullmatch(each)]
    lines = [f"nameserver {each}\n" for each in dict.fromkeys(found)]
    return "".join([*lines, f"search {' '.join(dict.fromkeys(search))}\n" if search else ""])


def _hosts(servers: Mapping[str, Server]) -> Iterator[str]:
    for _, server in sorted(servers.items()):
        names = [name.lower() for name in server.names if _NAME.fullmatch(name)]
        domains = dict.fromkeys(each for card in server.cards for each in card.search if _NAME.fullmatch(each))
        told = [*(f"{name}.{domain}" for domain in domains for name in names), *names]
        for address in dict.fromkeys(each.ip for card in server.cards for each in _addresses(card)):
            if told:
                yield f"{address} {' '.join(told)}\n"


def _dhcp(servers: Mapping[str, Server]) -> Iterator[str]:
    """Each network of which somebody asks for its address, and who gets which."""
    networks: dict[str, str] = {}
    for _, server in sorted(servers.items()):
        for card in server.cards:
            if not card.dhcp or not _MAC.fullmatch(card.mac):
                continue
            given = []
            for each in _addresses(card):
                tag = networks.get(str(each.network))
                if tag is None:
                    tag = networks[str(each.network)] = f"n{len(networks)}"
                    yield from _range(each, tag, card)
                given.append(str(each.ip) if each.version == 4 else f"[{each.ip}]")
            if given:
                yield f"dhcp-host={card.mac},{','.join(given)}\n"


def _range(address: Address, tag: str, card: Card) -> Iterator[str]:
    network = address.network
    if network.version == 6:
        yield f"dhcp-range=set:{tag},{network.network_address},static,{network.prefixlen},{LEASE_SECONDS}\n"
        return
    yield f"dhcp-range=set:{tag},{network.network_address},static,{network.netmask},{LEASE_SECONDS}\n"
    gateway, servers = _ip(card.gateway), [str(_ip(each)) for each in card.name_servers if _ip(each)]
    if gateway and gateway.version == 4:
        yield f"dhcp-option=tag:{tag},option:router,{gateway}\n"
    four = [each for each in servers if ":" not in each] or [str(ip_interface(OWN).ip)]
    yield f"dhcp-option=tag:{tag},option:dns-server,{','.join(four)}\n"
    search = [each for each in card.search if _NAME.fullmatch(each)]
    if search:
        yield f"dhcp-option=tag:{tag},option:domain-search,{','.join(search)}\n"


def _from_the_end(address: Address) -> Iterator[IPv4Address | IPv6Address]:
    """Addresses of its network, from the last usable one downwards."""
    network = address.network
    last = network.num_addresses - (2 if network.version == 4 and network.num_addresses > 2 else 1)
    return (network[number] for number in range(last, max(last - 1000, 0), -1))


def _addresses(card: Card) -> list[Address]:
    found = []
    for text in card.addresses:
        try:
            found.append(ip_interface(text))
        except ValueError:
            continue
    return found


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
