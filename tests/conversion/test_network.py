"""The guest's network for other cards and addresses, in each way in which guests configure it."""

from __future__ import annotations

import configparser

import pytest
import yaml

from drengine.conversion.network.named import HEADER, named_cards
from drengine.conversion.network.plan import NetworkPlan, plan_network
from drengine.model.hardware import Card, Machine
from drengine.model.inventory import Interface, Inventory

CARD = Card(
    name="enp0s31f6",
    mac="F2:00:00:00:00:01",
    addresses=("10.9.0.5/24", "10.9.0.6/24", "2001:db8:9::5/64"),
    gateway="10.9.0.1",
    routes={"10.8.0.0/16": "10.9.0.2"},
    name_servers=("10.9.0.53",),
    search=("example.org",),
    mtu=9000,
)
LEASED = Card(name="eth1", mac="f2:00:00:00:00:02", dhcp=True, addresses=("10.7.0.5/24",), gateway="10.7.0.1")
INTERFACES = "auto lo\niface lo inet loopback\nauto bond0\niface bond0 inet static\n    address 192.168.50.10/24\n"
IFUPDOWN = {"/etc/network/interfaces": INTERFACES, "/etc/network/interfaces.d/eth1": "iface eth1 inet dhcp\n"}
RULES = "/etc/udev/rules.d/70-persistent-net.rules"


def planned(files: dict[str, str], there: set[str], *cards: Card, inventory: Inventory | None = None) -> NetworkPlan:
    """The plan; carried out, it is the last."""
    made = plan_network(files, there, cards, Machine(), inventory)
    after = {path: text for path, text in files.items() if path not in made.aside} | dict(made.puts)
    again = plan_network(after, there, cards, Machine(), inventory)
    assert {path: text for path, text in again.puts.items() if after.get(path) != text} == {}
    assert not again.aside
    return made


def test_ifupdown_gets_one_file_and_what_is_no_more_is_told() -> None:
    made = planned({**IFUPDOWN, RULES: "x"}, {"/sbin/ifup"}, CARD, LEASED)
    text = made.puts["/etc/network/interfaces"]
    assert text == (
        f"{HEADER}auto lo\niface lo inet loopback\n\nauto enp0s31f6\n"
        "iface enp0s31f6 inet static\n    address 10.9.0.5/24\n    gateway 10.9.0.1\n    mtu 9000\n"
        "    dns-nameservers 10.9.0.53\n    dns-search example.org\n"
        "    up ip route replace 10.8.0.0/16 via 10.9.0.2 dev enp0s31f6\n"
        "iface enp0s31f6 inet static\n    address 10.9.0.6/24\n"
        "iface enp0s31f6 inet6 static\n    address 2001:db8:9::5/64\n"
        "\nauto lan1\niface lan1 inet dhcp\n"
    )
    assert set(made.aside) == {RULES, "/etc/network/interfaces.d/eth1"}
    assert any("bond0" in note for note in made.notes)


def test_a_resolver_is_written_where_nothing_else_writes_it() -> None:
    files = {**IFUPDOWN, "/etc/resolv.conf": "nameserver 192.168.50.1\n"}
    made = planned(files, {"/sbin/ifup"}, CARD)
    assert made.puts["/etc/resolv.conf"] == f"{HEADER}search example.org\nnameserver 10.9.0.53\n"
    assert "/etc/resolv.conf" not in planned(files, {"/sbin/ifup", "/sbin/resolvconf"}, CARD).puts


