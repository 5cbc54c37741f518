"""A disk of a server with SATA names and a static address is made fit for EC2 by a run, and launched there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.conversion.mini import DISK_BYTES, UUID, VERSION, content, make_mini, needs_helper
from tests.conversion.sources import make_source, point_digest
from tests.failover.drivers.ec2.helper import HelperDisks
from tests.failover.drivers.ec2.site import HOST, network
from tests.failover.drivers.ec2.standin import running
from tests.failover.drivers.ec2.test_runs import KEYS, Outpost, start_helper, step_of
from tests.failover.engine.disks import disks_served
from tests.failover.engine.test_real_parts import ENVIRONMENT, Site, eventually, free_ports
from tests.images.debian import ADDRESS

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make loop devices"),
    pytest.mark.timeout(1800),
    pytest.mark.campaign,
]
MOVED = "10.0.1." + ADDRESS.rpartition(".")[2]


@pytest.fixture
def outpost(tmp_path: Path) -> Iterator[Outpost]:
    """As that of test_runs.py, of a source whose agent is lost: its replica is all there is."""
    needs_helper()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        ec2 = network(stack.enter_context(running()))
        site = Site(directory, ENVIRONMENT | KEYS)
        stack.callback(site.end)
        made = Outpost(site, ec2, HelperDisks(ec2, tmp_path, stack, DISK_BYTES))
        ec2.cloud.watch = made.disks.watch
        (port,) = free_ports(1)
        (directory / "orchestrator.toml").write_text(
            f'store = "{directory}/store"\nstate = "{directory}/state"\nexport = "unix:{directory}/nbd.sock"\n'
            f'[broker]\naddress = "127.0.0.1:{port}"\n'
        )
        write_runbook(made)
        site.start("broker", "broker", "run", "--listen", site.broker)
        start_helper(made)
        yield made


def write_runbook(outpost: Outpost) -> None:
    launch = {
        "driver": "ec2",
        "host": HOST,
        "timeout": "5m",
        "convert": "always",
        "settings": outpost.ec2.settings(subnets=outpost.ec2.subnets[:1], instance_types=["m5.large"]),
    }
    book = {
        "version": 1,
        "name": "shop",
        "objectives": {"rto": "1h"},
        "addresses": {"rules": [{"from": ADDRESS.rpartition(".")[0] + ".0/24", "to": "10.0.1.0/24"}]},
        "sources": {"shop": {"fence": {"command": ["true"]}, "launch": launch}},
        "waves": [{"name": "all", "sources": ["shop"]}],
    }
    Path(outpost.book).write_text(yaml.safe_dump(book))


def test_a_server_is_converted_launched_and_has_its_new_address(outpost: Outpost, tmp_path: Path) -> None:
    site, store = outpost.site, outpost.site.directory / "store"
    point = make_source(store, make_mini(tmp_path / "disk.raw"), "bios")
    before = point_digest(store, point)
    with disks_served(store, site.directory / "nbd.sock"):
        eventually(lambda: "ready" in (site.directory / "helper.log").read_text())
        done = site.drengine("failover", outpost.book)
        assert done["outcome"] == "completed"
        assert {each["what"] for each in step_of(done, "convert")["data"]["changes"]} >= {"fstab", "initramfs"}
        (run,) = outpost.ec2.cloud.of("RunInstances")
        assert run.fields["NetworkInterface.1.PrivateIpAddress"] == MOVED
        assert outpost.instance()["PrivateIpAddress"] == MOVED
        disk = outpost.disk()
        assert f"UUID={UUID} /" in content(disk, "/etc/fstab").decode()
        assert MOVED in content(disk, "/etc/network/interfaces").decode()
        assert b"nvme" in content(disk, f"/boot/initrd.img-{VERSION}")
        assert point_digest(store, point) == before, "the point was written to"
        # Nobody can release a source whose agent is lost: what was launched goes all the same.
        undone = site.drengine("rollback", done["run"], "--yes", code=106)
        assert step_of(undone, "stop-workload")["status"] == "done"
    assert outpost.left() == []
