"""Looking before the day whether EC2 would carry a launch out: what is there, what is permitted, what is left.

Nothing is made. Calls that make something are asked as dry runs, by which EC2 judges permissions and parameters.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial

from drengine.failover.drivers.driver import CloudFinding, LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.choice import (
    boot_mode,
    boot_volume,
    choose_types,
    look_at_image,
    misfits,
    run_parameters,
)
from drengine.failover.drivers.ec2.errors import EC2_AWAY, EC2_CAPACITY, EC2_DENIED, EC2_QUOTA, EC2_SETUP, Ec2Error
from drengine.failover.drivers.ec2.helper import find_helper
from drengine.failover.drivers.ec2.isolation import group_parameters
from drengine.failover.drivers.ec2.made import Resource
from drengine.failover.drivers.ec2.network import (
    Subnet,
    addresses_left_out,
    fitting_subnets,
    interface_parameters,
    look_at_subnets,
)
from drengine.failover.drivers.ec2.server import address_parameters
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.ec2.volumes import Place, create_parameters, size_gib, volume_type
from drengine.model.errors import DrengineError

LOOK_PATIENCE = 4.0
REACHABLE, PERMITTED, FITS, ROOM = "cloud-reachable", "cloud-permitted", "cloud-fits", "cloud-room"
CHECK_OF_KIND = {EC2_AWAY: REACHABLE, EC2_DENIED: PERMITTED, EC2_QUOTA: ROOM, EC2_CAPACITY: ROOM}
_CPUS_STANDARD = "L-1216C47A"
_CPUS = {
    **{"dl": "L-6E869C2A", "f": "L-74FC7D96", "g": "L-DB2E81BA", "hpc": "L-F7808C92", "inf": "L-1945791B"},
    **{"p": "L-417A185B", "trn": "L-2C3B7624", "u": "L-43DA4232", "vt": "L-DB2E81BA", "x": "L-7295265B"},
}
"""The quota of on-demand CPUs by an instance type's family; that of all others is _CPUS_STANDARD."""
_FAMILY = re.compile(r"[a-z]+")
_STORAGE = {"gp2": "L-D18FCD1D", "gp3": "L-7A658B76"}
"""The quota of EBS storage, in TiB, by type of volume."""