def test_netplan_keeps_its_renderer_and_nothing_of_its_addresses() -> None:
    files = {"/etc/netplan/50-cloud-init.yaml": "network: {renderer: NetworkManager, ethernets: {eth0: {dhcp4: true}}}"}
    made = planned(files, {"/usr/bin/cloud-init"}, CARD, LEASED)
    network = yaml.safe_load(made.puts["/etc/netplan/60-drengine.yaml"])["network"]
    assert network["renderer"] == "NetworkManager"
    assert network["ethernets"] == {
        "enp0s31f6": {
            "match": {"macaddress": "f2:00:00:00:00:01"},
            "set-name": "enp0s31f6",
            "addresses": list(CARD.addresses),
            "routes": [{"to": "0.0.0.0/0", "via": "10.9.0.1"}, {"to": "10.8.0.0/16", "via": "10.9.0.2"}],
            "nameservers": {"addresses": ["10.9.0.53"], "search": ["example.org"]},
            "mtu": 9000,
        },
        "lan1": {"match": {"macaddress": "f2:00:00:00:00:02"}, "set-name": "lan1", "dhcp4": True},
    }
    assert made.aside == ["/etc/netplan/50-cloud-init.yaml"]
    assert "disabled" in made.puts["/etc/cloud/cloud.cfg.d/99-drengine-network.cfg"]


def parsed(text: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False)
    found.read_string(text)
    return found


def test_networkd_matches_by_address() -> None:
    made = planned({"/etc/systemd/network/20-wired.network": "[Match]\nName=en*\n"}, set(), CARD)
    text = made.puts["/etc/systemd/network/10-drengine-enp0s31f6.network"]
    assert "MACAddress=f2:00:00:00:00:01\n" in text and text.count("Address=") == 4
    assert parsed(text)["Route"]["Destination"] == "10.8.0.0/16"
    assert made.aside == ["/etc/systemd/network/20-wired.network"]


def test_network_manager_gets_keyfiles() -> None:
    wireless = "/etc/NetworkManager/system-connections/cafe.nmconnection"
    files = {"/etc/NetworkManager/system-connections/wired": "[connection]\ntype=ethernet\n", wireless: "type=wifi"}
    made = planned(files, {"/usr/sbin/NetworkManager"}, CARD, LEASED)
    found = parsed(made.puts["/etc/NetworkManager/system-connections/drengine-enp0s31f6.nmconnection"])
    assert found["ipv4"]["address1"] == "10.9.0.5/24,10.9.0.1" and found["ipv4"]["address2"] == "10.9.0.6/24"
    assert found["ipv4"]["route1"] == "10.8.0.0/16,10.9.0.2" and found["ipv6"]["address1"] == "2001:db8:9::5/64"
    assert found["ethernet"]["mtu"] == "9000"
    leased = parsed(made.puts["/etc/NetworkManager/system-connections/drengine-lan1.nmconnection"])
    assert leased["ipv4"]["method"] == leased["ipv6"]["method"] == "auto"
    assert made.aside == ["/etc/NetworkManager/system-connections/wired"]


def test_ifcfg_files_of_red_hat() -> None:
    place = "/etc/sysconfig/network-scripts"
    files = {f"{place}/ifcfg-lo": "DEVICE=lo\n", f"{place}/ifcfg-em1": "DEVICE=em1\n", f"{place}/route-em1": "x"}
    made = planned(files, {"/usr/sbin/NetworkManager"}, CARD, LEASED)
    text = made.puts[f"{place}/ifcfg-enp0s31f6"]
    wanted = ("HWADDR=F2:00:00:00:00:01", "IPADDR=10.9.0.5", "PREFIX=24", "IPADDR1=10.9.0.6", "GATEWAY=10.9.0.1")
    assert all(f"{line}\n" in text for line in (*wanted, "MTU=9000", "DNS1=10.9.0.53", "IPV6ADDR=2001:db8:9::5/64"))
    assert "BOOTPROTO=dhcp\n" in made.puts[f"{place}/ifcfg-lan1"] and "IPADDR" not in made.puts[f"{place}/ifcfg-lan1"]
    assert made.puts[f"{place}/route-enp0s31f6"] == "10.8.0.0/16 via 10.9.0.2 dev enp0s31f6\n"
    assert set(made.aside) == {f"{place}/ifcfg-em1", f"{place}/route-em1"}


