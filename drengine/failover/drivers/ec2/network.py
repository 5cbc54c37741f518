"""Where the instance lies: its subnets, and the interfaces that get the addresses of its cards. Looks only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.errors import EC2_SETUP
from drengine.failover.drivers.ec2.made import Resource
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.ec2.volumes import Place
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card

RESERVED_FIRST, RESERVED_LAST = 4, 1
"""Addresses of a subnet that are AWS's."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet where the instance may be launched."""

    id: str
    place: Place
    vpc: str
    network: ipaddress.IPv4Network
    free: int = 0
    lni_index: int = 0


def look_at_subnets(calls: Calls, settings: Ec2Settings, *, isolated: bool) -> list[Subnet]:
    """The subnets of the settings, in their order.

    Raises:
        DrengineError: EC2_SETUP, one is not there or not on the Outpost, or they are in two places; LAUNCH_SETTINGS.
    """
    ids = settings.subnets_for(isolated=isolated)
    if not ids:
        raise DrengineError(
            LAUNCH_SETTINGS, "settings of driver ec2: a drill needs `drill_subnets`, where it can't meet production"
        )
    found = {each["SubnetId"]: _subnet(each) for each in calls.every("DescribeSubnets", "Subnets", SubnetIds=ids)}
    if missing := [each for each in ids if each not in found]:
        raise DrengineError(EC2_SETUP, f"there is no subnet {missing[0]} in {settings.region}")
    listed = [found[each] for each in ids]
    for each in listed:
        if settings.outpost and each.place.outpost != settings.outpost:
            where = f"on {each.place.outpost}" if each.place.outpost else "on no Outpost"
            raise DrengineError(EC2_SETUP, f"subnet {each.id} is {where}, not on {settings.outpost}")
        if each.place != listed[0].place:
            raise DrengineError(EC2_SETUP, f"subnets {listed[0].id} and {each.id} are in two places: volumes have one")
    return listed


def fitting_subnets(subnets: list[Subnet], request: LaunchRequest, settings: Ec2Settings) -> list[Subnet]:
    """Those in which the fixed addresses lie.

    Raises:
        DrengineError: EC2_SETUP, why they lie in none.
    """
    fitting, refusal = [], None
    for each in subnets:
        try:
            interface_parameters(request, settings, each, [])
        except DrengineError as error:
            refusal = refusal or error
        else:
            fitting.append(each)
    if refusal and not fitting:
        raise refusal
    return fitting


def interface_parameters(
    request: LaunchRequest, settings: Ec2Settings, subnet: Subnet, groups: list[str]
) -> list[dict[str, Any]]:
    """RunInstances' NetworkInterfaces. A drill has no local network interface: that leads to production's network.

    Raises:
        DrengineError: EC2_SETUP: an address is not of its subnet, or not that of its card.
    """
    first = _addresses(request.cards, 0, settings.address)
    _check_place(first, subnet)
    made = [_interface(0, subnet.id, groups, first)]
    for number, each in enumerate(settings.interfaces, start=1):
        if lies_in := each.subnet_for(isolated=request.isolated):
            own = each.security_groups if each.security_groups and not request.isolated else groups
            made.append(_interface(number, lies_in, own, _addresses(request.cards, number, each.address)))
    if settings.lni_index and not request.isolated:
        made.append(_interface(settings.lni_index, subnet.id, groups, []))
    return made


def addresses_left_out(request: LaunchRequest, settings: Ec2Settings) -> list[str]:
    """Addresses of the cards that the launch gives to no interface: those of IPv6, and of cards without one."""
    further = enumerate(settings.interfaces, start=1)
    there = {0, *(number for number, each in further if each.subnet_for(isolated=request.isolated))}
    return [
        address
        for number, card in enumerate(request.cards)
        for address in card.addresses
        if ":" in address or number not in there
    ]


def addresses_of(instance: Resource) -> list[str]:
    """All addresses of an instance's interfaces."""
    found = []
    for interface in instance.get("NetworkInterfaces", ()):
        found += [each["PrivateIpAddress"] for each in interface.get("PrivateIpAddresses", ())]
        found += [each["Ipv6Address"] for each in interface.get("Ipv6Addresses", ())]
    return found


def _interface(index: int, subnet: str, groups: list[str], addresses: list[str]) -> dict[str, Any]:
    made = {"DeviceIndex": index, "SubnetId": subnet, "Groups": groups, "DeleteOnTermination": True}
    if addresses:
        made["PrivateIpAddress"] = addresses[0]
    if more := addresses[1:]:
        made["PrivateIpAddresses"] = [{"PrivateIpAddress": each, "Primary": False} for each in more]
    return made


def _addresses(cards: tuple[Card, ...], number: int, said: str) -> list[str]:
    """The IPv4 addresses that an interface gets; none: EC2 chooses, as DHCP of a site does.

    Args:
        cards: of the recovered server.
        number: the interface's.
        said: the runbook's address for it; it comes first.

    Raises:
        DrengineError: EC2_SETUP: its disks are made for other addresses than the settings say.
    """
    card = cards[number] if number < len(cards) else Card()
    fixed = [] if card.dhcp else [each.split("/")[0] for each in card.addresses if ":" not in each]
    if not said:
        return fixed
    if fixed and said not in fixed:
        name = card.name or "its card"
        raise DrengineError(EC2_SETUP, f"address {said} of the settings is not one of {name}: {', '.join(fixed)}")
    return [said, *(each for each in fixed if each != said)]


def _check_place(addresses: list[str], subnet: Subnet) -> None:
    """
    Raises:
        DrengineError: EC2_SETUP.
    """
    for address in addresses:
        own = ipaddress.IPv4Address(address)
        number = int(own) - int(subnet.network.network_address)
        if own not in subnet.network:
            raise DrengineError(EC2_SETUP, f"address {address} is not in {subnet.network} of subnet {subnet.id}")
        if number < RESERVED_FIRST or number >= subnet.network.num_addresses - RESERVED_LAST:
            raise DrengineError(EC2_SETUP, f"address {address} of subnet {subnet.id} is one that AWS keeps for itself")


def _subnet(found: Resource) -> Subnet:
    return Subnet(
        found["SubnetId"],
        Place(found["AvailabilityZone"], found.get("OutpostArn", "")),
        found["VpcId"],
        ipaddress.IPv4Network(found["CidrBlock"]),
        int(found.get("AvailableIpAddressCount", 0)),
        int(found.get("EnableLniAtDeviceIndex", 0)),
    )
