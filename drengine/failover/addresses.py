"""Which network cards a recovered server gets: a pure function of the runbook's rules and the source's inventory.

A rule moves the addresses of one network to another of the same size and keeps the host part. Whatever else the source
says of its network (gateway, routes, name servers) moves by the same rules, unless the runbook names it. An inventory
is the source's word, so what is no address in it is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from drengine.bubble import BUBBLE_FAILED
from drengine.failover.runbook.findings import did_you_mean
from drengine.failover.runbook.values import AddressRule, InterfaceSettings, Mode, Runbook
from drengine.model.errors import DrengineError, error_kind
from drengine.model.hardware import Card
from drengine.model.inventory import Interface, Inventory
from drengine.wire.payload import digest

BAD_ADDRESSES = error_kind(
    "bad-addresses",
    BUBBLE_FAILED,
    "The addresses that recovered servers would get do not fit together, or are not known.",
    "The run's plan shows old and new ones; mend the runbook's `addresses`, or `interfaces` of that source's launch.",
)

WRONG_ADDRESSES = error_kind(
    "wrong-addresses",
    BUBBLE_FAILED,
    "A recovered server runs and does not have the addresses that it was to get.",
    "Its console says what its network service did; the report shows what was asked for.",
    retryable=True,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
NetworkAddress = IPv4Interface | IPv6Interface

OF_A_SERVER = frozenset({"physical", "bond", "vlan"})
"""Kinds of interfaces that lead out of a server; bridges do where a route leads through them."""
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_DOMAIN = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9])?", re.ASCII | re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a server's addresses would not do. `uncovered`: no rule speaks of some, which may be meant so."""

    source: str
    message: str
    uncovered: bool = False


def cards(
    book: Runbook, source: str, inventory: Inventory | None, mode: Mode, *, instance: str = ""
) -> tuple[Card, ...]:
    """The cards of a recovered server, that of the default route first.

    Args:
        book: a checked runbook.
        source: one of its sources.
        inventory: what its agent told; None: only interfaces with fixed addresses are known.
        mode: a drill has rules of its own.
        instance: the launch for which new MAC addresses are made; empty: they are left out.
    """
    return tuple(_Server(book, source, inventory, mode, instance).cards())


def address_faults(book: Runbook, inventories: Mapping[str, Inventory | None], mode: Mode) -> list[Fault]:
    """What is wrong with the addresses of all sources together."""
    servers = [_Server(book, source, inventory, mode, "") for source, inventory in inventories.items()]
    return [*(fault for server in servers for fault in server.faults()), *_doubles(servers)]


def require_addresses(book: Runbook, source: str, inventory: Inventory | None, mode: Mode) -> None:
    """Whether a source's addresses can be given to its recovered server. Whether another gets the same was looked at
    before the run.

    Raises:
        DrengineError: BAD_ADDRESSES.
    """
    for fault in address_faults(book, {source: inventory}, mode):
        if not fault.uncovered:
            raise DrengineError(BAD_ADDRESSES, f"{source}: {fault.message}")


def missing_addresses(made: Iterable[Card], seen: Iterable[str]) -> list[str]:
    """What a recovered server lacks of the addresses of its cards.

    Args:
        made: its cards.
        seen: the addresses that it has, with prefix lengths. What DHCP gives is the site's affair: a card that asks is
            to have one, whatever was expected.
    """
    there = [each for each in _interfaces(seen) if not each.is_link_local]
    missing = []
    for card in made:
        for each in _interfaces(card.addresses):
            known = any(each.version == found.version if card.dhcp else each.ip == found.ip for found in there)
            if not known:
                missing.append(f"{each} of {card.name or 'a card'}")
    return missing


def rules_in(book: Runbook, mode: Mode) -> list[AddressRule]:
    """The rules that count in a mode."""
    drill = book.addresses.drill
    return drill if mode is Mode.DRILL and drill is not None else book.addresses.rules


class _Rule:
    """A rule, parsed."""

    def __init__(self, rule: AddressRule) -> None:
        self.said = rule
        self._source = ip_network(rule.source_network)
        self._target = ip_network(rule.to) if rule.to else None

    def covers(self, address: Address) -> bool:
        """Whether it speaks of an address."""
        return address in self._source

    def moved(self, address: Address) -> Address | None:
        """Where an address that it covers moves; None: nobody knows before DHCP has answered."""
        if self._target is None:
            return None
        return self._target[int(address) - int(self._source.network_address)]


