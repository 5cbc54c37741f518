"""What the driver has made in EC2 for an instance: found by tags, never by notes of its own.

Each object bears its tags from the call that makes it, so that none is lost between a call and its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.settings import TAG_PREFIX, Ec2Settings
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.model.errors import DrengineError
from drengine.wire.payload import digest

MANAGED, INSTANCE, RUN, SOURCE = (f"{TAG_PREFIX}{each}" for each in ("managed", "instance", "run", "source"))
ROLE, STATE, HOST = (f"{TAG_PREFIX}{each}" for each in ("role", "state", "host"))
WORKLOAD, BOOT, GROUP, ADDRESS = "workload", "boot", "group", "address"
"""Roles of objects; a disk's volume has the role `disk/VOLUME`."""
LIVING = ("pending", "running", "shutting-down", "stopping", "stopped")
LOOK_SECONDS = 2.0
APPEAR_SECONDS = 30.0
"""How long an object may be unknown after the call that made it: EC2's answers agree only after a while."""

Resource = dict[str, Any]


def disk_role(volume: str) -> str:
    """Of the EBS volume of a disk."""
    return f"disk/{volume}"


def tags_of(resource: Resource) -> dict[str, str]:
    """As a mapping."""
    return {each["Key"]: each["Value"] for each in resource.get("Tags", ())}


def role_of(resource: Resource) -> str:
    """For what the driver made it."""
    return tags_of(resource).get(ROLE, "")


def tags_for(request: LaunchRequest, settings: Ec2Settings, role: str, **more: str) -> list[dict[str, str]]:
    """The tags of an object that is made."""
    name = f"{request.source} ({request.instance})" if role == WORKLOAD else f"{request.instance} {role}"
    ours = {
        **{MANAGED: "true", INSTANCE: request.instance, RUN: request.run, SOURCE: request.source, ROLE: role},
        **{f"{TAG_PREFIX}{key}": value for key, value in more.items()},
    }
    return [{"Key": key, "Value": value} for key, value in {"Name": name, **settings.tags, **ours}.items()]


def specification(kind: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    """Tags as a call takes them that makes an object of a kind."""
    return {"ResourceType": kind, "Tags": tags}


def token_of(*parts: object) -> str:
    """A client token: the same for the same parts, so that a call that is made again makes nothing twice."""
    return digest(" ".join(map(str, parts)).encode()).hex()[:32]


@dataclass(frozen=True, slots=True)
class Made:
    """Everything of one instance that is there."""

    instances: tuple[Resource, ...] = ()
    volumes: tuple[Resource, ...] = ()
    interfaces: tuple[Resource, ...] = ()
    addresses: tuple[Resource, ...] = ()
    groups: tuple[Resource, ...] = ()

    def __bool__(self) -> bool:
        return any((self.instances, self.volumes, self.interfaces, self.addresses, self.groups))

    @property
    def server(self) -> Resource | None:
        """The instance; the oldest, should there be two. One that is being terminated does not count."""
        there = [each for each in self.instances if state_of(each) != "shutting-down"]
        return min(there, key=lambda each: (str(each.get("LaunchTime", "")), each["InstanceId"]), default=None)

    def disks(self) -> dict[str, Resource]:
        """The EBS volumes of the source's disks, by volume."""
        ours = {role_of(each).removeprefix("disk/"): each for each in self.volumes if role_of(each).startswith("disk/")}
        return {name: each for name, each in sorted(ours.items()) if each["State"] not in ("deleting", "deleted")}


def state_of(instance: Resource) -> str:
    """Of an instance: `running`, `stopped`, ..."""
    return str(instance["State"]["Name"])


def find_made(calls: Calls, instance: str) -> Made:
    """Everything that bears an instance's tags."""
    ours: list[dict[str, Any]] = [tagged(MANAGED, "true"), tagged(INSTANCE, instance)]
    living = [*ours, {"Name": "instance-state-name", "Values": list(LIVING)}]
    reservations = calls.every("DescribeInstances", "Reservations", Filters=living)
    return Made(
        tuple(each for reservation in reservations for each in reservation["Instances"]),
        tuple(calls.every("DescribeVolumes", "Volumes", Filters=ours)),
        tuple(calls.every("DescribeNetworkInterfaces", "NetworkInterfaces", Filters=ours)),
        tuple(calls("DescribeAddresses", Filters=ours).get("Addresses", ())),
        tuple(calls.every("DescribeSecurityGroups", "SecurityGroups", Filters=ours)),
    )


def look_at_instance(calls: Calls, id: str) -> Resource | None:
    """An instance as it is now; None: EC2 does not know it (yet)."""
    answer = calls("DescribeInstances", InstanceIds=[id], tolerate=("InvalidInstanceID.NotFound",))
    return next((each for group in answer.get("Reservations", ()) for each in group["Instances"]), None)


def look_at_volume(calls: Calls, id: str) -> Resource | None:
    """A volume as it is now; None: EC2 does not know it (yet)."""
    answer = calls("DescribeVolumes", VolumeIds=[id], tolerate=("InvalidVolume.NotFound",))
    return next(iter(answer.get("Volumes", ())), None)


def tagged(key: str, value: str) -> dict[str, Any]:
    """A filter: what bears a tag."""
    return {"Name": f"tag:{key}", "Values": [value]}


def wait_until(
    calls: Calls, what: str, seconds: float, look: Callable[[], Resource | None], *, at_once: bool = False
) -> Resource:
    """What a look finds as soon as it finds something.

    Args:
        what: is waited for, for people.
        seconds: how long.
        look: returns None until then.
        at_once: look without a pause before.

    Raises:
        DrengineError: LAUNCH_FAILED.
    """
    deadline = calls.pace.monotonic() + seconds
    if not at_once:
        calls.pace.sleep(LOOK_SECONDS / 4)
    while (found := look()) is None:
        if calls.pace.monotonic() >= deadline:
            raise DrengineError(LAUNCH_FAILED, f"{what} within {seconds:g} s: it did not come about")
        calls.pace.sleep(LOOK_SECONDS)
    return found


def first_free(taken: Iterable[str]) -> str:
    """A name for attaching a volume that an instance has not got."""
    names = [f"/dev/sd{letter}" for letter in "fghijklmnop"]
    names += [f"/dev/xvd{first}{second}" for first in "bc" for second in "abcdefghijklmnopqrstuvwxyz"]
    used = set(taken)
    return next(name for name in names if name not in used)


def mapped(instance: Resource) -> Mapping[str, str]:
    """Volume ids by device name, as an instance has them attached."""
    return {
        each["DeviceName"]: each["Ebs"]["VolumeId"] for each in instance.get("BlockDeviceMappings", ()) if "Ebs" in each
    }
