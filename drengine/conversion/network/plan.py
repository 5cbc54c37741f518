"""What is written and what is set aside, by the way in which the guest configures its network."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from drengine.conversion.network import ifcfg, ifupdown, keyfile, netplan, networkd
from drengine.conversion.network.named import HEADER, NamedCard, link_files, named_cards
from drengine.model.hardware import Card, Machine
from drengine.model.inventory import Inventory

FILES = (
    *("/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/netplan/*.yaml", "/etc/netplan/*.yml"),
    *("/etc/systemd/network/*.network", "/etc/systemd/network/*.link", "/etc/NetworkManager/system-connections/*"),
    *("/etc/sysconfig/network-scripts/ifcfg-*", "/etc/sysconfig/network-scripts/route*-*", "/etc/resolv.conf"),
    *("/etc/udev/rules.d/*persistent-net.rules", "/etc/udev/rules.d/*net-by-mac.rules"),
)
"""What is read of the guest for this."""
_NETWORKD = "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
PROGRAMS = ("/sbin/ifup", "/usr/sbin/NetworkManager", "/sbin/resolvconf", "/usr/bin/cloud-init", _NETWORKD)
"""What is looked for."""
PRIVATE = ("/etc/netplan/", "/etc/NetworkManager/")
"""What only root may read there."""
_PHYSICAL = re.compile(r"e(?:n[opsxP]|th)[A-Za-z0-9]{1,12}|p\d+p\d+|em\d+")
_SEVERAL = re.compile(r"bond|team")
"""Whoever has one of these has cards that their configuration need not name."""
_NAMED = re.compile(r"^(?:Name|interface-name)=(\S+)$", re.MULTILINE)
"""Of systemd-networkd and of NetworkManager's keyfiles."""
_CLOUD = "/etc/cloud/cloud.cfg.d/99-drengine-network.cfg"


@dataclass(frozen=True)
class NetworkPlan:
    """Files by their new text, files that are set aside, and notes for people."""

    puts: Mapping[str, str] = field(default_factory=dict)
    aside: Sequence[str] = ()
    notes: Sequence[str] = ()


def plan_network(
    files: Mapping[str, str],
    there: Collection[str],
    cards: Sequence[Card],
    machine: Machine,
    inventory: Inventory | None,
) -> NetworkPlan:
    """From the guest's files and what is there of PROGRAMS.

    Rules of udev that bind a name to an old card go in any case. Without cards the configuration stays, and the
    source's only interface, by its inventory or else by that configuration, keeps its name on the new card.
    """
    stale = [path for path in files if path.startswith("/etc/udev/")]
    named, notes = named_cards(cards)
    if not named:
        return NetworkPlan(_kept_name(files, machine, inventory), stale, notes)
    puts = dict(link_files(named, machine))
    made, aside = _by_way(_way(files, there), files, named)
    if made is None:
        return NetworkPlan(
            {}, stale, [*notes, "how the guest configures its network is not known: nothing was changed"]
        )
    puts |= made
    if "/usr/bin/cloud-init" in there:
        puts[_CLOUD] = f"{HEADER}network: {{config: disabled}}\n"
    if made.keys() == {ifupdown.FILE} and "/sbin/resolvconf" not in there and "/etc/resolv.conf" in files:
        puts |= _resolver(named)
    ours = {path for path in files if files[path].startswith(HEADER)}
    links = [path for path in files if path.endswith(".link") and "MACAddress" in files[path]]
    gone = [path for path in (*stale, *links, *aside) if path not in puts]
    gone += [path for path in ours if path not in puts and path not in gone]
    notes += _lost(files, gone, named)
    return NetworkPlan(puts, gone, notes)