def test_each_card_has_its_name_by_its_address() -> None:
    made = planned(IFUPDOWN, {"/sbin/ifup"}, CARD, LEASED)
    assert (
        "MACAddress=f2:00:00:00:00:02\nType=ether\n\n[Link]\nName=lan1\n"
        in made.puts["/etc/systemd/network/10-drengine-lan1.link"]
    )


@pytest.mark.parametrize(
    ("cards", "names"),
    [
        ((Card(name="eth0"),), ["eth0"]),
        ((Card(name="eth0", mac="f2:00:00:00:00:01"), Card(name="eth1", mac="f2:00:00:00:00:02")), ["lan0", "lan1"]),
        ((Card(name="a b; reboot"),), ["lan0"]),
        ((Card(name="a", mac="f2:00:00:00:00:01"), Card(name="a", mac="f2:00:00:00:00:02")), ["a", "lan1"]),
        ((Card(name="a"), Card(name="b", mac="f2:00:00:00:00:02")), ["b"]),
    ],
)
def test_names_are_kept_where_they_can_be(cards: tuple[Card, ...], names: list[str]) -> None:
    named, notes = named_cards(cards)
    assert [each.name for each in named] == names
    assert len(notes) == len(cards) - len(names)


def test_without_cards_the_only_interface_keeps_its_name_and_all_else_stays() -> None:
    one = Inventory(taken_ns=1, interfaces=(Interface(name="eno1"), Interface(name="br0", kind="bridge")))
    made = planned({**IFUPDOWN, RULES: "x"}, {"/sbin/ifup"}, inventory=one)
    assert list(made.puts) == ["/etc/systemd/network/10-drengine-eno1.link"]
    assert "Driver=virtio_net" in made.puts["/etc/systemd/network/10-drengine-eno1.link"]
    assert made.aside == [RULES]
    assert planned(IFUPDOWN, {"/sbin/ifup"}).puts == {}, "which of two it is nobody knows"


NETPLAN = """network:
  version: 2
  ethernets:
    # the only one
    "enp3s0":
      addresses: [192.168.50.10/24]
      nameservers:
        addresses: [192.168.50.1]
    other:
      match: {macaddress: "3c:ec:ef:00:00:02"}
  bonds:
    enp9s0: {}
"""


@pytest.mark.parametrize(
    ("path", "text", "name"),
    [
        ("/etc/network/interfaces", "auto lo\niface lo inet loopback\niface enp3s0 inet dhcp\n", "enp3s0"),
        (
            "/etc/network/interfaces",
            "iface enp3s0 inet dhcp\niface enp3s0.7 inet dhcp\niface br0 inet dhcp\n",
            "enp3s0",
        ),
        ("/etc/network/interfaces", "iface enp3s0 inet dhcp\niface enp4s0 inet dhcp\n", ""),
        ("/etc/netplan/50-installer.yaml", NETPLAN, "enp3s0"),
        ("/etc/sysconfig/network-scripts/ifcfg-em1", "DEVICE=em1\n", "em1"),
        ("/etc/systemd/network/lan.network", "[Match]\nName=eth0\n[Network]\nDHCP=yes\n", "eth0"),
        ("/etc/systemd/network/lan.network", "[Match]\nName=en*\n", ""),
        ("/etc/NetworkManager/system-connections/lan", "[connection]\ninterface-name=ens192\n", "ens192"),
    ],
)
def test_without_cards_and_inventory_the_only_interface_that_is_configured_keeps_its_name(
    path: str, text: str, name: str
) -> None:
    made = planned({path: text}, {"/sbin/ifup"})
    assert list(made.puts) == ([f"/etc/systemd/network/10-drengine-{name}.link"] if name else [])


def test_a_network_of_an_unknown_kind_is_left_alone_and_told() -> None:
    made = planned({}, set(), CARD)
    assert not made.puts and "not known" in made.notes[0]
