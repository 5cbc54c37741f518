"""The IAM policy of the driver: the calls that it makes (`calls.OPERATIONS`), each on as little as it can be held to.

What it makes has to bear its tag from the call that makes it; what it changes or removes has to bear that tag. The
helper is told by its own tag, and an address that the site lends by `drengine:managed = site`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drengine.failover.drivers.ec2.calls import OPERATIONS
from drengine.failover.drivers.ec2.made import HOST, MANAGED, STATE

Condition = dict[str, dict[str, Any]]

ANY: Condition = {}
MAKES: Condition = {"StringEquals": {f"aws:RequestTag/{MANAGED}": "true"}}
OURS: Condition = {"StringEquals": {f"aws:ResourceTag/{MANAGED}": "true"}}
OURS_OR_LENT: Condition = {"StringLike": {f"aws:ResourceTag/{MANAGED}": "*"}}
HELPERS: Condition = {"StringLike": {f"aws:ResourceTag/{HOST}": "*"}}
TAGS_WHAT_IT_MAKES: Condition = {
    "StringEquals": {"ec2:CreateAction": ["AllocateAddress", "CreateSecurityGroup", "CreateVolume", "RunInstances"]}
}
NOTES_STATE: Condition = {**OURS, "ForAllValues:StringEquals": {"aws:TagKeys": [STATE]}}


@dataclass(frozen=True, slots=True)
class Right:
    """Calls that are allowed on kinds of resources under a condition. No kinds: the calls have none, or look only."""

    name: str
    operations: tuple[str, ...]
    kinds: tuple[str, ...]
    condition: Condition


RIGHTS = (
    Right("Look", tuple(name for name, each in OPERATIONS.items() if not each.changes), (), ANY),
    Right("Launch", ("RunInstances",), ("instance", "volume", "network-interface"), MAKES),
    Right(
        "LaunchFrom",
        ("RunInstances",),
        (
            *("image", "key-pair", "subnet", "security-group", "launch-template"),
            *("placement-group", "dedicated-host", "snapshot"),
        ),
        ANY,
    ),
    Right("Make", ("CreateVolume",), ("volume",), MAKES),
    Right("MakeGroup", ("CreateSecurityGroup",), ("security-group",), MAKES),
    Right("MakeGroupIn", ("CreateSecurityGroup",), ("vpc",), ANY),
    Right("MakeAddress", ("AllocateAddress",), ("elastic-ip",), MAKES),
    Right("MakeAddressOf", ("AllocateAddress",), ("ipv4pool-ec2", "coip-pool"), ANY),
    Right(
        "TagWhatIsMade",
        ("CreateTags",),
        ("instance", "volume", "network-interface", "security-group", "elastic-ip"),
        TAGS_WHAT_IT_MAKES,
    ),
    Right("NoteState", ("CreateTags",), ("volume",), NOTES_STATE),
    Right(
        "Change",
        ("StartInstances", "StopInstances", "TerminateInstances", "ModifyInstanceAttribute"),
        ("instance",),
        OURS,
    ),
    Right("Attach", ("AttachVolume", "DetachVolume"), ("volume", "instance"), OURS),
    Right("AttachToHelper", ("AttachVolume", "DetachVolume"), ("instance",), HELPERS),
    Right("Address", ("AssociateAddress",), ("elastic-ip",), OURS_OR_LENT),
    Right("AddressOf", ("AssociateAddress", "DisassociateAddress"), ("network-interface", "instance"), OURS),
    Right("TakeAddress", ("DisassociateAddress", "ReleaseAddress"), ("elastic-ip",), OURS),
    Right(
        "Isolate",
        ("AuthorizeSecurityGroupIngress", "RevokeSecurityGroupEgress", "DeleteSecurityGroup"),
        ("security-group",),
        OURS,
    ),
    Right("Remove", ("DeleteVolume",), ("volume",), OURS),
    Right("RemoveInterface", ("DeleteNetworkInterface",), ("network-interface",), OURS),
)
_NOT_OF_ACCOUNT = frozenset({"image", "snapshot"})
"""Kinds whose ARN names no account where they are somebody else's, as public images are."""
_PREFIXES = {"ec2": "ec2", "service-quotas": "servicequotas"}
_KMS = ("CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt*")


def policy(
    *, region: str = "*", account: str = "*", roles: Sequence[str] = (), keys: Sequence[str] = ()
) -> dict[str, Any]:
    """The policy document.

    Args:
        region, account: to which it is narrowed.
        roles: ARNs of the roles in `instance_profile`s that instances may be launched with.
        keys: ARNs of the keys in `kms_key`; EC2 uses them on the driver's behalf.
    """
    statements = [_statement(each, region, account) for each in RIGHTS]
    if roles:
        passes: Condition = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
        statements.append(_allow("GiveRole", ["iam:PassRole"], list(roles), passes))
    if keys:
        through: Condition = {"StringLike": {"kms:ViaService": f"ec2.{region}.amazonaws.com"}}
        statements.append(_allow("Encrypt", [f"kms:{each}" for each in _KMS], list(keys), through))
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(right: Right, region: str, account: str) -> dict[str, Any]:
    actions = sorted(f"{_PREFIXES[OPERATIONS[each].service]}:{each}" for each in right.operations)
    arns = [
        f"arn:aws:ec2:{region}:{'*' if kind in _NOT_OF_ACCOUNT else account}:{kind}/*" for kind in sorted(right.kinds)
    ]
    return _allow(right.name, actions, arns or ["*"], right.condition)


def _allow(name: str, actions: list[str], resources: list[str], condition: Condition) -> dict[str, Any]:
    return {
        "Sid": f"Drengine{name}",
        "Effect": "Allow",
        "Action": actions,
        "Resource": resources,
        **({"Condition": condition} if condition else {}),
    }
