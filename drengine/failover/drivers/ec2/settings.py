"""Settings of the `ec2` driver in a runbook, and what can be seen to be wrong without asking EC2."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.settings import read_settings
from drengine.model.errors import DrengineError

DRIVER = "ec2"
TAG_PREFIX = "drengine:"
USER_DATA_BYTES_MAX = 16 << 10
TAGS_MAX = 40
"""EC2 takes 50 a resource; the rest are the driver's own."""

_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_OUTPOST = re.compile(r"arn:aws[a-z-]*:outposts:([a-z0-9-]+):\d{12}:outpost/op-[0-9a-f]{8,17}")
_KEY = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:(key|alias)/[A-Za-z0-9/_-]+")
_TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
_TEMPLATE = re.compile(r"[^:]{3,128}(:(\d+|\$Latest|\$Default))?")
_IDS = {
    "subnet": re.compile(r"subnet-[0-9a-f]{8,17}"),
    "security group": re.compile(r"sg-[0-9a-f]{8,17}"),
    "image": re.compile(r"ami-[0-9a-f]{8,17}"),
    "instance": re.compile(r"i-[0-9a-f]{8,17}"),
    "dedicated host": re.compile(r"h-[0-9a-f]{8,17}"),
    "elastic address": re.compile(r"eipalloc-[0-9a-f]{8,17}"),
    "address pool": re.compile(r"ipv4pool-(coip|ec2)-[0-9a-f]{8,17}"),
}
_BOOT_MODES = ("", "bios", "uefi")
_TENANCIES = ("", "default", "dedicated", "host")
_SIZE_GIB_MAX = 65536


class VolumeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One disk's EBS volume: `size_gib` (0: as the disk, rounded up) and `type` (empty: `volume_type`)."""

    size_gib: int = 0
    type: str = ""


class InterfaceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A further network interface.

    Attributes:
        subnet: where it lies; `drill_subnet` in a drill, where it is left out without one.
        security_groups: its own; empty: the instance's.
        address: a fixed private one; empty: that of the source's next card, or any.
    """

    subnet: str
    drill_subnet: str = ""
    security_groups: list[str] = []
    address: str = ""

    def subnet_for(self, *, isolated: bool) -> str:
        """Where it lies; empty: it is left out."""
        return self.drill_subnet if isolated else self.subnet


class Ec2Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of this driver in a runbook.

    Attributes:
        region: whose API is asked; `endpoint`: another address of it (a VPC endpoint); `profile`: of the SDK's files.
        outpost: ARN; the subnets have to be on it. Empty: wherever they are.
        subnets: tried in this order; `drill_subnets` in a drill, where `subnets` do not count.
        security_groups: of the instance; `drill_security_groups` in a drill. Without those a drill gets a group of its
            own that lets nothing out, and in only what comes from `drill_from`.
        image: a small AMI that the instance begins with; its disk is replaced.
        launch_template: id or name, with `:VERSION`; what the settings say goes before it.
        instance_types: tried in this order; empty: those offered there that are as large as the source.
        helper: id of the instance of the recovery host `host`; empty: the one whose tag `drengine:host` is its name.
        boot: the volume that the instance boots from; default: the one with the source's root, else the first.
        boot_mode: `bios` or `uefi`; empty: as the source boots.
        volume_type, volumes: of the EBS volumes; what differs by disk.
        encrypted, kms_key: their encryption; empty: the account's default key.
        address: a fixed private one; empty: that of the source's first card, or any.
        interfaces: further network interfaces.
        lni_index: device index of the local network interface of an Outpost server; 0: none.
        elastic_address: `eipalloc-...`, or `ipv4pool-coip-...`: one of the customer-owned addresses of that pool.
        key_name, instance_profile, user_data, tags, tenancy, dedicated_host, placement_group: as EC2 has them.
        status_checks: it is healthy only when EC2's own checks have passed.
        health: a command on the orchestrator's host whose exit status 0 says so, asked until it does.
        health_port: a TCP port of its private address that has to answer.
        details: told to later steps as ${SOURCE.KEY}.
        grace: how long the guest may take to shut down.
    """

    region: str
    subnets: list[str]
    endpoint: str = ""
    profile: str = ""
    outpost: str = ""
    drill_subnets: list[str] = []
    security_groups: list[str] = []
    drill_security_groups: list[str] = []
    drill_from: list[str] = []
    image: str = ""
    launch_template: str = ""
    instance_types: list[str] = []
    helper: str = ""
    boot: str = ""
    boot_mode: str = ""
    volume_type: str = "gp2"
    volumes: dict[str, VolumeSettings] = {}
    encrypted: bool = True
    kms_key: str = ""
    address: str = ""
    interfaces: list[InterfaceSettings] = []
    lni_index: int = 0
    elastic_address: str = ""
    key_name: str = ""
    instance_profile: str = ""
    user_data: str = ""
    tags: dict[str, str] = {}
    tenancy: str = ""
    dedicated_host: str = ""
    placement_group: str = ""
    status_checks: bool = True
    health: list[str] = []
    health_port: int = 0
    details: dict[str, str] = {}
    grace: str = "5m"

    def subnets_for(self, *, isolated: bool) -> list[str]:
        """Where the instance may be launched."""
        return self.drill_subnets if isolated else self.subnets

    def groups_for(self, *, isolated: bool) -> list[str]:
        """Security groups that it gets; none in a drill: one is made for it."""
        return self.drill_security_groups if isolated else self.security_groups

    @property
    def grace_seconds(self) -> float:
        """Of `grace`."""
        return parse_duration(self.grace)


