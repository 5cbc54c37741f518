"""The instance: launched where there is room, given its own disks, started, looked at, and removed."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.choice import Image, run_parameters
from drengine.failover.drivers.ec2.errors import EC2_CAPACITY, EC2_QUOTA, EC2_SETUP, TOKEN_SPENT, Ec2Error
from drengine.failover.drivers.ec2.made import (
    ADDRESS,
    APPEAR_SECONDS,
    BOOT,
    Resource,
    first_free,
    look_at_instance,
    mapped,
    role_of,
    specification,
    state_of,
    tags_for,
    token_of,
    wait_until,
)
from drengine.failover.drivers.ec2.network import Subnet
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.ec2.volumes import TRIES_MAX, Volumes
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.model.errors import DrengineError
from drengine.process import run_command

START_SECONDS = 300.0
END_SECONDS = 600.0
PORT_SECONDS = 3.0
_GOES_ON = (EC2_CAPACITY, EC2_QUOTA)
_ENDED = ("shutting-down", "terminated")
_ENDED_BY_USER = "Client.UserInitiatedShutdown"

Say = Callable[[str], None]


class Server:
    """The instance of one launch."""

    def __init__(self, calls: Calls, request: LaunchRequest, settings: Ec2Settings, say: Say) -> None:
        self._calls = calls
        self._request = request
        self._settings = settings
        self._say = say

    def run(self, subnets: Iterable[Subnet], types: list[str], image: Image | None, groups: list[str]) -> Resource:
        """Launch it from the small image, of the first type that has room in one of the subnets.

        Raises:
            Ec2Error: the last refusal that means: no room, or no quota; any other at once.
        """
        refusal: DrengineError | None = None
        for subnet in subnets:
            for type_ in types:
                try:
                    found = self._run(subnet, type_, image, groups)
                except Ec2Error as error:
                    if error.kind not in _GOES_ON:
                        raise
                    self._say(f"{type_} in {subnet.id}: {error.code}")
                    refusal = error
                    continue
                self._say(f"instance {found['InstanceId']} ({type_}) launched in {subnet.id}")
                return found
        assert refusal is not None
        tried = f"none of {', '.join(types)} could be launched; the last refusal: {refusal.message}"
        raise DrengineError(refusal.kind, tried)

    def settle(self, instance: Resource) -> Resource:
        """As it is once it changes no more: running or stopped.

        Raises:
            DrengineError: EC2_SETUP, EC2 ended it; LAUNCH_FAILED.
        """
        found = self._wait(instance["InstanceId"], ("running", "stopped", *_ENDED), START_SECONDS)
        if state_of(found) in _ENDED:
            raise _ended(found)
        return found

    def stop(self, instance: Resource) -> Resource:
        """Have the guest shut down. One that does not within its grace is switched off, as by a power cut.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED.
        """
        id, ended = instance["InstanceId"], ("stopped", "terminated")
        if state_of(instance) == "stopped":
            return instance
        self._calls("StopInstances", InstanceIds=[id])
        try:
            return self._wait(id, ended, self._settings.grace_seconds)
        except DrengineError as error:
            if error.kind is not LAUNCH_FAILED:
                raise
        self._say(f"{id} does not shut down within {self._settings.grace}: it is switched off")
        self._calls("StopInstances", InstanceIds=[id], Force=True)
        return self._wait(id, ended, END_SECONDS)

    def swap_disks(self, instance: Resource, volumes: Volumes, disks: Mapping[str, str], boot: str) -> None:
        """Give a stopped instance the source's disks in place of the image's.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED.
        """
        id, root = instance["InstanceId"], instance.get("RootDeviceName") or "/dev/xvda"
        there = dict(mapped(instance))
        if there.get(root) not in (None, disks[boot]):
            self._say(f"the image's disk {there[root]} is taken away")
            volumes.detach(there[root])
            volumes.delete(there.pop(root))
        if there.get(root) is None:
            volumes.attach(disks[boot], id, root)
            there[root] = disks[boot]
        for name, volume in sorted(disks.items()):
            if volume not in there.values():
                device = first_free(there)
                volumes.attach(volume, id, device)
                there[device] = volume
                self._say(f"volume {volume} of {name} attached as {device}")

    def give_user_data(self, instance: Resource) -> None:
        """That of the recovered guest, to a stopped instance: the small image has not seen it.

        Raises:
            DrengineError: EC2's refusals.
        """
        id, wanted = instance["InstanceId"], self._settings.user_data.encode()
        if not wanted:
            return
        told = self._calls("DescribeInstanceAttribute", InstanceId=id, Attribute="userData").get("UserData", {})
        if told.get("Value", "") != base64.b64encode(wanted).decode():
            self._calls("ModifyInstanceAttribute", InstanceId=id, UserData={"Value": wanted})

    def give_address(self, instance: Resource, known: Iterable[Resource]) -> None:
        """Associate the elastic or customer-owned address with its first interface; a drill has none.

        Raises:
            DrengineError: EC2's refusals.
        """
        wanted = self._settings.elastic_address
        if not wanted or self._request.isolated:
            return
        found = self._own_address(known) if wanted.startswith("ipv4pool-") else self._named_address(wanted)
        id = _interfaces(instance)[0]["NetworkInterfaceId"]
        if found.get("NetworkInterfaceId") not in (None, "", id) and wanted.startswith("eipalloc-"):
            self._say(f"{wanted} is taken from {found['NetworkInterfaceId']}")
        if found.get("NetworkInterfaceId") != id:
            self._calls(
                "AssociateAddress", AllocationId=found["AllocationId"], NetworkInterfaceId=id, AllowReassociation=True
            )

    def start(self, instance: Resource, types: list[str]) -> Resource:
        """Start it; where its type has no room any more, as another.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED.
        """
        id, now = instance["InstanceId"], instance["InstanceType"]
        refusal: Ec2Error | None = None
        for type_ in [now, *(each for each in types if each != now)]:
            try:
                if type_ != now:
                    self._calls("ModifyInstanceAttribute", InstanceId=id, InstanceType={"Value": type_})
                    now = type_
                found = self._start(id)
            except Ec2Error as error:
                if error.kind not in _GOES_ON:
                    raise
                self._say(f"{type_}: {error.code}")
                refusal = error
                continue
            self._say(f"instance {id} ({type_}) started on the source's disks")
            return found
        assert refusal is not None
        raise refusal

    def unwell(self, id: str, details: Mapping[str, str], seconds: float) -> str:
        """Why it does not count as healthy; empty: it does.

        Raises:
            DrengineError: EC2's refusals.
        """
        settings, found = self._settings, look_at_instance(self._calls, id)
        if found is None or state_of(found) != "running":
            return f"the instance is {state_of(found) if found else 'unknown'}"
        if settings.status_checks and (why := self._failed_check(id)):
            return why
        if settings.health_port:
            try:
                with socket.create_connection((found["PrivateIpAddress"], settings.health_port), PORT_SECONDS):
                    pass
            except OSError as error:
                return f"port {settings.health_port} of {found['PrivateIpAddress']}: {error}"
        if settings.health:
            told = {f"DRENGINE_{key.upper()}": value for key, value in details.items()}
            done = run_command(settings.health, timeout_seconds=max(0.1, seconds), environment=told)
            return "" if done.ok else f"health: {done.output or f'status {done.code}'}"
        return ""

    def terminate(self, instances: Iterable[Resource]) -> None:
        """End instances for good and wait until they are.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED.
        """
        ids = [each["InstanceId"] for each in instances]
        for id in ids:
            self._calls("TerminateInstances", InstanceIds=[id], tolerate=("InvalidInstanceID.NotFound",))
        for id in ids:
            self._wait(id, ("terminated",), END_SECONDS, gone_is="terminated")

    def _start(self, id: str) -> Resource:
        """EC2 may take the call and stop the instance again: no room, a volume's key that is disabled.

        What is said of it right after the call may be from before.
        """
        calls = self._calls
        calls("StartInstances", InstanceIds=[id])
        believed_from = calls.pace.monotonic() + APPEAR_SECONDS

        def look() -> Resource | None:
            found = look_at_instance(calls, id)
            state = state_of(found) if found else ""
            is_final = state in ("running", *_ENDED) or (state == "stopped" and calls.pace.monotonic() >= believed_from)
            return found if is_final else None

        found = wait_until(calls, f"instance {id} running", START_SECONDS, look, at_once=True)
        if state_of(found) != "running":
            raise _ended(found)
        return found

    def _run(self, subnet: Subnet, type_: str, image: Image | None, groups: list[str]) -> Resource:
        """A token is spent whose instance was ended by a stop, for EC2 would name that one for ever; or that was used
        for other parameters, as in a drill that was stopped, whose group was another.
        """
        parameters = run_parameters(self._request, self._settings, subnet, type_, image, groups)
        for number in range(TRIES_MAX):
            token = token_of(self._request.instance, subnet.id, type_, number)
            answer = self._calls("RunInstances", ClientToken=token, tolerate=(TOKEN_SPENT,), **parameters)
            if not answer:
                continue
            found = self._wait(answer["Instances"][0]["InstanceId"], ("running", *_ENDED), START_SECONDS)
            if state_of(found) == "running":
                return found
            if found.get("StateReason", {}).get("Code", _ENDED_BY_USER) != _ENDED_BY_USER:
                raise _ended(found)
        raise DrengineError(LAUNCH_FAILED, "EC2 launched no instance: its tokens are spent")

    def _wait(self, id: str, states: tuple[str, ...], seconds: float, *, gone_is: str = "") -> Resource:
        """Until it is in one of these states. An instance that EC2 does not know is `gone_is`, or not there yet."""
        calls, unknown_until = self._calls, self._calls.pace.monotonic() + APPEAR_SECONDS

        def look() -> Resource | None:
            found = look_at_instance(calls, id)
            if found is None and gone_is:
                return {"InstanceId": id, "State": {"Name": gone_is}}
            if found is None and calls.pace.monotonic() > unknown_until:
                return {"InstanceId": id, "State": {"Name": "terminated"}}
            return found if found and state_of(found) in states else None

        return wait_until(calls, f"instance {id} {states[0]}", seconds, look, at_once=True)

    def _failed_check(self, id: str) -> str:
        answer = self._calls("DescribeInstanceStatus", InstanceIds=[id], IncludeAllInstances=True)
        for each in answer.get("InstanceStatuses", ()):
            for check in ("SystemStatus", "InstanceStatus", "AttachedEbsStatus"):
                if (status := each.get(check, {}).get("Status", "ok")) not in ("ok", "not-applicable"):
                    return f"EC2's {check} is {status}"
            return ""
        return "EC2 has no status of it yet"

    def _own_address(self, known: Iterable[Resource]) -> Resource:
        """One of the pool; that has no token, so it is looked for by its tags first, and made once."""
        if found := next(iter(known), None):
            return found
        return self._calls("AllocateAddress", **address_parameters(self._request, self._settings))

    def _named_address(self, id: str) -> Resource:
        found = self._calls("DescribeAddresses", AllocationIds=[id]).get("Addresses", ())
        return dict(found[0])


def address_parameters(request: LaunchRequest, settings: Ec2Settings) -> dict[str, Any]:
    """AllocateAddress's."""
    return {
        "Domain": "vpc",
        "CustomerOwnedIpv4Pool": settings.elastic_address,
        "TagSpecifications": [specification("elastic-ip", tags_for(request, settings, ADDRESS))],
    }