class Look:
    """What is looked at for one launch."""

    def __init__(self, calls: Calls, request: LaunchRequest, settings: Ec2Settings) -> None:
        self._calls = calls
        self._request = request
        self._settings = settings
        # Several looks need them, and each is several calls.
        self._types = cache(partial(choose_types, calls, request, settings))
        self._image = cache(partial(look_at_image, calls, request, settings))

    def findings(self) -> list[CloudFinding]:
        """All of it; what can't be asked is a finding, too."""
        try:
            subnets = look_at_subnets(self._calls, self._settings, isolated=self._request.isolated)
        except DrengineError as error:
            return [_fault(error)]
        region = self._settings.region
        found = [
            CloudFinding(
                check=REACHABLE,
                seen=f"EC2 in {region} answers; this launch needs it from the first call to the last: with the region "
                "cut off it can't be carried out",
            )
        ]
        if not self._request.isolated:
            kept = "what it writes stays on its volumes and reaches no recovery points until `failback` brings it back"
            found.append(CloudFinding(check=REACHABLE, seen=kept))
        looks: tuple[Callable[[], Iterator[CloudFinding]], ...] = (
            partial(self._place, subnets),
            partial(self._addresses, subnets),
            partial(self._named, subnets[0]),
            partial(self._dry, subnets),
            partial(self._quotas, subnets[0].place),
            partial(self._ways_out, subnets),
        )
        for look in looks:
            try:
                found += look()
            except DrengineError as error:
                found.append(_fault(error))
        return list(dict.fromkeys(found))  # what several looks meet is told once

    def _place(self, subnets: list[Subnet]) -> Iterator[CloudFinding]:
        """The helper can attach only what is where it is."""
        request, settings = self._request, self._settings
        boot_volume(request, settings)
        helper = find_helper(self._calls, settings, request.host)
        id, place = helper["InstanceId"], _place_of(helper, self._calls)
        fault = f"the helper {id} is on {place}, the subnets are on {subnets[0].place}"
        fault = fault if place != subnets[0].place else ""
        yield CloudFinding(check=FITS, seen=f"helper {id} and subnets are on {place}", fault=fault)

    def _addresses(self, subnets: list[Subnet]) -> Iterator[CloudFinding]:
        """A fixed address is in one of the subnets, and nobody else's; each subnet has addresses left."""
        request, settings = self._request, self._settings
        full = [each.id for each in subnets if not each.free]
        yield CloudFinding(
            check=ROOM, seen="the subnets have addresses left", fault=f"{full[0]} has no address left" if full else ""
        )
        users = [self._user_of(each) for each in fitting_subnets(subnets, request, settings)]
        yield CloudFinding(check=FITS, seen="its addresses can be given", fault=users[0] if all(users) else "")
        if left := addresses_left_out(request, settings):
            yield CloudFinding(check=FITS, fault=f"no interface of it gets {', '.join(left)}", warns=True)

    def _user_of(self, subnet: Subnet) -> str:
        """Who has the instance's address there, for people; empty: nobody."""
        address = interface_parameters(self._request, self._settings, subnet, [])[0].get("PrivateIpAddress", "")
        if not address:
            return ""
        by = [
            {"Name": "addresses.private-ip-address", "Values": [address]},
            {"Name": "subnet-id", "Values": [subnet.id]},
        ]
        for each in self._calls("DescribeNetworkInterfaces", Filters=by).get("NetworkInterfaces", ()):
            user = each.get("Attachment", {}).get("InstanceId") or each["NetworkInterfaceId"]
            return f"address {address} of {subnet.id} is that of {user}"
        return ""

    def _named(self, subnet: Subnet) -> Iterator[CloudFinding]:
        """Image, types, groups, key: whatever the settings name is there."""
        request, settings = self._request, self._settings
        self._image()
        types = self._types(subnet.place)
        if missing := [each for each in settings.instance_types if each not in types]:
            yield CloudFinding(check=FITS, fault=f"{', '.join(missing)} is not offered on {subnet.place}", warns=True)
        if request.inventory is not None:
            for each, why in misfits(self._calls, types, request.inventory, boot_mode(settings, request.inventory)):
                if why:
                    yield CloudFinding(check=FITS, fault=f"{each['InstanceType']} {why}", warns=True)
        groups = settings.groups_for(isolated=request.isolated)
        if groups:
            found = self._calls("DescribeSecurityGroups", GroupIds=groups)["SecurityGroups"]
            if strange := [each["GroupId"] for each in found if each.get("VpcId") != subnet.vpc]:
                yield CloudFinding(check=FITS, fault=f"{strange[0]} is of another VPC than subnet {subnet.id}")
        if settings.key_name:
            self._calls("DescribeKeyPairs", KeyNames=[settings.key_name])
        if settings.elastic_address.startswith("eipalloc-") and not request.isolated:
            self._calls("DescribeAddresses", AllocationIds=[settings.elastic_address])
        if settings.lni_index and subnet.lni_index != settings.lni_index:
            told = f"at device index {subnet.lni_index}" if subnet.lni_index else "at none"
            yield CloudFinding(check=FITS, fault=f"subnet {subnet.id} has local network interfaces {told}")
        yield CloudFinding(check=FITS, seen=f"it would be tried as {', '.join(types)}")

    def _dry(self, subnets: list[Subnet]) -> Iterator[CloudFinding]:
        """The calls that make something, as far as they can be asked before their objects are there."""
        request, settings, dry = self._request, self._settings, self._calls.dry
        subnet = fitting_subnets(subnets, request, settings)[0]
        groups = settings.groups_for(isolated=request.isolated)
        type_ = self._types(subnet.place)[0]
        run = run_parameters(request, settings, subnet, type_, self._image(), groups)
        told = {"RunInstances": dry("RunInstances", **run)}
        for disk in request.disks:
            told[f"CreateVolume for {disk.volume}"] = dry(
                "CreateVolume", **create_parameters(disk, request, settings, subnet.place)
            )
        if request.isolated and not groups:
            told["CreateSecurityGroup"] = dry("CreateSecurityGroup", **group_parameters(request, settings, subnet.vpc))
        if settings.elastic_address.startswith("ipv4pool-") and not request.isolated:
            told["AllocateAddress"] = dry("AllocateAddress", **address_parameters(request, settings))
        refused = [message for message in told.values() if message]
        yield CloudFinding(
            check=PERMITTED,
            seen=f"{', '.join(told)} would be permitted; calls on what is not made yet can't be asked",
            fault=refused[0] if refused else "",
        )

    def _quotas(self, place: Place) -> Iterator[CloudFinding]:
        """Only the limits: what of them is used is known to those alone who may see everything."""
        request, settings = self._request, self._settings
        type_ = self._types(place)[0]
        (found,) = self._calls("DescribeInstanceTypes", InstanceTypes=[type_])["InstanceTypes"]
        family = _FAMILY.match(type_)
        code = _CPUS.get(family[0] if family else "", _CPUS_STANDARD)
        yield self._quota("ec2", code, found["VCpuInfo"]["DefaultVCpus"], f"CPUs, {type_} has")
        needed: dict[str, int] = defaultdict(int)
        for disk in request.disks:
            needed[volume_type(disk, settings)] += size_gib(disk, settings)
        for kind, gib in needed.items():
            if code := _STORAGE.get(kind, ""):
                yield self._quota("ebs", code, gib / 1024, f"TiB of {kind}, the disks have")

    def _quota(self, service: str, code: str, needed: float, what: str) -> CloudFinding:
        try:
            quota = self._calls("GetServiceQuota", ServiceCode=service, QuotaCode=code)["Quota"]["Value"]
        except Ec2Error as error:
            return CloudFinding(check=ROOM, seen=f"quota {code} can't be asked: {error.code}")
        seen = f"the account's quota {code} is {quota:g} {what} {needed:.3g}"
        return CloudFinding(check=ROOM, seen=seen, fault=seen if quota < needed else "", warns=True)

    def _ways_out(self, subnets: list[Subnet]) -> Iterator[CloudFinding]:
        """A drill's subnets lead nowhere."""
        if not self._request.isolated:
            return
        tables = [table for each in subnets for table in self._tables(each)]
        ways = [
            route.get("DestinationCidrBlock") or route.get("DestinationIpv6CidrBlock", "a prefix list")
            for table in tables
            for route in table.get("Routes", ())
            if route.get("GatewayId") != "local" and route.get("State", "active") == "active"
        ]
        fault = f"the drill's subnets have a route to {ways[0]}" if ways else ""
        yield CloudFinding(check=FITS, seen="the drill's subnets have no route out", fault=fault, warns=True)

    def _tables(self, subnet: Subnet) -> list[Resource]:
        """Its own route table; a subnet without one goes by the main table of its VPC."""
        own = [{"Name": "association.subnet-id", "Values": [subnet.id]}]
        main = [{"Name": "association.main", "Values": ["true"]}, {"Name": "vpc-id", "Values": [subnet.vpc]}]
        found = list(self._calls.every("DescribeRouteTables", "RouteTables", Filters=own))
        return found or list(self._calls.every("DescribeRouteTables", "RouteTables", Filters=main))


def _place_of(instance: Resource, calls: Calls) -> Place:
    """An instance tells its zone, and its Outpost by itself or by its subnet."""
    outpost = instance.get("OutpostArn", "")
    if not outpost and (subnet := instance.get("SubnetId")):
        (found,) = calls("DescribeSubnets", SubnetIds=[subnet])["Subnets"]
        outpost = found.get("OutpostArn", "")
    return Place(instance["Placement"]["AvailabilityZone"], outpost)


def _fault(error: DrengineError) -> CloudFinding:
    check = CHECK_OF_KIND.get(error.kind, FITS)
    hint = error.hint if error.kind is not EC2_SETUP else ""
    return CloudFinding(check=check, fault=error.message, hint=hint)