def read_ec2_settings(settings: Mapping[str, Any]) -> Ec2Settings:
    """The settings, checked as far as they can be without EC2.

    Raises:
        DrengineError: LAUNCH_SETTINGS, naming the key.
    """
    read = read_settings(Ec2Settings, settings, DRIVER)
    for fault in _faults(read):
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver {DRIVER}: {fault}")
    return read


def _faults(read: Ec2Settings) -> Iterator[str]:
    yield from _names(read)
    if not read.subnets:
        yield "`subnets` is empty: name at least one"
    if not read.security_groups:
        yield "`security_groups` is empty: name those of the recovered instance"
    if not (read.image or read.launch_template):
        yield "`image` or `launch_template` is needed: a small AMI to begin with"
    for kind in (read.volume_type, *(each.type or "gp2" for each in read.volumes.values())):
        if read.outpost and kind != "gp2":
            yield f"volume type {kind!r}: EBS on an Outpost is gp2"
    if read.dedicated_host and read.tenancy not in ("", "host"):
        yield f"dedicated_host goes with tenancy host, not {read.tenancy!r}"
    yield from _numbers(read)
    if len(read.user_data.encode()) > USER_DATA_BYTES_MAX:
        yield f"user_data is longer than {USER_DATA_BYTES_MAX} bytes"
    yield from _tags(read.tags)


def _names(read: Ec2Settings) -> Iterator[str]:
    if not _REGION.fullmatch(read.region):
        yield f"region {read.region!r} is none: write it like eu-central-1"
    for key, pattern in (("outpost", _OUTPOST), ("kms_key", _KEY)):
        arn = getattr(read, key)
        match = pattern.fullmatch(arn)
        if arn and not match:
            yield f"{key} {arn!r} is no such ARN"
        if match and match[1] != read.region:
            yield f"{key} {arn!r} is not in region {read.region}"
    own = [each.subnet for each in read.interfaces] + [each.drill_subnet for each in read.interfaces]
    groups = [group for each in read.interfaces for group in each.security_groups]
    listed = {
        "subnet": [*read.subnets, *read.drill_subnets, *filter(None, own)],
        "security group": [*read.security_groups, *read.drill_security_groups, *groups],
        "image": [read.image],
        "instance": [read.helper],
        "dedicated host": [read.dedicated_host],
    }
    for what, ids in listed.items():
        for name in filter(None, ids):
            if not _IDS[what].fullmatch(name):
                yield f"{name!r} is no id of {'an' if what[0] in 'aeiou' else 'a'} {what}"
    elastic = read.elastic_address
    if elastic and not any(_IDS[what].fullmatch(elastic) for what in ("elastic address", "address pool")):
        yield f"elastic_address {elastic!r} is neither eipalloc-... nor ipv4pool-coip-..."
    for each in read.instance_types:
        if not _TYPE.fullmatch(each):
            yield f"instance type {each!r} is none: write it like m5.large"
    if read.launch_template and not _TEMPLATE.fullmatch(read.launch_template):
        yield f"launch_template {read.launch_template!r} is no id or name with an optional `:VERSION`"


def _numbers(read: Ec2Settings) -> Iterator[str]:
    for key, known in (("boot_mode", _BOOT_MODES), ("tenancy", _TENANCIES)):
        if getattr(read, key) not in known:
            yield f"{key} {getattr(read, key)!r} is none of {', '.join(filter(None, known))}"
    try:
        parse_duration(read.grace)
        for address in filter(None, [read.address, *(each.address for each in read.interfaces)]):
            ipaddress.IPv4Address(address)
        for network in read.drill_from:
            ipaddress.IPv4Network(network)
    except ValueError as error:
        yield str(error)
    if not 0 <= read.lni_index <= 15:
        yield f"lni_index {read.lni_index} is none: 1 to 15"
    if 0 < read.lni_index <= len(read.interfaces):
        yield f"lni_index {read.lni_index} is taken by `interfaces`"
    if not 0 <= read.health_port <= 65535:
        yield f"health_port {read.health_port} is none"
    for volume, each in read.volumes.items():
        if not 0 <= each.size_gib <= _SIZE_GIB_MAX:
            yield f"size_gib {each.size_gib} of {volume} is none"


def _tags(tags: Mapping[str, str]) -> Iterator[str]:
    if len(tags) > TAGS_MAX:
        yield f"there are {len(tags)} tags; {TAGS_MAX} are possible"
    for key, value in tags.items():
        if key.startswith((TAG_PREFIX, "aws:")):
            yield f"the tag {key!r} begins as those of {'drengine' if key.startswith(TAG_PREFIX) else 'AWS'} do"
        if not 1 <= len(key) <= 128 or len(value) > 256:
            yield f"the tag {key[:40]!r} is too long"