def _ended(instance: Resource) -> Ec2Error:
    """Why EC2 did not let an instance run."""
    code = instance.get("StateReason", {}).get("Code", "")
    kind = EC2_CAPACITY if "Insufficient" in code else EC2_QUOTA if "LimitExceeded" in code else EC2_SETUP
    message = instance.get("StateReason", {}).get("Message", "")
    return Ec2Error(kind, code, f"EC2 ended the instance: {message or code or state_of(instance)}")


def is_boot(volume: Resource) -> bool:
    """Whether it is the disk of the image."""
    return role_of(volume) == BOOT


def described(instance: Resource, settings: Ec2Settings, disks: Mapping[str, str]) -> dict[str, Any]:
    """What later steps and reports are told of it."""
    interfaces = _interfaces(instance)
    associated = interfaces[0].get("Association", {}) if interfaces and settings.elastic_address else {}
    elastic = associated.get("CustomerOwnedIp") or associated.get("PublicIp", "")
    return {
        "address": elastic or instance.get("PrivateIpAddress", ""),
        "private_address": instance.get("PrivateIpAddress", ""),
        "private_addresses": [each.get("PrivateIpAddress", "") for each in interfaces],
        **({"elastic_address": elastic} if elastic else {}),
        "instance_id": instance["InstanceId"],
        "instance_type": instance.get("InstanceType", ""),
        "subnet": instance.get("SubnetId", ""),
        "outpost": instance.get("OutpostArn", ""),
        "volumes": dict(disks),
        **settings.details,
    }


def _interfaces(instance: Resource) -> list[Resource]:
    """In the order of their device indexes."""
    return sorted(instance.get("NetworkInterfaces", ()), key=lambda each: int(each["Attachment"]["DeviceIndex"]))
