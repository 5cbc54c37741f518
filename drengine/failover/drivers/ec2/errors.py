"""How EC2 refuses a launch, as kinds of one family: exit code 176."""

from __future__ import annotations

from drengine.model.errors import DrengineError, ErrorKind, error_kind

EC2_SETUP = error_kind(
    "ec2-setup",
    176,
    "What the runbook names is not in EC2, or does not fit together.",
    "The message says which object EC2 refuses and why; docs/drivers.md lists the settings of the driver ec2.",
)
EC2_DENIED = error_kind(
    "ec2-denied",
    EC2_SETUP,
    "EC2 does not know the credentials, or does not permit the call.",
    "Renew the orchestrator's credentials; `drengine launch-policy ec2` prints the permissions that it needs.",
)
EC2_CAPACITY = error_kind(
    "ec2-capacity",
    EC2_SETUP,
    "None of the instance types has room in any of the subnets.",
    "Stop what is not needed on the Outpost, or name more instance types; then resume the run.",
    retryable=True,
)
EC2_QUOTA = error_kind(
    "ec2-quota",
    EC2_SETUP,
    "A quota of the AWS account is used up.",
    "Have the quota raised that the message names (Service Quotas), or end what uses it; then resume the run.",
    retryable=True,
)
EC2_AWAY = error_kind(
    "ec2-away",
    EC2_SETUP,
    "EC2's API does not answer, or goes on refusing because too much is asked of it.",
    "Look whether the region can be reached; without it use a recovery host (driver standby). Then resume the run.",
    retryable=True,
)


TOKEN_SPENT = "IdempotentParameterMismatch"
"""A client token was used before, for something else."""


class Ec2Error(DrengineError):
    """A call that EC2 refused. `code` is EC2's word for why."""

    def __init__(self, kind: ErrorKind, code: str, message: str) -> None:
        super().__init__(kind, message)
        self.code = code


CODES: dict[str, ErrorKind] = {
    code: kind
    for kind, codes in {
        EC2_DENIED: "AuthFailure UnauthorizedOperation ExpiredToken ExpiredTokenException RequestExpired Blocked "
        "InvalidClientTokenId SignatureDoesNotMatch OptInRequired MissingAuthenticationToken PendingVerification "
        "AccessDenied AccessDeniedException UnrecognizedClientException InvalidAccessKeyId",
        EC2_CAPACITY: "InsufficientInstanceCapacity InsufficientHostCapacity InsufficientCapacity "
        "InsufficientCapacityOnHost InsufficientReservedInstanceCapacity InsufficientVolumeCapacity "
        "InsufficientFreeAddressesInSubnet InsufficientAddressCapacity Unsupported",
        EC2_QUOTA: "InstanceLimitExceeded VcpuLimitExceeded VolumeLimitExceeded MaxIOPSLimitExceeded "
        "AddressLimitExceeded SecurityGroupLimitExceeded NetworkInterfaceLimitExceeded ResourceLimitExceeded "
        "AttachmentLimitExceeded RulesPerSecurityGroupLimitExceeded SecurityGroupsPerInterfaceLimitExceeded",
        EC2_AWAY: "RequestLimitExceeded Throttling ThrottlingException RequestThrottled TooManyRequestsException "
        "InternalError InternalFailure ServiceUnavailable Unavailable Server.InternalError",
    }.items()
    for code in codes.split()
}
"""What EC2's codes mean; any other is a mistake in what it was asked (EC2_SETUP)."""
