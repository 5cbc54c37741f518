"""What an instance is made from: launch template, image, instance type, and all else of its call. Looks only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.errors import EC2_SETUP
from drengine.failover.drivers.ec2.made import BOOT, WORKLOAD, Resource, specification, tags_for
from drengine.failover.drivers.ec2.network import Subnet, interface_parameters
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.ec2.volumes import Place
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_BOOT_MODES = {"legacy-bios": ("bios",), "uefi": ("uefi",), "uefi-preferred": ("uefi",), "": ("bios",)}
"""How a guest is booted, by the image's boot mode; one that says nothing boots by BIOS on x86_64. Types of Nitro prefer
UEFI where the image does."""
_MODES_OF_TYPES = {"bios": "legacy-bios", "uefi": "uefi"}
_LOOKED_UP = "resolve:"
"""How a template's image begins that is named by a parameter of Systems Manager."""
ROOT_GIB = 8
"""Of an image that does not tell its disk's size."""


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
        DrengineError: LAUNCH_SETTINGS, the settings name one that the source has not.
    """
    names = [disk.volume for disk in request.disks]
    rooted = [each.volume for each in (request.inventory.disks if request.inventory else ()) if each.is_root]
    wanted = settings.boot or next((each for each in rooted if each in names), "") or next(iter(names), "")
    if wanted not in names:
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver ec2: there is no volume {wanted!r} to boot from")
    if unknown := sorted(settings.volumes.keys() - set(names)):
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver ec2: `volumes` names {unknown[0]!r}: there is none")
    return wanted


def look_at_image(calls: Calls, request: LaunchRequest, settings: Ec2Settings) -> Image | None:
    """The AMI, which has to boot as the disks do, on their processors; None: the template has it looked up by EC2.

    Raises:
        DrengineError: EC2_SETUP.
    """
    template = _look_at_template(calls, settings)
    if request.isolated and "IamInstanceProfile" in template:
        raise DrengineError(
            EC2_SETUP, f"launch template {settings.launch_template} has an instance profile: a drill gets none"
        )
    id = settings.image or template.get("ImageId", "")
    if not id:
        raise DrengineError(EC2_SETUP, f"launch template {settings.launch_template} names no image, nor do settings")
    if id.startswith(_LOOKED_UP):
        return None
    found = next(iter(calls("DescribeImages", ImageIds=[id]).get("Images", ())), None)
    if found is None:
        raise DrengineError(EC2_SETUP, f"there is no image {id} in {settings.region}")
    root_device = found.get("RootDeviceName", "/dev/xvda")
    listed: list[Resource] = found.get("BlockDeviceMappings", [])
    mapped = (each for each in listed if each.get("DeviceName") == root_device)
    image = Image(
        id,
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
    fitting = sorted(
        (each["MemoryInfo"]["SizeInMiB"], each["VCpuInfo"]["DefaultVCpus"], each["InstanceType"])
        for each, why in misfits(calls, sorted(offered), wanted, boot_mode(settings, wanted))
        if not why
    )
    if not fitting:
        size = f"{wanted.cpus} CPUs and {wanted.memory_bytes >> 20} MiB"
        raise DrengineError(EC2_SETUP, f"no instance type that is offered on {place} has {size}")
    return [name for *_, name in fitting[:TYPES_MAX]]


TYPES_MAX = 6
"""How many types are tried where the runbook names none."""
_AT_ONCE = 100


def misfits(calls: Calls, types: Sequence[str], wanted: Inventory, mode: str) -> Iterator[tuple[Resource, str]]:
    """Instance types, and why each would not do for a source; empty: it would.

    Args:
        types: that EC2 knows.
        wanted: the source.
        mode: `bios` or `uefi`, by which its disk is booted.
    """
    for first in range(0, len(types), _AT_ONCE):
        part = list(types[first : first + _AT_ONCE])
        for each in calls.every("DescribeInstanceTypes", "InstanceTypes", InstanceTypes=part):
            yield each, _misfit(each, wanted, mode)


def _misfit(found: Resource, wanted: Inventory, mode: str) -> str:
    architecture, boots_by = ARCHITECTURES.get(wanted.architecture, "x86_64"), _MODES_OF_TYPES[mode]
    cpus, memory_mib = found["VCpuInfo"]["DefaultVCpus"], found["MemoryInfo"]["SizeInMiB"]
    if architecture not in found.get("ProcessorInfo", {}).get("SupportedArchitectures", [architecture]):
        return f"is not for {architecture}"
    if boots_by not in found.get("SupportedBootModes", [boots_by]):
        return f"does not boot by {mode}"
    if found.get("Hypervisor", "nitro") != "nitro":
        return "has neither NVMe disks nor ENA cards"
    if cpus < wanted.cpus:
        return f"has {cpus} CPUs, the source {wanted.cpus}"
    # A server's own memory is a little less than what its maker sold: what is reserved does not count.
    if memory_mib < (wanted.memory_bytes >> 20) * 0.95:
        return f"has {memory_mib} MiB, the source {wanted.memory_bytes >> 20}"
    return ""


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
        "NetworkInterfaces": interface_parameters(request, settings, subnet, groups),
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


def _look_at_template(calls: Calls, settings: Ec2Settings) -> dict[str, Any]:
    """What the launch template holds; empty without one."""
    if not settings.launch_template:
        return {}
    named = _template(settings.launch_template)
    version = named.pop("Version", "$Default")
    found = calls("DescribeLaunchTemplateVersions", **named, Versions=[version]).get("LaunchTemplateVersions", ())
    if not found:
        raise DrengineError(EC2_SETUP, f"there is no launch template {settings.launch_template} in {settings.region}")
    return dict(found[0]["LaunchTemplateData"])


def _template(named: str) -> dict[str, str]:
    name, _, version = named.partition(":")
    key = "LaunchTemplateId" if name.startswith("lt-") else "LaunchTemplateName"
    return {key: name, **({"Version": version} if version else {})}