def _way(files: Mapping[str, str], there: Collection[str]) -> str:
    def any_of(prefix: str) -> bool:
        return any(path.startswith(prefix) and not path.endswith("ifcfg-lo") for path in files)

    interfaces = "".join(text for path, text in files.items() if path.startswith("/etc/network/"))
    if any_of("/etc/netplan/"):
        return "netplan"
    if any_of(f"{ifcfg.PLACE}/ifcfg-"):
        return "ifcfg"
    if "/sbin/ifup" in there and ifupdown.interfaces_of(interfaces):
        return "ifupdown"
    if any_of("/etc/NetworkManager/system-connections/"):
        return "keyfile"
    if any(path.endswith(".network") for path in files) or _NETWORKD in there:
        return "networkd"
    if "/usr/sbin/NetworkManager" in there:
        return "keyfile"
    return "ifupdown" if "/sbin/ifup" in there else ""


def _by_way(
    way: str, files: Mapping[str, str], cards: Sequence[NamedCard]
) -> tuple[Mapping[str, str] | None, Sequence[str]]:
    """New files, and the old ones of that way; None where it is not known."""

    def old(*prefixes: str, ending: str = "") -> list[str]:
        return [path for path in files if path.startswith(prefixes) and path.endswith(ending)]

    match way:
        case "netplan":
            before = {path: files[path] for path in old("/etc/netplan/")}
            return netplan.netplan_files(cards, before), list(before)
        case "ifcfg":
            found = old(f"{ifcfg.PLACE}/ifcfg-", f"{ifcfg.PLACE}/route")
            return ifcfg.ifcfg_files(cards), [path for path in found if not path.endswith("ifcfg-lo")]
        case "ifupdown":
            return ifupdown.ifupdown_files(cards), old("/etc/network/interfaces.d/")
        case "keyfile":
            wired = [path for path in old("/etc/NetworkManager/") if "ethernet" in files[path]]
            return keyfile.keyfile_files(cards), wired
        case "networkd":
            return networkd.networkd_files(cards), old("/etc/systemd/network/", ending=".network")
    return None, ()


def _kept_name(files: Mapping[str, str], machine: Machine, inventory: Inventory | None) -> Mapping[str, str]:
    """A link file for the only card; none where there may be several, or names are bound already."""
    if inventory:
        names = {each.name for each in inventory.interfaces if each.kind == "physical"}
    else:
        told = set(_configured(files))
        names = {name for name in told if _PHYSICAL.fullmatch(name)} if not any(map(_SEVERAL.match, told)) else set()
    bound = any(path.endswith(".link") and not text.startswith(HEADER) for path, text in files.items())
    if len(names) != 1 or bound:
        return {}
    named, _ = named_cards([Card(name=min(names))])
    return link_files(named, machine)


def _configured(files: Mapping[str, str]) -> Iterator[str]:
    """Names of interfaces in the guest's configuration, by whatever way."""
    for path, text in files.items():
        if path.startswith("/etc/netplan/"):
            yield from netplan.ethernets_of(text)
        elif path.startswith(f"{ifcfg.PLACE}/ifcfg-"):
            yield path.removeprefix(f"{ifcfg.PLACE}/ifcfg-")
        elif path.startswith("/etc/network/"):
            yield from ifupdown.interfaces_of(text)
        elif not path.endswith(".link"):
            yield from _NAMED.findall(text)


def _resolver(cards: Sequence[NamedCard]) -> Mapping[str, str]:
    servers = dict.fromkeys(server for each in cards for server in each.card.name_servers)
    search = dict.fromkeys(domain for each in cards for domain in each.card.search)
    if not servers:
        return {}
    lines = [f"search {' '.join(search)}"] if search else []
    return {"/etc/resolv.conf": HEADER + "\n".join([*lines, *(f"nameserver {each}" for each in servers)]) + "\n"}


def _lost(files: Mapping[str, str], gone: Sequence[str], cards: Sequence[NamedCard]) -> list[str]:
    """What ifupdown configured beyond the cards: bonds, bridges, VLANs stand in what was set aside."""
    texts = [files[path] for path in (ifupdown.FILE, *gone) if path.startswith("/etc/network/") and path in files]
    others = {name for text in texts if not text.startswith(HEADER) for name in ifupdown.interfaces_of(text)}
    lost = sorted(others - {each.name for each in cards} - {each.card.name for each in cards})
    return [f"interfaces that are configured no more: {', '.join(lost)}"] if lost else []
