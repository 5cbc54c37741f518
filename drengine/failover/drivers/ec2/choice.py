"""What an instance is made from: subnets, image, instance types, network interfaces. Looks only."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.errors import EC2_SETUP
from drengine.failover.drivers.ec2.made import BOOT, WORKLOAD, Resource, specification, tags_for
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.ec2.volumes import Place
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card
from drengine.model.inventory import Inventory

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_BOOT_MODES = {"legacy-bios": ("bios",), "uefi": ("uefi",), "uefi-preferred": ("uefi", "bios"), "": ("bios",)}
"""What a guest may be booted by, by the image's boot mode; an image that says nothing boots by BIOS on x86_64."""
_MODES_OF_TYPES = {"bios": "legacy-bios", "uefi": "uefi"}
ROOT_GIB = 8
"""Of an image that does not tell its disk's size."""
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


@dataclass(frozen=True, slots=True)
class Image:
    """The AMI that the instance begins with."""

    id: str
    root_device: str
    root_gib: int
    architecture: str
    boot_modes: tuple[str, ...]


def boot_mode(settings: Ec2Settings, inventory: Inventory | None) -> str:
    """`bios` or `uefi`."""
    return settings.boot_mode or (inventory.boot_mode if inventory else "") or "bios"


def boot_volume(request: LaunchRequest, settings: Ec2Settings) -> str:
    """The volume that the instance boots from.

    Raises:
        DrengineError: LAUNCH_SETTINGS.
    """
    names = [disk.volume for disk in request.disks]
    rooted = [each.volume for each in (request.inventory.disks if request.inventory else ()) if each.is_root]
    wanted = settings.boot or next((each for each in rooted if each in names), "") or next(iter(names), "")
    if wanted not in names:
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver ec2: there is no volume {wanted!r} to boot from")
    return wanted


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


def look_at_image(calls: Calls, request: LaunchRequest, settings: Ec2Settings) -> Image | None:
    """The AMI, which has to boot as the disks do, on their processors; None where the launch template names it.

    Raises:
        DrengineError: EC2_SETUP.
    """
    if not settings.image:
        return None
    found = next(iter(calls("DescribeImages", ImageIds=[settings.image]).get("Images", ())), None)
    if found is None:
        raise DrengineError(EC2_SETUP, f"there is no image {settings.image} in {settings.region}")
    root_device = found.get("RootDeviceName", "/dev/xvda")
    listed: list[Resource] = found.get("BlockDeviceMappings", [])
    mapped = (each for each in listed if each.get("DeviceName") == root_device)
    image = Image(
        settings.image,
        root_device,
        int(next(mapped, {}).get("Ebs", {}).get("VolumeSize", 0)) or ROOT_GIB,
        found.get("Architecture", "x86_64"),
        ("uefi",) if found.get("Architecture") == "arm64" else _BOOT_MODES[found.get("BootMode", "")],
    )
    if found.get("RootDeviceType", "ebs") != "ebs":
        raise DrengineError(EC2_SETUP, f"image {image.id} has no EBS disk that could be replaced")
    told = request.inventory.architecture if request.inventory else ""
    if told and ARCHITECTURES.get(told, told) != image.architecture:
        raise DrengineError(EC2_SETUP, f"image {image.id} is for {image.architecture}, the source is {told}")
    mode = boot_mode(settings, request.inventory)
    if mode not in image.boot_modes:
        raise DrengineError(
            EC2_SETUP, f"image {image.id} boots by {' or '.join(image.boot_modes)}, the source's disk by {mode}"
        )
    return image


def choose_types(calls: Calls, request: LaunchRequest, settings: Ec2Settings, place: Place) -> list[str]:
    """Instance types in the order in which they are tried.

    Raises:
        DrengineError: EC2_SETUP: none is offered there, or none is as large as the source.
    """
    at = place.outpost or place.zone
    kind = "outpost" if place.outpost else "availability-zone"
    filters: list[dict[str, Any]] = [{"Name": "location", "Values": [at]}]
    if settings.instance_types:
        filters.append({"Name": "instance-type", "Values": settings.instance_types})
    offers = calls.every("DescribeInstanceTypeOfferings", "InstanceTypeOfferings", LocationType=kind, Filters=filters)
    offered = {each["InstanceType"] for each in offers}
    if settings.instance_types:
        if known := [each for each in settings.instance_types if each in offered]:
            return known
        raise DrengineError(EC2_SETUP, f"none of {', '.join(settings.instance_types)} is offered on {place}")
    wanted = request.inventory
    if wanted is None or not wanted.cpus:
        raise DrengineError(EC2_SETUP, "name `instance_types`: the source's agent has not told how large it is")
    fitting = sorted(_fitting(calls, sorted(offered), wanted, boot_mode(settings, wanted)))
    if not fitting:
        size = f"{wanted.cpus} CPUs and {wanted.memory_bytes >> 20} MiB"
        raise DrengineError(EC2_SETUP, f"no instance type that is offered on {place} has {size}")
    return [name for *_, name in fitting[:TYPES_MAX]]


TYPES_MAX = 6
"""How many types are tried where the runbook names none."""
_AT_ONCE = 100


