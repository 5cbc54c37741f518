"""The `ec2` driver under the run engine: commands, target, agent, broker and the helper's agent are real processes.

EC2 is the stand-in, and the helper's volumes are loop devices.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from drengine.store.store import Store
from tests.failover.drivers.ec2.helper import HelperDisks
from tests.failover.drivers.ec2.site import HOST, Network, network
from tests.failover.drivers.ec2.standin import DropError, Request, running
from tests.failover.engine.test_real_parts import BLOCK, ENVIRONMENT, SIZE, Site, eventually, site_running, write

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make loop devices"),
    pytest.mark.timeout(600),
]

VOLUME_BYTES = 8 << 20
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
"""By which the SDK of a process finds credentials."""


@dataclass
class Outpost:
    """A site, and what it has in EC2."""

    site: Site
    ec2: Network
    disks: HelperDisks

    @property
    def book(self) -> str:
        return str(self.site.directory / "shop.yaml")

    def left(self) -> list[str]:
        """What of drengine's is there, by kinds."""
        return sorted(id.partition("-")[0] for id in self.ec2.left())

    def instance(self) -> dict[str, Any]:
        """The recovered server, of which there is one."""
        ours = [{"Name": "tag:drengine:managed", "Values": ["true"]}]
        found = self.ec2.cloud.client().describe_instances(Filters=ours)["Reservations"]
        (one,) = [each for group in found for each in group["Instances"] if each["State"]["Name"] == "running"]
        return dict(one)

    def disk(self) -> Path:
        """What the recovered server has as its disk."""
        (volume,) = (each["Ebs"]["VolumeId"] for each in self.instance()["BlockDeviceMappings"])
        return self.disks.device(volume)

    def knows_server(self) -> bool:
        """Whether the store has the source's inventory, by which its addresses are known."""
        with Store.open(self.site.directory / "store", read_only=True) as store:
            return store.inventory("shop") is not None

    def replicated(self, data: bytes) -> None:
        """Have a write in a recovery point, and what the agent tells of its server in the store."""
        eventually(lambda: write(self.site, 0, data))
        eventually(lambda: self.site.agent("status")["state"] == "CONTINUOUS")
        eventually(self.knows_server)
        if "orchestrator" in self.site.processes:
            eventually(self.site.hears_agent)
        assert self.site.agent("cut", "--label", "before")


@pytest.fixture
def outpost(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outpost]:
    with ExitStack() as stack:
        ec2 = network(stack.enter_context(running()))
        site = stack.enter_context(site_running(ENVIRONMENT | KEYS, daemon=getattr(request, "param", True)))
        made = Outpost(site, ec2, HelperDisks(ec2, tmp_path, stack, VOLUME_BYTES))
        ec2.cloud.watch = made.disks.watch
        write_runbook(made)
        start_helper(made)
        yield made


def write_runbook(outpost: Outpost) -> None:
    settings = outpost.ec2.settings(instance_types=["m5.large"])
    launch = {"driver": "ec2", "host": HOST, "timeout": "2m", "settings": settings}
    services = [{"name": "shop", "stop": ["true"], "start": ["touch", f"{outpost.site.directory}/ready/started"]}]
    book = {
        "version": 1,
        "name": "shop",
        "objectives": {"rpo": "5s", "rto": "10m"},
        "addresses": {"rules": [{"from": "0.0.0.0/0", "dhcp": True}]},  # the agent tells of the machine that tests
        "sources": {"shop": {"launch": launch, "services": services}},
        "waves": [{"name": "all", "sources": ["shop"]}],
    }
    Path(outpost.book).write_text(yaml.safe_dump(book))


def start_helper(outpost: Outpost) -> None:
    directory = outpost.site.directory
    config = directory / "standby.toml"
    config.write_text(
        f'name = "{HOST}"\nstate_directory = "{directory}/standby"\n[control]\naddress = "{outpost.site.broker}"\n'
    )
    outpost.site.start_module("helper", "tests.failover.drivers.ec2.helper", str(config), str(outpost.disks.blocks))


