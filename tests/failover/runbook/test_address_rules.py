"""Rules of addresses and interfaces that make no sense are told at their place, one clear mistake each."""

from __future__ import annotations

import pytest

from drengine.failover.reading.reader import examine
from tests.failover.runbook.books import SMALL

OK = """\
addresses:
  rules:
    - {from: 10.1.0.0/16, to: 10.9.0.0/16, gateway: 10.9.0.1, name_servers: [10.9.0.53], search: [example.org]}
    - {from: "2001:db8:1::/64", to: "2001:db8:9::/64"}
    - {from: 10.3.0.0/24, dhcp: true}
  drill: []
"""
INTERFACES = "launch: {interfaces: {eth0: {addresses: [10.9.0.5/24], gateway: 10.9.0.1, mac: keep}}, "
RULE, SIX = "to: 10.9.0.0/16", 'to: "2001:db8:9::/64"'
CASES = {
    # what is replaced, by what, with ! before the place of the only mistake that is told; its id, a part of its hint
    "host bits": ("from: 10.1.0.0/16", "from: !10.1.0.5/16", "bad-network", "Write 10.1.0.0/16."),
    "no network": ("from: 10.1.0.0/16", "from: !10.1.0/16", "bad-network", "10.1.0.0/16"),
    "a number for a network": ("from: 10.1.0.0/16", "from: !10", "wrong-type", "10.1.0.0/16"),
    "another size": (RULE, "to: !10.9.0.0/17", "rule-sizes", "/16"),
    "another version": (SIX, "to: !10.8.0.0/16", "rule-sizes", "/64"),
    "nowhere to": ("{from: 10.3.0.0/24, dhcp: true}", "!{from: 10.3.0.0/24}", "missing-key", "`dhcp: true`"),
    "sources that overlap": ("from: 10.3.0.0/24", "from: !10.1.3.0/24", "rules-overlap", "once"),
    "targets that overlap": ("10.3.0.0/24, dhcp", "10.3.0.0/16, to: !10.9.0.0/16, dhcp", "rules-overlap", "Two"),
    "a gateway elsewhere": (f"{RULE}, gateway: 10.9", f"{RULE}, gateway: !10.8", "gateway-elsewhere", "on the network"),
    "no gateway": (f"{RULE}, gateway: 10.9", f"{RULE}, gateway: !10.256.9", "bad-address", "10.9.0.1"),
    "no name server": ("[10.9.0.53]", "[!dns]", "bad-address", "10.9.0.1"),
    "no domain": ("[example.org]", '[!"a b"]', "bad-value", "example.org"),
    "no such key": (f"{RULE}, gateway", f"{RULE}, !gatway", "unknown-key", "'gateway'"),
    "a drill's own": ("drill: []", "drill: [{from: !10.1.0.1/16, dhcp: true}]", "bad-network", "10.1.0.0/16"),
    "no prefix": ("[10.9.0.5/24]", "[!10.9.0.5]", "bad-address", "10.9.0.5/24"),
    "a network's own address": ("[10.9.0.5/24]", "[!10.9.0.0/24]", "bad-address", "server's"),
    "the address of all": ("[10.9.0.5/24]", "[!10.9.0.255/24]", "bad-address", "server's"),
    "an interface's gateway elsewhere": (
        "[10.9.0.5/24], gateway: 10",
        "[10.8.0.5/24], gateway: !10",
        "gateway-elsewhere",
        "on the network",
    ),
    "no MAC": ("mac: keep", "mac: !kept", "bad-mac", "keep"),
    "a MAC of many": ("mac: keep", 'mac: !"01:00:5e:00:00:01"', "bad-mac", "02:"),
    "no interface": ("{eth0:", '{!"eth 0":', "bad-name", "eth0"),
    "an address twice": (
        "mac: keep}",
        "mac: keep}, eth1: {addresses: [!10.9.0.5/24]}",
        "duplicate-address",
        "once",
    ),
    "an address twice in a drill": (
        "mac: keep}",
        "mac: keep}, eth1: {addresses: [10.9.0.6/24], drill: {addresses: [!10.9.0.5/16]}}",
        "duplicate-address",
        "once",
    ),
    "a MAC twice": (
        "mac: keep}",
        'mac: "02:00:00:00:00:0A"}, eth1: {mac: !"02:00:00:00:00:0a"}',
        "duplicate-address",
        "once",
    ),
}
TEXT = SMALL.replace("launch: {", INTERFACES) + OK


def test_rules_that_make_sense_are_read() -> None:
    book = examine(TEXT).runbook
    assert book is not None, examine(TEXT).findings
    assert [rule.source_network for rule in book.addresses.rules] == ["10.1.0.0/16", "2001:db8:1::/64", "10.3.0.0/24"]
    assert book.addresses.drill == []
    assert book.sources["db"].launch.interfaces["eth0"].mac == "keep"


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_with_its_place_and_what_to_do(name: str) -> None:
    old, new, id, hint = CASES[name]
    assert TEXT.count(old) == 1, f"{old!r} must stand once in the runbook"
    marked = TEXT.replace(old, new)
    before = marked[: marked.index("!")]
    examined = examine(marked.replace("!", ""))
    assert examined.runbook is None
    errors = [each for each in examined.findings if not each.warning]
    place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    assert [(each.id, each.place.line, each.place.column) for each in errors] == [(id, *place)], errors
    assert hint in errors[0].hint


def test_a_network_overlaps_each_that_lies_in_it() -> None:
    rules = ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "11.0.0.0/8"]
    text = SMALL + "addresses:\n  rules:\n" + "".join(f"    - {{from: {each}, dhcp: true}}\n" for each in rules)
    errors = [each for each in examine(text).findings if not each.warning]
    assert [(each.id, each.path) for each in errors] == [
        ("rules-overlap", "addresses.rules[1].from"),
        ("rules-overlap", "addresses.rules[2].from"),
    ]
