"""Calls of EC2's API: those that the driver makes and no other, each with back-off and its error as a kind.

The SDK finds credentials by its own chain (environment, its files, an instance's role). Its own retries are off: here
they are counted against one deadline, on the driver's own clock.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from random import Random
from typing import Any

from drengine.failover.drivers.ec2.errors import CODES, EC2_AWAY, EC2_DENIED, EC2_SETUP, Ec2Error
from drengine.failover.drivers.ec2.settings import DRIVER, Ec2Settings
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError

PATIENCE_SECONDS = 90.0
BASE_SECONDS, CAP_SECONDS = 0.5, 15.0
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
MESSAGE_CHARACTERS_MAX = 300
DRY_RUN = "DryRunOperation"
_WORD = re.compile(r"(?<!^)(?=[A-Z])")

Connect = Callable[[str, Ec2Settings], Any]
"""Makes the SDK's client of a service."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A call that the driver may make.

    Attributes:
        changes: something, so a policy narrows it to what is tagged as the driver's.
        repeatable: made again when its answer was lost: it has a token, or changes nothing twice.
        service: whose API.
    """

    changes: bool = False
    repeatable: bool = True
    service: str = "ec2"


_LOOKS, _CHANGES = Operation(), Operation(changes=True)
OPERATIONS: dict[str, Operation] = {
    "AllocateAddress": Operation(changes=True, repeatable=False),
    "AssociateAddress": _CHANGES,
    "AttachVolume": _CHANGES,
    "AuthorizeSecurityGroupIngress": _CHANGES,
    "CreateSecurityGroup": Operation(changes=True, repeatable=False),
    "CreateTags": _CHANGES,
    "CreateVolume": _CHANGES,
    "DeleteNetworkInterface": _CHANGES,
    "DeleteSecurityGroup": _CHANGES,
    "DeleteVolume": _CHANGES,
    "DescribeAddresses": _LOOKS,
    "DescribeImages": _LOOKS,
    "DescribeInstanceAttribute": _LOOKS,
    "DescribeInstanceStatus": _LOOKS,
    "DescribeInstanceTypeOfferings": _LOOKS,
    "DescribeInstanceTypes": _LOOKS,
    "DescribeInstances": _LOOKS,
    "DescribeKeyPairs": _LOOKS,
    "DescribeLaunchTemplateVersions": _LOOKS,
    "DescribeNetworkInterfaces": _LOOKS,
    "DescribeRouteTables": _LOOKS,
    "DescribeSecurityGroups": _LOOKS,
    "DescribeSubnets": _LOOKS,
    "DescribeVolumes": _LOOKS,
    "DetachVolume": _CHANGES,
    "DisassociateAddress": _CHANGES,
    "GetServiceQuota": Operation(service="service-quotas"),
    "ModifyInstanceAttribute": _CHANGES,
    "ReleaseAddress": _CHANGES,
    "RevokeSecurityGroupEgress": _CHANGES,
    "RunInstances": _CHANGES,
    "StartInstances": _CHANGES,
    "StopInstances": _CHANGES,
    "TerminateInstances": _CHANGES,
}
"""Every call that is made. The permissions are made from it (see `permissions`); nothing else can be called."""


@dataclass(frozen=True)
class Pace:
    """Time, as the driver's threads see it; tests have their own."""

    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=lambda: Random(secrets.randbits(64)))


