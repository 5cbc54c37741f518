"""What a bubble offers follows from its servers alone, whatever they say of themselves."""

from __future__ import annotations

from ipaddress import ip_interface

from hypothesis import given
from hypothesis import strategies as st

from drengine.bubble.contents import OWN, contents, resolver
from drengine.model.hardware import Card, Server


def server(*cards: Card, names: tuple[str, ...] = ("web",)) -> Server:
    return Server(names=names, cards=cards)


def test_gateways_and_name_servers_are_the_bubbles_own() -> None:
    card = Card(addresses=("10.9.3.5/24",), gateway="10.9.3.1", name_servers=("10.9.3.53", "8.8.8.8"))
    assert contents({"web": server(card)}).addresses == tuple(
        sorted([OWN, "10.9.3.1/24", "10.9.3.53/24", "8.8.8.8/32"])
    )


def test_what_a_server_of_the_run_has_is_the_servers() -> None:
    web = server(Card(addresses=("10.9.3.5/24",), gateway="10.9.3.1", name_servers=("10.9.3.53",)))
    router = server(Card(addresses=("10.9.3.1/24", "10.9.3.53/24")), names=("fw",))
    assert contents({"web": web, "fw": router}).addresses == (OWN,)


def test_names_have_each_address_with_and_without_domain() -> None:
    card = Card(addresses=("10.9.3.5/24", "2001:db8::5/64"), search=("example.org",))
    assert contents({"web": server(card, names=("web", "Shop1"))}).hosts == (
        "10.9.3.5 web.example.org shop1.example.org web shop1\n"
        "2001:db8::5 web.example.org shop1.example.org web shop1\n"
    )


def test_who_asks_gets_what_is_expected() -> None:
    card = Card(mac="f2:00:00:00:00:01", dhcp=True, addresses=("10.9.3.5/24",), gateway="10.9.3.1", search=("a.b",))
    made = contents({"web": server(card)})
    assert made.services == (
        "dhcp-range=set:n0,10.9.3.0,static,255.255.255.0,3600\n"
        "dhcp-option=tag:n0,option:router,10.9.3.1\n"
        "dhcp-option=tag:n0,option:dns-server,192.0.2.1\n"
        "dhcp-option=tag:n0,option:domain-search,a.b\n"
        "dhcp-host=f2:00:00:00:00:01,10.9.3.5\n"
    )
    alone = contents({"web": server(Card(mac=card.mac, dhcp=True, addresses=("10.9.3.254/24",)))})
    assert alone.addresses == ("10.9.3.253/24", OWN), "a network without a gateway has an address of the bubble's"


def test_a_server_without_name_servers_asks_the_bubble() -> None:
    assert resolver([Card(), Card(search=("x.y", "no\nnameserver 1.1.1.1"))]) == "nameserver 192.0.2.1\nsearch x.y\n"
    assert resolver([Card(name_servers=("10.0.0.53", "evil\n"))]) == "nameserver 10.0.0.53\n"


@given(
    st.builds(
        Card,
        mac=st.text(max_size=20),
        dhcp=st.just(True),
        addresses=st.lists(st.text(max_size=20) | st.just("10.9.3.5/24"), max_size=3).map(tuple),
        gateway=st.text(max_size=20),
        name_servers=st.lists(st.text(max_size=20), max_size=3).map(tuple),
        search=st.lists(st.text(max_size=20), max_size=3).map(tuple),
    ),
    st.lists(st.text(max_size=20), max_size=3).map(tuple),
)
def test_nothing_but_addresses_and_names_gets_into_the_files(card: Card, names: tuple[str, ...]) -> None:
    made = contents({"web": server(card, names=names)})
    for each in made.addresses:
        ip_interface(each)
    for line in (made.hosts + made.services + resolver([card])).splitlines():
        words = line.replace("=", " ", 1).replace(",", " ").split()
        assert words[0] in ("10.9.3.5", "dhcp-range", "dhcp-option", "dhcp-host", "nameserver", "search"), line
        assert line.isprintable() and line.isascii()
