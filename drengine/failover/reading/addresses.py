"""Do a runbook's rules of addresses make sense? Networks, sizes, overlaps, gateways, addresses that two would have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeVar

from drengine.failover.addresses import Network, NetworkAddress, is_domain
from drengine.failover.runbook.findings import shown
from drengine.failover.runbook.sense import Sense
from drengine.failover.runbook.values import AddressRule, InterfaceSettings, Runbook

T = TypeVar("T")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}", re.ASCII)
_MAC = re.compile(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


def check_addresses(book: Runbook, sense: Sense) -> None:
    """Note what makes no sense in `addresses` and in the interfaces of launches."""
    _rules(book.addresses.rules, sense.inside("addresses", "rules"))
    _rules(book.addresses.drill or [], sense.inside("addresses", "drill"))
    for source, found in book.sources.items():
        for name, each in found.launch.interfaces.items():
            place = sense.inside("sources", source, "launch", "interfaces", name)
            if not _INTERFACE.fullmatch(name):
                place.error("bad-name", f"{shown(name)} is no interface's name", "Write for example eth0.", of_key=True)
            _interface(each, place)
            if each.drill is not None:
                _interface(each.drill, place.inside("drill"))
    _doubles(book, sense)


def _rules(rules: list[AddressRule], sense: Sense) -> None:
    sense.most(rules)
    sources, targets = dict[int, Network](), dict[int, Network]()
    for number, rule in enumerate(rules):
        place = sense.inside(number)
        source = _network(rule.source_network, place, "from")
        target = _network(rule.to, place, "to") if rule.to else None
        if source:
            sources[number] = source
        if target:
            targets[number] = target
        if not rule.to and not rule.dhcp:
            place.error("missing-key", "it says not where addresses move", "Add `to`, or `dhcp: true`.")
        if source and target and (source.version, source.prefixlen) != (target.version, target.prefixlen):
            message = f"{source} and {target} are not of one size: host parts can't be kept"
            place.error("rule-sizes", message, f"Write a network with /{source.prefixlen}.", "to")
        _resolver(rule, place)
        if rule.gateway:
            _gateway(rule.gateway, [each for each in (target,) if each], place)
    _overlaps(sources, "from", sense)
    _overlaps(targets, "to", sense)


def _overlaps(networks: Mapping[int, Network], key: str, sense: Sense) -> None:
    """Two rules of which both would speak, or under which two servers could get one address."""
    ordered = sorted(networks.items(), key=lambda each: (each[1].version, each[1].network_address, each[1].prefixlen))
    before, outer = ordered[0] if ordered else (0, None)
    for number, network in ordered[1:]:
        if outer is None or outer.version != network.version or not outer.overlaps(network):
            before, outer = number, network  # networks either hold one another or lie apart
            continue
        at, other = max(before, number), min(before, number)
        message = f"{networks[at]} overlaps {networks[other]} of rule {other + 1}"
        hint = "Each address may be spoken of once." if key == "from" else "Two servers could get one address."
        sense.error("rules-overlap", message, hint, at, key)


def _interface(each: InterfaceSettings, sense: Sense) -> None:
    networks = []
    for number, text in enumerate(each.addresses):
        address = _card_address(text, sense, "addresses", number)
        if address:
            networks.append(address.network)
    _resolver(each, sense)
    if each.gateway:
        _gateway(each.gateway, networks, sense)
    if each.mac not in ("new", "keep") and (not _MAC.fullmatch(each.mac) or int(each.mac[:2], 16) & 1):
        hint = 'Write new, keep, or for example "02:00:00:00:00:05".'
        sense.error("bad-mac", f"{shown(each.mac)} is no address of one card", hint, "mac")


def _resolver(each: AddressRule | InterfaceSettings, sense: Sense) -> None:
    for number, text in enumerate(each.name_servers):
        _parsed(ip_address, text, sense, "name_servers", number)
    for number, text in enumerate(each.search):
        if not is_domain(text):
            sense.error("bad-value", f"{shown(text)} is no domain", "Write for example example.org.", "search", number)


def _gateway(text: str, networks: list[Network], sense: Sense) -> None:
    address = _parsed(ip_address, text, sense, "gateway")
    if address and networks and not any(address in each for each in networks):
        told = ", ".join(str(each) for each in networks)
        sense.error(
            "gateway-elsewhere", f"{address} is not on {told}", "A gateway has to be on the network.", "gateway"
        )


def _card_address(text: str, sense: Sense, *keys: str | int) -> NetworkAddress | None:
    address = _parsed(ip_interface, text, sense, *keys) if "/" in text else None
    if "/" not in text:
        sense.error("bad-address", f"{shown(text)} has no prefix length", "Write for example 10.9.0.5/24.", *keys)
    if address is None:
        return None
    network = address.network
    ends = {network.network_address, network.broadcast_address} if network.version == 4 else {network.network_address}
    if address.ip in ends and network.num_addresses > 2:
        sense.error("bad-address", f"{shown(text)} is a network's own", "Write a server's address.", *keys)
        return None
    return address


def _network(text: str, sense: Sense, *keys: str | int) -> Network | None:
    try:
        return ip_network(text)
    except ValueError:
        try:
            hint = f"Write {ip_network(text, strict=False)}."
            message = f"{shown(text)} has bits beyond its prefix: is a network meant, or one address?"
        except ValueError:
            hint, message = "Write for example 10.1.0.0/16.", f"{shown(text)} is no network"
        sense.error("bad-network", message, hint, *keys)
    return None


def _parsed(parse: Callable[[str], T], text: str, sense: Sense, *keys: str | int) -> T | None:
    try:
        return parse(text)
    except ValueError:
        example = "10.9.0.5/24" if parse is ip_interface else "10.9.0.1"
        sense.error("bad-address", f"{shown(text)} is no IP address", f"Write for example {example}.", *keys)
    return None


def _doubles(book: Runbook, sense: Sense) -> None:
    """What is given twice, in a drill or else; told once."""
    told = set[tuple[str | int, ...]]()
    for in_drill in (False, True):
        given = dict[str, tuple[str, tuple[str | int, ...]]]()
        for source, found in book.sources.items():
            for name, each in found.launch.interfaces.items():
                at: tuple[str | int, ...] = ("sources", source, "launch", "interfaces", name)
                drill = each.drill if in_drill else None
                for keys, what in _given(drill or each):
                    place = (*at, *(("drill",) if drill else ()), *keys)
                    who, first = given.setdefault(what, (f"{name} of {source}", place))
                    if first != place and place not in told:
                        told.add(place)
                        hint = "Give it once."
                        sense.error("duplicate-address", f"{shown(what)} is given to {who} already", hint, *place)


def _given(each: InterfaceSettings) -> Iterable[tuple[tuple[str | int, ...], str]]:
    for number, text in enumerate(each.addresses):
        try:
            yield ("addresses", number), str(ip_interface(text).ip)
        except ValueError:
            continue
    if each.mac not in ("new", "keep"):
        yield ("mac",), each.mac.lower()