def _fitting(calls: Calls, offered: Sequence[str], wanted: Inventory, mode: str) -> Iterable[tuple[int, int, str]]:
    """Those that are as large as the source, and have what its disks are prepared for: (memory, CPUs, name)."""
    architecture = ARCHITECTURES.get(wanted.architecture, "x86_64")
    memory_mib = wanted.memory_bytes >> 20
    for first in range(0, len(offered), _AT_ONCE):
        part = list(offered[first : first + _AT_ONCE])
        for each in calls.every("DescribeInstanceTypes", "InstanceTypes", InstanceTypes=part):
            cpus, memory = each["VCpuInfo"]["DefaultVCpus"], each["MemoryInfo"]["SizeInMiB"]
            fits = (
                architecture in each.get("ProcessorInfo", {}).get("SupportedArchitectures", [architecture])
                and _MODES_OF_TYPES[mode] in each.get("SupportedBootModes", [_MODES_OF_TYPES[mode]])
                and each.get("Hypervisor", "nitro") == "nitro"  # others have neither NVMe nor ENA
            )
            # A server's own memory is a little less than what its maker sold: what is reserved does not count.
            if fits and cpus >= wanted.cpus and memory >= memory_mib * 0.95:
                yield memory, cpus, each["InstanceType"]


def run_parameters(
    request: LaunchRequest, settings: Ec2Settings, subnet: Subnet, type_: str, image: Image | None, groups: list[str]
) -> dict[str, Any]:
    """RunInstances', but for its token.

    Raises:
        DrengineError: EC2_SETUP: an address is not of its subnet.
    """
    placement = {
        "Tenancy": settings.tenancy or ("host" if settings.dedicated_host else ""),
        "HostId": settings.dedicated_host,
        "GroupName": settings.placement_group,
    }
    made: dict[str, Any] = {
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceType": type_,
        "InstanceInitiatedShutdownBehavior": "stop",
        "NetworkInterfaces": _interfaces(request, settings, subnet, groups),
        "TagSpecifications": [
            specification("instance", tags_for(request, settings, WORKLOAD)),
            specification("volume", tags_for(request, settings, BOOT)),
            specification("network-interface", tags_for(request, settings, WORKLOAD)),
        ],
    }
    if image is not None:
        root: dict[str, Any] = {"VolumeType": settings.volume_type, "DeleteOnTermination": True}
        root["VolumeSize"] = image.root_gib
        root |= {"Encrypted": True} if settings.encrypted or settings.kms_key else {}
        root |= {"KmsKeyId": settings.kms_key} if settings.kms_key else {}
        made |= {"ImageId": image.id, "BlockDeviceMappings": [{"DeviceName": image.root_device, "Ebs": root}]}
    if settings.launch_template:
        made["LaunchTemplate"] = _template(settings.launch_template)
    if settings.instance_profile and not request.isolated:
        key = "Arn" if settings.instance_profile.startswith("arn:") else "Name"
        made["IamInstanceProfile"] = {key: settings.instance_profile}
    if settings.key_name:
        made["KeyName"] = settings.key_name
    if placement := {key: value for key, value in placement.items() if value}:
        made["Placement"] = placement
    return made


def _interfaces(
    request: LaunchRequest, settings: Ec2Settings, subnet: Subnet, groups: list[str]
) -> list[dict[str, Any]]:
    """A drill has no local network interface: that leads to production's network."""
    addresses = [_address_of(card) for card in request.cards]
    first = settings.address or next(iter(addresses), "")
    made = [_interface(0, subnet.id, groups, _checked(first, subnet))]
    for number, each in enumerate(settings.interfaces, start=1):
        lies_in = each.drill_subnet if request.isolated else each.subnet
        if lies_in:
            own = each.security_groups if each.security_groups and not request.isolated else groups
            address = each.address or (addresses[number] if number < len(addresses) else "")
            made.append(_interface(number, lies_in, own, address))
    if settings.lni_index and not request.isolated:
        made.append(_interface(settings.lni_index, subnet.id, groups, ""))
    return made


def _interface(index: int, subnet: str, groups: list[str], address: str) -> dict[str, Any]:
    fixed = {"PrivateIpAddress": address} if address else {}
    return {"DeviceIndex": index, "SubnetId": subnet, "Groups": groups, "DeleteOnTermination": True, **fixed}


def _address_of(card: Card) -> str:
    """The first IPv4 address that a card is to have; empty: EC2 chooses, as DHCP of a site does."""
    addresses = (each.split("/")[0] for each in card.addresses if not card.dhcp)
    return next((each for each in addresses if ":" not in each), "")


def _checked(address: str, subnet: Subnet) -> str:
    """
    Raises:
        DrengineError: EC2_SETUP.
    """
    if address:
        own = ipaddress.IPv4Address(address)
        number = int(own) - int(subnet.network.network_address)
        if own not in subnet.network:
            raise DrengineError(EC2_SETUP, f"address {address} is not in {subnet.network} of subnet {subnet.id}")
        if number < RESERVED_FIRST or number >= subnet.network.num_addresses - RESERVED_LAST:
            raise DrengineError(EC2_SETUP, f"address {address} of subnet {subnet.id} is one that AWS keeps for itself")
    return address


def _template(named: str) -> dict[str, str]:
    name, _, version = named.partition(":")
    key = "LaunchTemplateId" if name.startswith("lt-") else "LaunchTemplateName"
    return {key: name, **({"Version": version} if version else {})}


def _subnet(found: Resource) -> Subnet:
    return Subnet(
        found["SubnetId"],
        Place(found["AvailabilityZone"], found.get("OutpostArn", "")),
        found["VpcId"],
        ipaddress.IPv4Network(found["CidrBlock"]),
        int(found.get("AvailableIpAddressCount", 0)),
        int(found.get("EnableLniAtDeviceIndex", 0)),
    )