class _Server:
    """One recovered server."""

    def __init__(self, book: Runbook, source: str, inventory: Inventory | None, mode: Mode, instance: str) -> None:
        self.source = source
        self._inventory = inventory
        self._instance = instance
        self._rules = [_Rule(rule) for rule in rules_in(book, mode)]
        self._named: dict[str, InterfaceSettings] = {
            name: (each.drill if mode is Mode.DRILL and each.drill is not None else each)
            for name, each in book.sources[source].launch.interfaces.items()
        }
        found = {each.name: each for each in inventory.interfaces} if inventory else {}
        names = [name for name in found if self._has_card(found[name])]
        names += [name for name, each in self._named.items() if name not in found and each.addresses]
        self._found: dict[str, Interface] = {name: found.get(name, Interface(name=name)) for name in names}

    def cards(self) -> Iterator[Card]:
        """That of the default route first, the others by name."""
        first = [self._defaults.get(4), self._defaults.get(6)]
        yield from (self._card(name) for name in sorted(self._found, key=lambda name: (name not in first, _key(name))))

    def faults(self) -> Iterator[Fault]:
        """What is wrong with this server alone."""
        if self._inventory is None and (self._rules or any(not each.addresses for each in self._named.values())):
            yield Fault(self.source, "nobody told which addresses it has, so none can be moved")
            return
        for name in sorted(self._named.keys() - self._found.keys()):
            hint = did_you_mean(name, self._found)
            yield Fault(self.source, f"it has no interface {name!r} with an address. {hint}")
        for card in self.cards():
            networks = [ip_interface(each).network for each in card.addresses]
            for gateway in {card.gateway, card.routes.get("::/0", "")}.intersection(self._said_gateways(card.name)):
                if networks and not any(ip_address(gateway) in network for network in networks):
                    told = ", ".join(card.addresses)
                    yield Fault(self.source, f"{card.name}: the gateway {gateway} is on no network of {told}")
        if self._rules and (left := self._uncovered()):
            yield Fault(self.source, f"no rule covers {', '.join(left)}: it stays as it is", uncovered=True)

    @cached_property
    def _defaults(self) -> dict[int, str]:
        """The interface of the default route, by IP version: the source's, or else the first that is told a gateway."""
        found: dict[int, str] = {}
        told = self._inventory.routes if self._inventory else ()
        for route in sorted(told, key=lambda each: (each.metric, _key(each.interface))):
            via = _address(route.via)
            if via and not via.is_link_local and _is_default(route.to) and route.interface in self._found:
                found.setdefault(via.version, route.interface)
        for name in sorted(self._found, key=_key):
            for gateway in self._said_gateways(name):
                found.setdefault(ip_address(gateway).version, name)
        return found

    def _has_card(self, interface: Interface) -> bool:
        """Whether an interface connects the server with others."""
        if interface.name in self._named:
            return True
        if interface.kind == "bridge":
            via = self._inventory.routes if self._inventory else ()
            return any(route.via and route.interface == interface.name for route in via)
        return interface.kind in OF_A_SERVER and bool(interface.addresses or interface.dhcp)

    def _card(self, name: str) -> Card:
        found, named = self._found[name], self._named.get(name, InterfaceSettings())
        covering = self._covering(found)
        dhcp = any(rule.said.dhcp for rule in covering) if covering else found.dhcp
        if named.dhcp or named.addresses:
            dhcp = named.dhcp
        addresses = [str(ip_interface(each)) for each in named.addresses] or list(self._moved_addresses(found))
        gateways = self._gateways(name, addresses, fixed=bool(named.addresses))
        gateway = gateways.pop(min(gateways)) if gateways else ""
        routes = dict(self._routes(name)) | ({"::/0": gateways[6]} if gateways else {})
        return Card(
            name=name,
            mac=self._mac(found, named),
            dhcp=dhcp,
            addresses=tuple(addresses),
            gateway=gateway,
            routes=dict(sorted(routes.items())),
            name_servers=tuple(self._name_servers(named, covering)),
            search=tuple(self._search(named, covering)),
            mtu=found.mtu,
        )

    def _covering(self, interface: Interface) -> list[_Rule]:
        """The rules that speak of one of its addresses."""
        addresses = [each.ip for each in _interfaces(interface.addresses)]
        return [rule for rule in self._rules if any(rule.covers(each) for each in addresses)]

    def _moved(self, address: Address) -> Address | None:
        """An address at the site where servers are recovered; the same where no rule covers it; None: not known."""
        rule = next((rule for rule in self._rules if rule.covers(address)), None)
        return rule.moved(address) if rule else address

    def _moved_addresses(self, interface: Interface) -> Iterator[str]:
        for each in _interfaces(interface.addresses):
            moved = self._moved(each.ip)
            if moved is not None:
                yield f"{moved}/{each.network.prefixlen}"

    def _said_gateways(self, name: str) -> list[str]:
        """What the runbook names for an interface, IPv4 first."""
        said = [rule.said.gateway for rule in self._covering(self._found[name]) if rule.said.gateway]
        named = self._named.get(name)
        if named and named.gateway:
            version = ip_address(named.gateway).version
            said = [named.gateway, *(each for each in said if ip_address(each).version != version)]
        return sorted(said, key=lambda each: ip_address(each).version)

    def _gateways(self, name: str, addresses: Iterable[str], *, fixed: bool) -> dict[int, str]:
        """By IP version; the runbook's before those that the source told."""
        found: dict[int, str] = {
            version: gateway
            for gateway in self._said_gateways(name)
            if self._defaults.get(version := ip_address(gateway).version) == name
        }
        networks = [ip_interface(each).network for each in addresses]
        for route in self._inventory.routes if self._inventory else ():
            via = _address(route.via)
            if via and _is_default(route.to) and self._defaults.get(via.version) == route.interface == name:
                moved = self._moved(via)
                if moved and not moved.is_link_local and (not fixed or any(moved in each for each in networks)):
                    found.setdefault(via.version, str(moved))
        return found

    def _routes(self, name: str) -> Iterator[tuple[str, str]]:
        """The source's further routes through an interface, moved."""
        for route in self._inventory.routes if self._inventory else ():
            via, to = _address(route.via), _network(route.to)
            if route.interface != name or via is None or to is None or _is_default(route.to) or via.is_link_local:
                continue
            begin, end, moved = self._moved(to[0]), self._moved(to[-1]), self._moved(via)
            if begin is None or end is None or moved is None:
                continue
            whole = int(end) - int(begin) == to.num_addresses - 1  # else rules cover a part of it: it stays as it is
            yield (f"{begin}/{to.prefixlen}" if whole else str(to)), str(moved)

    def _name_servers(self, named: InterfaceSettings, covering: list[_Rule]) -> Iterable[str]:
        said = named.name_servers or [each for rule in covering for each in rule.said.name_servers]
        if said:
            return dict.fromkeys(said)
        told = (_address(each) for each in (self._inventory.name_servers if self._inventory else ()))
        moved = (self._moved(each) for each in told if each and not each.is_loopback)
        return dict.fromkeys(str(each) for each in moved if each)

    def _search(self, named: InterfaceSettings, covering: list[_Rule]) -> Iterable[str]:
        said = named.search or [each for rule in covering for each in rule.said.search]
        told = self._inventory.search if self._inventory else ()
        return dict.fromkeys(said or (each for each in told if is_domain(each)))

    def _mac(self, found: Interface, named: InterfaceSettings) -> str:
        if named.mac == "keep":
            return found.mac.lower() if _MAC.fullmatch(found.mac.lower()) else ""
        if named.mac != "new":
            return named.mac.lower()
        return new_mac(self._instance, found.name) if self._instance else ""

    def _uncovered(self) -> list[str]:
        left = []
        for name, found in self._found.items():
            named = self._named.get(name)
            if not (named and (named.addresses or named.dhcp)) and not found.dhcp:
                ours = [each.ip for each in _interfaces(found.addresses)]
                left += [str(each) for each in ours if not any(rule.covers(each) for rule in self._rules)]
        return left


