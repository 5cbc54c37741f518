"""A small network in the stand-in, a helper that answers orders, and requests for it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import boto3
from botocore.config import Config

from drengine.control.messages import Answer, Verb
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.ec2.calls import Pace
from drengine.failover.drivers.ec2.driver import Ec2Driver
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.model.hardware import Card
from drengine.model.inventory import Inventory, SourceDisk
from tests.failover.drivers.ec2.standin import OUTPOST, REGION, ZONE, Cloud

GIB = 1 << 30
HOST = "helper-1"


@dataclass
class Time:
    """Time that passes only while the driver waits."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self) -> Pace:
        return Pace(self.sleep, lambda: self.now, Random(1))


@dataclass
class Helper:
    """A recovery host that says that it has carried out its orders."""

    orders: list[tuple[Verb, Mapping[str, Any]]] = field(default_factory=list)
    refuses: str = ""
    at: Callable[[], None] = lambda: None

    def __call__(
        self, verb: Verb, arguments: Mapping[str, Any], seconds: float, progress: Callable[[str], None]
    ) -> Answer:
        self.orders.append((verb, arguments))
        self.at()
        progress("50%")
        done = {name: disk["serial"] for name, disk in arguments.get("disks", {}).items() if isinstance(disk, dict)}
        return Answer(id="x", done=True, ok=not self.refuses, message=self.refuses, result={"done": done})


@dataclass
class Network:
    """What a site has in EC2 before drengine comes.

    Attributes:
        before: ids of everything that is there.
    """

    cloud: Cloud
    subnets: list[str]
    drill_subnet: str
    group: str
    image: str
    helper: str
    before: list[str]

    def settings(self, **more: Any) -> dict[str, Any]:
        """Of a runbook."""
        return {
            "region": REGION,
            "endpoint": self.cloud.url,
            "outpost": OUTPOST,
            "subnets": self.subnets,
            "drill_subnets": [self.drill_subnet],
            "security_groups": [self.group],
            "image": self.image,
            "instance_types": ["m5.large", "m5.xlarge"],
        } | more

    def afresh(self) -> Network:
        """For another test: nothing is refused, recorded or hidden any more."""
        self.cloud.forget()
        return replace(self, before=self.cloud.objects())

    def left(self) -> list[str]:
        """What is there and was not before."""
        return sorted(set(self.cloud.objects()) - set(self.before))


def network(cloud: Cloud) -> Network:
    """Two subnets and one for drills, all on the Outpost, and the helper's instance."""
    ec2 = cloud.client()
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]

    def subnet(block: str) -> str:
        made: str = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=ZONE)["Subnet"]["SubnetId"]
        cloud.outposts[made] = OUTPOST
        return made

    subnets = [subnet("10.0.1.0/24"), subnet("10.0.2.0/24")]
    drill = subnet("10.0.99.0/24")
    group = ec2.create_security_group(GroupName="shop", Description="shop", VpcId=vpc)["GroupId"]
    image = "ami-1e749f67"
    tags = [{"Key": "drengine:host", "Value": HOST}]
    helper = ec2.run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        SubnetId=subnets[0],
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )["Instances"][0]["InstanceId"]
    cloud.requests.clear()
    return Network(cloud, subnets, drill, group, image, helper, cloud.objects())


_clients: dict[tuple[str, str], Any] = {}


def connect(service: str, settings: Ec2Settings) -> Any:
    """A client with keys that the stand-in takes; one for all uses of a stand-in, since each is slow to make."""
    key = service, settings.endpoint
    if key not in _clients:
        session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=settings.region)
        _clients[key] = session.client(
            service, endpoint_url=settings.endpoint, config=Config(retries={"total_max_attempts": 1})
        )
    return _clients[key]


def driver(time: Time | None = None) -> Ec2Driver:
    return Ec2Driver((time or Time()).pace(), connect)


def request(directory: Path, settings: Mapping[str, Any], order: Helper | None = None, **more: Any) -> LaunchRequest:
    values: dict[str, Any] = {
        "instance": f"shop-{secrets.token_hex(5)}",
        "run": "run-1",
        "source": "shop",
        "disks": (Disk("data", 3 * GIB, "nbd://10.0.1.9/shop/data%232"), Disk("root", 2 * GIB + 1, "nbd://x/root")),
        "isolated": False,
        "settings": settings,
        "directory": directory,
        "host": HOST,
        "order": order or Helper(),
        "timeout_seconds": 600.0,
        "inventory": inventory(),
    }
    return LaunchRequest(**(values | more))


def inventory(**more: Any) -> Inventory:
    disks = (SourceDisk(device="sda", size_bytes=2 * GIB + 1, volume="root", is_root=True),)
    values: dict[str, Any] = {"cpus": 2, "memory_bytes": 8 * GIB, "architecture": "x86_64", "boot_mode": "bios"}
    return Inventory(taken_ns=1, disks=disks, **(values | more))


def card(address: str) -> Card:
    return Card(name="eth0", addresses=(f"{address}/24",))