class Calls:
    """The API of one region."""

    def __init__(
        self,
        settings: Ec2Settings,
        pace: Pace,
        connect: Connect | None = None,
        *,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """
        Args:
            settings: which region, and by which way.
            pace: time.
            connect: makes the SDK's clients; its own by default.
            patience: seconds for which a call is made again that is throttled, or whose answer does not come.

        Raises:
            DrengineError: LAUNCH_SETTINGS, the SDK is not installed.
        """
        self._settings = settings
        self.pace = pace
        self._patience = patience
        try:
            self._faults = import_module("botocore.exceptions")
        except ImportError as error:
            raise DrengineError(
                LAUNCH_SETTINGS, f"driver {DRIVER} needs boto3, which `pip install 'drengine[ec2]'` brings"
            ) from error
        self._connect = connect or sdk_client
        self._clients: dict[str, Any] = {}

    def __call__(self, operation: str, *, tolerate: Collection[str] = (), **params: Any) -> dict[str, Any]:
        """Make a call, again while EC2 says that too much is asked of it.

        Args:
            operation: one of OPERATIONS.
            tolerate: codes of refusals that mean: it is done already. The answer is empty then.
            params: as the API has them.

        Raises:
            Ec2Error: EC2_DENIED, EC2_CAPACITY, EC2_QUOTA, EC2_SETUP, EC2_AWAY.
        """
        deadline, tries = self.pace.monotonic() + self._patience, 0
        while True:
            try:
                return self._once(operation, params)
            except Ec2Error as error:
                if error.code in tolerate:
                    return {}
                lost = not error.code
                if error.kind is not EC2_AWAY or (lost and not OPERATIONS[operation].repeatable):
                    raise
                if self.pace.monotonic() >= deadline:
                    raise
            delay = min(CAP_SECONDS, BASE_SECONDS * 2**tries)
            self.pace.sleep(delay * self.pace.random.uniform(0.5, 1.0))
            tries += 1

    def every(self, operation: str, key: str, **params: Any) -> Iterator[dict[str, Any]]:
        """What a call lists under a key, over all its pages."""
        while True:
            answer = self(operation, **params)
            yield from answer.get(key, ())
            if not (token := answer.get("NextToken")):
                return
            params = {**params, "NextToken": token}

    def dry(self, operation: str, **params: Any) -> str:
        """Why a call would be refused; empty: it would not be. Nothing is done.

        Raises:
            Ec2Error: EC2_AWAY.
        """
        try:
            self._once(operation, {**params, "DryRun": True})
        except Ec2Error as error:
            if error.kind is EC2_AWAY:
                raise
            return "" if error.code == DRY_RUN else error.message
        return ""

    def _once(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        faults = self._faults
        try:
            client = self._client(OPERATIONS[operation].service)
            answer: dict[str, Any] = getattr(client, _WORD.sub("_", operation).lower())(**params)
        except faults.ClientError as error:
            told = error.response.get("Error", {})
            code, message = str(told.get("Code", "")), str(told.get("Message", ""))[:MESSAGE_CHARACTERS_MAX]
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            kind = CODES.get(code) or (EC2_AWAY if status >= 500 else EC2_SETUP)
            raise Ec2Error(kind, code or str(status), f"{operation}: {code}: {message}") from error
        except (
            faults.NoCredentialsError,
            faults.PartialCredentialsError,
            faults.CredentialRetrievalError,
            faults.ProfileNotFound,
            faults.TokenRetrievalError,
            faults.UnauthorizedSSOTokenError,
        ) as error:
            raise Ec2Error(EC2_DENIED, "credentials", f"{operation}: {error}") from error
        except faults.ParamValidationError as error:
            raise Ec2Error(EC2_SETUP, "parameters", f"{operation}: {error}") from error
        except (faults.BotoCoreError, import_module("botocore.parsers").ResponseParserError, OSError) as error:
            raise Ec2Error(EC2_AWAY, "", f"{operation}: {error}") from error
        return answer

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._connect(service, self._settings)
        return self._clients[service]


def sdk_client(service: str, settings: Ec2Settings) -> Any:
    """A client that makes each call once; made anew for each use of a driver, so that new credentials count at once."""
    config = import_module("botocore.config").Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 1},
        user_agent_appid="drengine",
    )
    session = import_module("boto3").Session(profile_name=settings.profile or None, region_name=settings.region)
    return session.client(service, endpoint_url=settings.endpoint or None, config=config)
