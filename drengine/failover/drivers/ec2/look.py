"""Looking before the day whether EC2 would carry a launch out: what is there, what is permitted, what is left.

Nothing is made. Calls that make something are asked as dry runs, by which EC2 judges permissions and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from drengine.failover.drivers.driver import CloudFinding, LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.choice import (
    Subnet,
    boot_volume,
    choose_types,
    look_at_image,
    look_at_subnets,
    run_parameters,
)
from drengine.failover.drivers.ec2.errors import EC2_AWAY, EC2_CAPACITY, EC2_DENIED, EC2_QUOTA, EC2_SETUP, Ec2Error
from drengine.failover.drivers.ec2.isolation import group_parameters
from drengine.failover.drivers.ec2.made import Resource, find_helper
from drengine.failover.drivers.ec2.server import address_parameters
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.ec2.volumes import Place, create_parameters
from drengine.model.errors import DrengineError

LOOK_PATIENCE = 4.0
REACHABLE, PERMITTED, FITS, ROOM = "cloud-reachable", "cloud-permitted", "cloud-fits", "cloud-room"
CHECK_OF_KIND = {EC2_AWAY: REACHABLE, EC2_DENIED: PERMITTED, EC2_QUOTA: ROOM, EC2_CAPACITY: ROOM}
_QUOTAS = {
    **dict.fromkeys("acdhimrtz", "L-1216C47A"),
    **{"f": "L-74FC7D96", "g": "L-DB2E81BA", "p": "L-417A185B", "x": "L-7295265B"},
}
"""The quota of on-demand CPUs by an instance type's first letter."""


class Look:
    """What is looked at for one launch."""

    def __init__(self, calls: Calls, request: LaunchRequest, settings: Ec2Settings) -> None:
        self._calls = calls
        self._request = request
        self._settings = settings

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
        looks: tuple[Callable[[], Iterator[CloudFinding]], ...] = (
            partial(self._place, subnets),
            partial(self._addresses, subnets),
            partial(self._named, subnets[0]),
            partial(self._dry, subnets[0]),
            partial(self._quota, subnets[0].place),
            partial(self._ways_out, subnets),
        )
        for look in looks:
            try:
                found += look()
            except DrengineError as error:
                found.append(_fault(error))
        return found

    def _place(self, subnets: list[Subnet]) -> Iterator[CloudFinding]:
        """The helper can attach only what is where it is."""
        request, settings = self._request, self._settings
        boot_volume(request, settings)
        helper = find_helper(self._calls, settings, request.host)
        if helper is None:
            named = settings.helper or f"with the tag drengine:host={request.host}"
            yield CloudFinding(check=FITS, fault=f"there is no running helper instance {named}")
            return
        place = _place_of(helper, self._calls)
        wrong = "" if place == subnets[0].place else f"the helper {helper['InstanceId']} is on {place}, "
        fault = f"{wrong}the subnets are on {subnets[0].place}" if wrong else ""
        yield CloudFinding(check=FITS, seen=f"helper {helper['InstanceId']} and subnets are on {place}", fault=fault)

    def _addresses(self, subnets: list[Subnet]) -> Iterator[CloudFinding]:
        """A fixed address is in one of the subnets, and nobody else's; each subnet has addresses left."""
        request, settings = self._request, self._settings
        full = [each.id for each in subnets if not each.free]
        yield CloudFinding(
            check=ROOM, seen="the subnets have addresses left", fault=f"{full[0]} has no address left" if full else ""
        )
        faults = []
        for each in subnets:
            try:
                made = run_parameters(request, settings, each, "", None, [])["NetworkInterfaces"][0]
            except Ec2Error as error:
                faults.append(error.message)
                continue
            address = made.get("PrivateIpAddress", "")
            if address and (user := self._user_of(address, each)):
                faults.append(f"address {address} of {each.id} is that of {user}")
        fault = faults[0] if len(faults) == len(subnets) else ""
        yield CloudFinding(check=FITS, seen="its addresses can be given", fault=fault)

    def _user_of(self, address: str, subnet: Subnet) -> str:
        by = [
            {"Name": "addresses.private-ip-address", "Values": [address]},
            {"Name": "subnet-id", "Values": [subnet.id]},
        ]
        for each in self._calls("DescribeNetworkInterfaces", Filters=by).get("NetworkInterfaces", ()):
            return str(each.get("Attachment", {}).get("InstanceId") or each["NetworkInterfaceId"])
        return ""

    def _named(self, subnet: Subnet) -> Iterator[CloudFinding]:
        """Image, types, groups, key: whatever the settings name is there."""
        request, settings = self._request, self._settings
        look_at_image(self._calls, request, settings)
        types = choose_types(self._calls, request, settings, subnet.place)
        if missing := [each for each in settings.instance_types if each not in types]:
            yield CloudFinding(check=FITS, fault=f"{', '.join(missing)} is not offered on {subnet.place}", warns=True)
        groups = settings.drill_security_groups if request.isolated else settings.security_groups
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

    def _dry(self, subnet: Subnet) -> Iterator[CloudFinding]:
        """The calls that make something, as far as they can be asked before their objects are there."""
        request, settings, dry = self._request, self._settings, self._calls.dry
        groups = settings.drill_security_groups if request.isolated else settings.security_groups
        image = look_at_image(self._calls, request, settings)
        types = choose_types(self._calls, request, settings, subnet.place)
        run = run_parameters(request, settings, subnet, types[0], image, groups)
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

    def _quota(self, place: Place) -> Iterator[CloudFinding]:
        """Only the limit: what of it is used is known to those alone who may see all instances."""
        types = choose_types(self._calls, self._request, self._settings, place)
        code = _QUOTAS.get(types[0][0])
        found = self._calls("DescribeInstanceTypes", InstanceTypes=types[:1]).get("InstanceTypes", ())
        needed = max((each["VCpuInfo"]["DefaultVCpus"] for each in found), default=0)
        if code is None:
            return
        try:
            quota = self._calls("GetServiceQuota", ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except Ec2Error as error:
            yield CloudFinding(check=ROOM, seen=f"the quota of CPUs can't be asked: {error.code}")
            return
        seen = f"the account's quota {code} is {quota:g} CPUs, {types[0]} has {needed}"
        yield CloudFinding(check=ROOM, seen=seen, fault=seen if quota < needed else "", warns=True)

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
