"""The addresses of recovered servers follow from rules and inventory alone: host parts are kept, no two get one."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.failover.addresses import BAD_ADDRESSES, address_faults, cards, require_addresses
from drengine.failover.runbook.values import (
    Addresses,
    AddressRule,
    InterfaceSettings,
    Launch,
    LaunchInterface,
    Mode,
    Runbook,
    Source,
    Wave,
)
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card
from drengine.model.inventory import Interface, Inventory, Route

F, D = Mode.FAILOVER, Mode.DRILL


def rule(source: str, to: str = "", **more: Any) -> AddressRule:
    return AddressRule(source_network=source, to=to, **more)


def book(
    rules: list[AddressRule] | tuple[AddressRule, ...] = (),
    drill: list[AddressRule] | None = None,
    sources: tuple[str, ...] = ("web",),
    **interfaces: LaunchInterface,
) -> Runbook:
    launch = Launch(driver="qemu", interfaces=interfaces)
    return Runbook(
        version=1,
        name="shop",
        sources={source: Source(launch=launch) for source in sources},
        waves=[Wave(name="first", sources=list(sources))],
        addresses=Addresses(rules=list(rules), drill=drill),
    )


def server(*interfaces: Interface, routes: tuple[Route, ...] = (), **more: Any) -> Inventory:
    return Inventory(taken_ns=1, interfaces=interfaces, routes=routes, **more)


ETH0 = Interface(name="eth0", mac="52:54:00:AA:00:01", addresses=("10.1.3.5/24", "2001:db8:1::5/64"), mtu=9000)
WEB = server(
    ETH0,
    Interface(name="eth1", addresses=("192.168.7.5/24",)),
    Interface(name="docker0", kind="bridge", addresses=("172.17.0.1/16",)),
    Interface(name="eth2"),
    routes=(
        Route(to="default", via="10.1.3.1", interface="eth0"),
        Route(to="default", via="2001:db8:1::1", interface="eth0"),
        Route(to="10.1.7.0/24", via="10.1.3.254", interface="eth0"),
        Route(to="10.1.3.0/24", interface="eth0"),
        Route(to="10.99.0.0/16", via="192.168.7.1", interface="eth1"),
    ),
    name_servers=("127.0.0.53", "10.1.0.53", "8.8.8.8"),
    search=("example.org", "no\ndomain"),
)
RULES = [rule("10.1.0.0/16", "10.9.0.0/16"), rule("2001:db8:1::/48", "2001:db8:9::/48")]


def test_whatever_lies_in_a_rules_network_moves_and_the_rest_stays() -> None:
    first, second = cards(book(RULES), "web", WEB, F)
    assert first == Card(
        name="eth0",
        addresses=("10.9.3.5/24", "2001:db8:9::5/64"),
        gateway="10.9.3.1",
        routes={"10.9.7.0/24": "10.9.3.254", "::/0": "2001:db8:9::1"},
        name_servers=("10.9.0.53", "8.8.8.8"),
        search=("example.org",),
        mtu=9000,
    )
    assert (second.name, second.addresses, second.gateway) == ("eth1", ("192.168.7.5/24",), "")
    assert second.routes == {"10.99.0.0/16": "192.168.7.1"}
    assert [each.message for each in address_faults(book(RULES), {"web": WEB}, F)] == [
        "no rule covers 192.168.7.5: it stays as it is"
    ]


def test_what_the_rule_says_goes_before_what_the_source_told() -> None:
    told = [rule("10.1.0.0/16", "10.9.0.0/16", gateway="10.9.3.99", name_servers=["10.9.0.2"], search=["b.example"])]
    first = cards(book(told), "web", WEB, F)[0]
    assert (first.gateway, first.name_servers, first.search) == ("10.9.3.99", ("10.9.0.2",), ("b.example",))


def test_a_drill_has_its_own_rules_the_same_or_none() -> None:
    own = book(RULES, [rule("10.1.0.0/16", "10.200.0.0/16")])
    assert cards(own, "web", WEB, D)[0].addresses == ("10.200.3.5/24", "2001:db8:1::5/64")
    assert cards(own, "web", WEB, F) == cards(book(RULES), "web", WEB, D)
    unchanged = cards(book(RULES, []), "web", WEB, D)[0]
    assert (unchanged.addresses, unchanged.gateway) == (ETH0.addresses, "10.1.3.1")
    assert unchanged == cards(book(), "web", WEB, F)[0]
    assert address_faults(book(RULES, []), {"web": WEB}, D) == []


def test_dhcp_by_rule_by_interface_and_as_at_the_source() -> None:
    by_rule = cards(book([rule("10.1.0.0/16", "10.9.0.0/16", dhcp=True)]), "web", WEB, F)[0]
    assert (by_rule.dhcp, by_rule.addresses[0]) == (True, "10.9.3.5/24")
    unknown = cards(book([rule("10.1.0.0/16", dhcp=True)]), "web", WEB, F)[0]
    assert (unknown.dhcp, unknown.addresses, unknown.gateway) == (True, ("2001:db8:1::5/64",), "2001:db8:1::1")
    asks = server(Interface(name="eth0", addresses=("10.1.3.5/24",), dhcp=True))
    assert cards(book(), "web", asks, F)[0].dhcp
    assert not cards(book(RULES), "web", asks, F)[0].dhcp, "a rule that gives an address leaves nothing to ask for"
    fixed = book(RULES, eth0=LaunchInterface(addresses=["10.9.0.7/16"]))
    assert (cards(fixed, "web", asks, F)[0].dhcp, cards(fixed, "web", asks, F)[0].addresses) == (
        False,
        ("10.9.0.7/16",),
    )


def test_an_interface_of_its_own_and_another_in_a_drill() -> None:
    told = LaunchInterface(
        addresses=["10.9.0.7/24"], gateway="10.9.0.1", mac="keep", drill=InterfaceSettings(addresses=["10.200.0.7/24"])
    )
    here = book(RULES, eth0=told)
    first = cards(here, "web", WEB, F, instance="web-1")[0]
    assert (first.addresses, first.gateway, first.mac) == (("10.9.0.7/24",), "10.9.0.1", "52:54:00:aa:00:01")
    drilled = cards(here, "web", WEB, D, instance="web-1")[0]
    assert (drilled.addresses, drilled.gateway) == (("10.200.0.7/24",), "")
    assert drilled.mac.startswith("f2:")
    assert cards(here, "web", None, F)[0].addresses == ("10.9.0.7/24",), "fixed addresses need no inventory"


def test_new_macs_are_of_one_launch_and_card_and_locally_administered() -> None:
    macs = [each.mac for run in ("web-1", "web-2") for each in cards(book(), "web", WEB, F, instance=run)]
    assert len(set(macs)) == 4
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)
    assert macs[:2] == [each.mac for each in cards(book(), "web", WEB, F, instance="web-1")]


FAULTS = {
    "twice": (
        book(RULES, sources=("db", "web")),
        {"db": server(Interface(name="e", addresses=("10.9.3.5/24",))), "web": WEB},
        "10.9.3.5 would be given twice: to db and to web",
    ),
    "no inventory": (book(RULES), {"web": None}, "nobody told which addresses it has"),
    "no such interface": (book(etho0=LaunchInterface(mac="keep")), {"web": WEB}, "no interface 'etho0'"),
    "a gateway elsewhere": (
        book([rule("10.1.0.0/16", "10.9.0.0/16", gateway="10.9.9.1")]),
        {"web": WEB},
        "eth0: the gateway 10.9.9.1 is on no network of 10.9.3.5/24",
    ),
    "its own gateway": (
        book([rule("10.1.0.0/16", "10.9.0.0/16", gateway="10.9.3.5")]),
        {"web": WEB},
        "eth0: 10.9.3.5 would be its own gateway",
    ),
    "one MAC": (
        book(sources=("db", "web"), eth0=LaunchInterface(mac="keep")),
        {"db": server(Interface(name="eth0", mac=ETH0.mac, addresses=("10.1.3.6/24",))), "web": WEB},
        "52:54:00:aa:00:01 would be given twice",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_together_is_told(name: str) -> None:
    runbook, inventories, message = FAULTS[name]
    faults = [each for each in address_faults(runbook, inventories, F) if not each.uncovered]
    assert [each.source for each in faults] == ["web"], faults
    assert message in faults[0].message
    if len(inventories) == 1:
        with pytest.raises(DrengineError, match="web: ") as refused:
            require_addresses(runbook, "web", inventories["web"], F)
        assert refused.value.kind is BAD_ADDRESSES


def test_what_is_no_address_in_an_inventory_is_left_out() -> None:
    strange = server(
        Interface(name="eth0", mac="x\ny", addresses=("no", "10.1.0.5/24", "10.1.0.6/99")),
        routes=(Route(to="default", via="nowhere", interface="eth0"), Route(to="?", via="10.1.0.1", interface="eth0")),
        name_servers=("x y",),
    )
    (card,) = cards(book(RULES, eth0=LaunchInterface(mac="keep")), "web", strange, F)
    assert card == Card(name="eth0", addresses=("10.9.0.5/24",))


@st.composite
def sites(draw: st.DrawFn) -> tuple[list[AddressRule], dict[str, Inventory]]:
    """Rules that do not overlap, and servers whose addresses they cover, no two with the same."""
    rules, hosts = [], dict[str, set[int]]()
    for number in range(draw(st.integers(1, 4))):
        length = draw(st.integers(16, 30))
        source, to = ip_network(f"10.{number}.0.0/16"), ip_network(f"172.{16 + number}.0.0/16")
        at = draw(st.integers(0, 2 ** (length - 16) - 1)) << (32 - length)
        rules.append(rule(f"{source[at]}/{length}", f"{to[at]}/{length}"))
        hosts[rules[-1].source_network] = draw(st.sets(st.integers(1, 2 ** (32 - length) - 2), min_size=1, max_size=6))
    free = [(network, host) for network, found in hosts.items() for host in sorted(found)]
    servers = {}
    for number, (network, host) in enumerate(draw(st.permutations(free))):
        address = f"{ip_network(network)[host]}/{ip_network(network).prefixlen}"
        servers[f"s{number}"] = server(Interface(name="eth0", addresses=(address,)))
    return rules, servers


@given(sites(), st.randoms(use_true_random=False))
def test_host_parts_are_kept_no_two_get_one_address_and_order_does_not_matter(
    site: tuple[list[AddressRule], dict[str, Inventory]], random: Any
) -> None:
    rules, servers = site
    runbook, turned = book(rules, sources=tuple(servers)), list(rules)
    random.shuffle(turned)
    given_addresses = []
    for source, inventory in servers.items():
        (card,) = cards(runbook, source, inventory, F, instance=source)
        old, new = ip_interface(inventory.interfaces[0].addresses[0]), ip_interface(card.addresses[0])
        covering = next(each for each in rules if old.ip in ip_network(each.source_network))
        assert new.ip in ip_network(covering.to)
        assert int(new.ip) & int(new.hostmask) == int(old.ip) & int(old.hostmask)
        assert new.network.prefixlen == old.network.prefixlen
        given_addresses.append(new.ip)
        assert cards(book(turned, sources=tuple(servers)), source, inventory, F, instance=source) == (card,)
    assert len(set(given_addresses)) == len(servers)
    assert address_faults(runbook, dict(servers), F) == []


@given(st.permutations(WEB.interfaces), st.permutations(WEB.routes))
def test_the_order_in_which_a_source_tells_does_not_matter(interfaces: Any, routes: Any) -> None:
    turned = msgspec.structs.replace(WEB, interfaces=tuple(interfaces), routes=tuple(routes))
    assert cards(book(RULES), "web", turned, F, instance="x") == cards(book(RULES), "web", WEB, F, instance="x")


@given(st.integers(0, 2**64 - 1))
def test_host_parts_of_ipv6_are_kept(host: int) -> None:
    old = ip_network("2001:db8:1::/64")[host]
    found = server(Interface(name="eth0", addresses=(f"{old}/64",)))
    (card,) = cards(book([rule("2001:db8:1::/64", "2001:db8:9::/64")]), "web", found, F)
    assert int(ip_interface(card.addresses[0]).ip) - int(ip_address("2001:db8:9::")) == host
