"""Ubuntu's netplan: netplan(5)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from drengine.conversion.network.named import HEADER, NamedCard

FILE = "/etc/netplan/60-drengine.yaml"
_KEY = re.compile(r"[\"']?([A-Za-z0-9_.-]+)[\"']?:")


def netplan_files(cards: Sequence[NamedCard], before: Mapping[str, str]) -> Mapping[str, str]:
    """One file for all of them, for the renderer that the guest's files named."""
    network: dict[str, Any] = {"version": 2, "ethernets": {each.name: _ethernet(each) for each in cards}}
    if any("NetworkManager" in text for text in before.values()):
        network["renderer"] = "NetworkManager"
    return {FILE: HEADER + yaml.safe_dump({"network": network}, sort_keys=False)}


def ethernets_of(text: str) -> set[str]:
    """Interfaces that a file configures by their names, not by a `match`.

    It is read by lines: as YAML, a few of a stranger's could take all memory (merged aliases).
    """
    found: set[str] = set()
    above = level = -1
    name = ""
    for line in text.splitlines():
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        if words == "ethernets:":
            above, level = indent, -1
        elif above < 0 or indent <= above:
            above = -1
        elif (key := _KEY.match(words)) and indent == (level := indent if level < 0 else level):
            name = key[1]
            found.add(name)
        elif words.startswith("match:"):
            found.discard(name)
    return found


def _ethernet(card: NamedCard) -> dict[str, Any]:
    told = card.card
    made: dict[str, Any] = {"match": {"macaddress": card.mac}, "set-name": card.name} if card.mac else {}
    if told.dhcp:
        made["dhcp4"] = True
    elif told.addresses:
        made["addresses"] = list(told.addresses)
    routes = [{"to": to, "via": via} for to, via in told.routes.items()]
    if told.gateway and not told.dhcp:
        routes.insert(0, {"to": "::/0" if ":" in told.gateway else "0.0.0.0/0", "via": told.gateway})
    if routes:
        made["routes"] = routes
    if told.name_servers or told.search:
        made["nameservers"] = {"addresses": list(told.name_servers), "search": list(told.search)}
    if told.mtu != 1500:
        made["mtu"] = told.mtu
    return made