def _doubles(servers: list[_Server]) -> Iterator[Fault]:
    """What two would have: an address or a MAC of two cards, or a card's address that is also a gateway's."""
    by_what: dict[str, list[str]] = defaultdict(list)
    made = [(server.source, card) for server in servers for card in server.cards()]
    for source, card in made:
        for each in (*(str(ip_interface(address).ip) for address in card.addresses), *filter(None, [card.mac])):
            by_what[each].append(source)
    for what, sources in by_what.items():
        if len(sources) > 1:
            others = ", ".join(dict.fromkeys(sources[:-1]))
            yield Fault(sources[-1], f"{what} would be given twice: to {others} and to {sources[-1]}")
    for source, card in made:
        if card.gateway in {str(ip_interface(address).ip) for address in card.addresses}:
            yield Fault(source, f"{card.name}: {card.gateway} would be its own gateway")


def new_mac(instance: str, interface: str) -> str:
    """A MAC address of our own making (locally administered, of one card), the same for the same launch and card."""
    return "f2:" + digest(f"{instance} {interface}".encode())[:5].hex(":")


def is_domain(text: str) -> bool:
    """Whether a text can be a domain's name."""
    return bool(_DOMAIN.fullmatch(text))


def _is_default(to: str) -> bool:
    return to in ("default", "0.0.0.0/0", "::/0")


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _interfaces(texts: Iterable[str]) -> Iterator[NetworkAddress]:
    for text in texts:
        try:
            yield ip_interface(text)
        except ValueError:
            continue


def _key(name: str) -> list[tuple[int, str]]:
    """eth2 before eth10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in _DIGITS.split(name)]
