"""The security group of a drill that names none: nothing gets out, and in only what the runbook lets in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.made import (
    APPEAR_SECONDS,
    GROUP,
    Resource,
    specification,
    tags_for,
    wait_until,
)
from drengine.failover.drivers.ec2.settings import Ec2Settings


def group_parameters(request: LaunchRequest, settings: Ec2Settings, vpc: str) -> dict[str, Any]:
    """CreateSecurityGroup's."""
    return {
        "GroupName": f"drengine-{request.instance}",
        "Description": "A drill of drengine: isolated",
        "VpcId": vpc,
        "TagSpecifications": [specification("security-group", tags_for(request, settings, GROUP))],
    }


def closed_group(
    calls: Calls, request: LaunchRequest, settings: Ec2Settings, vpc: str, known: Iterable[Resource]
) -> str:
    """The id of the drill's own group, made and closed; before anything is launched into it.

    Raises:
        DrengineError: EC2's refusals; LAUNCH_FAILED.
    """
    found = next((each for each in known if each.get("VpcId") == vpc), None)
    if found is None:
        parameters = group_parameters(request, settings, vpc)
        id = calls("CreateSecurityGroup", tolerate=("InvalidGroup.Duplicate",), **parameters).get("GroupId", "")
        by: dict[str, Any] = {"GroupIds": [id]} if id else {"Filters": _named(str(parameters["GroupName"]), vpc)}
        found = wait_until(calls, "a drill's security group", APPEAR_SECONDS, lambda: _look(calls, by), at_once=True)
    if found.get("IpPermissionsEgress"):
        calls(
            "RevokeSecurityGroupEgress",
            GroupId=found["GroupId"],
            IpPermissions=found["IpPermissionsEgress"],
            tolerate=("InvalidPermission.NotFound",),
        )
    if settings.drill_from and not found.get("IpPermissions"):
        allowed = [{"CidrIp": network, "Description": "drill_from"} for network in settings.drill_from]
        calls(
            "AuthorizeSecurityGroupIngress",
            GroupId=found["GroupId"],
            IpPermissions=[{"IpProtocol": "-1", "IpRanges": allowed}],
            tolerate=("InvalidPermission.Duplicate",),
        )
    return str(found["GroupId"])


def _named(name: str, vpc: str) -> list[dict[str, Any]]:
    return [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]


def _look(calls: Calls, by: dict[str, Any]) -> Resource | None:
    answer = calls("DescribeSecurityGroups", tolerate=("InvalidGroup.NotFound",), **by)
    return next(iter(answer.get("SecurityGroups", ())), None)