def test_a_shop_is_failed_over_to_ec2_and_brought_home(outpost: Outpost) -> None:
    site = outpost.site
    outpost.replicated(b"written")
    failover = site.drengine("failover", outpost.book)
    assert (failover["outcome"], failover["fencing"]) == ("completed", {"shop": "agent"})
    assert outpost.left() == ["eni", "i", "vol"]
    tags = {each["Key"]: each["Value"] for each in outpost.instance()["Tags"]}
    assert (tags["drengine:run"], tags["drengine:source"]) == (failover["run"], "shop")
    with outpost.disk().open("r+b") as disk:
        assert disk.read(7) == b"written"
        disk.seek(BLOCK)
        disk.write(b"an order taken in the cloud")
        os.fsync(disk.fileno())

    home = site.drengine("failback", outpost.book)
    assert home["outcome"] == "completed"
    assert home["bytes_shipped_back"] < SIZE / 4
    assert outpost.left() == []
    with site.tap() as tap:
        assert bytes(tap.read(0, 7)) == b"written"
        assert bytes(tap.read(BLOCK, 27)) == b"an order taken in the cloud"


def step_of(run: dict[str, Any], kind: str) -> dict[str, Any]:
    """A run's step of a kind."""
    return next(dict(each) for each in run["steps"] if each["kind"] == kind)


KILLED_AT = [("RunInstances", True), ("CreateVolume", True), ("CreateTags", False), ("StartInstances", True)]
"""Calls, and whether EC2 has carried them out."""


@pytest.mark.campaign
@pytest.mark.parametrize("outpost", [False], indirect=True, ids=["no-daemon"])
def test_an_orchestrator_that_is_killed_in_the_launch_is_resumed_and_launches_once(outpost: Outpost) -> None:
    """After a drill. Each process lives to another call; in the end there is what one that lived would have made."""
    outpost.replicated(b"written")
    drill = outpost.site.drengine("drill", outpost.book)
    assert drill["outcome"] == "completed"
    checks = {each["id"]: each["message"] for each in step_of(drill, "preflight")["data"]["checks"]}
    assert checks[f"host-attaches:{HOST}/shop"] == "it fills volumes, and attaches nothing"
    (run,) = outpost.ec2.cloud.of("RunInstances")
    assert run.fields["NetworkInterface.1.SubnetId"] == outpost.ec2.drill_subnet
    assert outpost.left() == []
    outpost.ec2.cloud.requests.clear()

    words = ["failover", outpost.book]
    for action, after in KILLED_AT:
        assert killed_at(outpost, action, after=after, words=words), f"{action} was not called"
        words = ["run", "resume", "last"]
    done = outpost.site.drengine(*words)
    assert done["outcome"] == "completed"
    assert outpost.left() == ["eni", "i", "vol"]
    for action in ("RunInstances", "CreateVolume"):
        assert len({each.fields["ClientToken"] for each in outpost.ec2.cloud.of(action)}) == 1, (
            f"{action} was done twice"
        )
    with outpost.disk().open("rb") as disk:
        assert disk.read(7) == b"written"
    with Store.open(outpost.site.directory / "store") as store:
        assert store.source("shop").generation == 2
    undone = outpost.site.drengine("rollback", done["run"], "--yes")
    assert undone["outcome"] == "rolled-back"
    assert outpost.left() == []


def killed_at(outpost: Outpost, action: str, *, after: bool, words: list[str]) -> bool:
    """Whether a command came to a call, at which it was killed by SIGKILL."""
    cloud, killed = outpost.ec2.cloud, False
    process: subprocess.Popen[bytes]

    def watch(request: Request, is_after: bool) -> None:
        nonlocal killed
        outpost.disks.watch(request, is_after)
        if not killed and (request.action, is_after) == (action, after):
            killed = True
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            raise DropError

    with cloud.lock:
        process = subprocess.Popen(
            outpost.site.about_runs(*words),
            env=outpost.site.environment,
            stdout=subprocess.DEVNULL,
            stderr=(outpost.site.directory / "killed.log").open("ab"),
        )
        cloud.watch = watch
    process.wait(120)
    cloud.watch = outpost.disks.watch
    return killed
