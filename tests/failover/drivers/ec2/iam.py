"""As much of IAM as the driver's policy uses: whether a policy allows a call, by what the call is on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.failover.drivers.ec2.standin import ACCOUNT, REGION, Cloud, Request


@dataclass(frozen=True)
class Resource:
    """What a call is on: its kind, its tags before the call, and those that the call gives it."""

    kind: str
    tags: dict[str, str]
    given: dict[str, str]
    creates: str = ""

    @property
    def arn(self) -> str:
        return f"arn:aws:ec2:{REGION}:{ACCOUNT}:{self.kind}/x"


def resources_of(request: Request, cloud: Cloud) -> list[Resource]:
    """By EC2's service authorization reference, for the calls of the driver; tags are those before the call."""
    fields = request.fields

    def named(kind: str, *ids: str) -> list[Resource]:
        return [Resource(kind, tags_of(cloud, id), {}) for id in ids if id]

    def made(kind: str) -> Resource:
        return Resource(kind, {}, request.tags(kind))

    match request.action:
        case "RunInstances":
            groups = [value for key, value in fields.items() if re.search(r"SecurityGroupId\.\d+$", key)]
            subnets = [value for key, value in fields.items() if key.endswith(".SubnetId")]
            found = [made("instance"), made("volume"), made("network-interface")]
            return [
                *found,
                *named("image", fields.get("ImageId", "")),
                *named("subnet", *subnets),
                *named("security-group", *groups),
                *([Resource("key-pair", {}, {})] if "KeyName" in fields else []),
                *([Resource("launch-template", {}, {})] if "LaunchTemplate.LaunchTemplateName" in fields else []),
            ]
        case "CreateVolume":
            return [made("volume")]
        case "CreateSecurityGroup":
            return [made("security-group"), *named("vpc", fields["VpcId"])]
        case "AllocateAddress":
            return [made("elastic-ip"), Resource("coip-pool", {}, {})]
        case "CreateTags":
            return [Resource(kind_of(id), tags_of(cloud, id), request.tags("")) for id in request.listed("ResourceId")]
        case "AttachVolume" | "DetachVolume":
            return [*named("volume", fields["VolumeId"]), *named("instance", fields["InstanceId"])]
        case "StartInstances" | "StopInstances" | "TerminateInstances":
            return named("instance", *request.listed("InstanceId"))
        case "ModifyInstanceAttribute":
            return named("instance", fields["InstanceId"])
        case "DeleteVolume":
            return named("volume", fields["VolumeId"])
        case "DeleteNetworkInterface":
            return named("network-interface", fields["NetworkInterfaceId"])
        case "AuthorizeSecurityGroupIngress" | "RevokeSecurityGroupEgress" | "DeleteSecurityGroup":
            return named("security-group", fields["GroupId"])
        case "AssociateAddress":
            return [
                *named("elastic-ip", fields["AllocationId"]),
                *named("network-interface", fields["NetworkInterfaceId"]),
            ]
        case "DisassociateAddress":
            backend = cloud.backend
            address = next(each for each in backend.addresses if each.association_id == fields["AssociationId"])
            return named("elastic-ip", address.allocation_id)
        case "ReleaseAddress":
            return named("elastic-ip", fields["AllocationId"])
        case _:
            assert request.action.startswith(("Describe", "Get")), f"{request.action} is on what?"
            return []


def tags_of(cloud: Cloud, id: str) -> dict[str, str]:
    """Those that moto knows."""
    return dict(cloud.backend.tags.get(id, {}))


def kind_of(id: str) -> str:
    """By what ids begin with."""
    prefixes = {"vol": "volume", "i": "instance", "eni": "network-interface", "sg": "security-group"}
    return prefixes[id.partition("-")[0]]


def allowed(policy: dict[str, Any], request: Request, resources: list[Resource]) -> set[str]:
    """The statements that allow a call, on each of what it is on.

    Raises:
        AssertionError: none does, for one of them.
    """
    used = set()
    prefix = "servicequotas" if request.action == "GetServiceQuota" else "ec2"
    action = f"{prefix}:{request.action}"
    for resource in resources or [None]:
        found = [
            each["Sid"]
            for each in policy["Statement"]
            if action in each["Action"] and _is_on(each, resource) and _holds(each.get("Condition", {}), resource)
        ]
        assert found, f"{action} on {resource} is not allowed"
        used |= set(found)
    return used


def _is_on(statement: dict[str, Any], resource: Resource | None) -> bool:
    if resource is None:
        return statement["Resource"] == ["*"]
    return any(fnmatchcase(resource.arn, pattern) for pattern in statement["Resource"])


def _holds(condition: dict[str, dict[str, Any]], resource: Resource | None) -> bool:
    for operator, keys in condition.items():
        for key, wanted in keys.items():
            values = [wanted] if isinstance(wanted, str) else wanted
            if operator == "ForAllValues:StringEquals":
                assert resource is not None
                if set(resource.given) - set(values):
                    return False
                continue
            value = _value(key, resource)
            if value is None or not any(fnmatchcase(value, each) for each in values):
                return False
    return True


def _value(key: str, resource: Resource | None) -> str | None:
    assert resource is not None
    kind, _, tag = key.partition("/")
    match kind:
        case "aws:RequestTag":
            return resource.given.get(tag)
        case "aws:ResourceTag":
            return resource.tags.get(tag)
        case "ec2:CreateAction":
            return resource.creates or None
        case _:
            raise AssertionError(f"{key} is a condition that this does not know")
