"""From a server with partitions to a recovery host that mounts them: by what its agent tells, and nothing typed."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from drengine.control.attach import AttachOrder, StandbySettings
from drengine.failover.runbook.init import initial_runbook
from drengine.failover.runbook.launches import KnownSource
from drengine.model.inventory import Inventory
from drengine_agent.inventory.look import Look
from drengine_agent.standby.disks import wait_for_partition
from drengine_agent.standby.workload import Workload
from tests.agent.standby.test_standby import needs_root, serving, traces
from tests.linux.loops import loop_device

MIB = 1 << 20
TABLE = "label: gpt\nsize=24MiB\nsize=4MiB, type=swap\nsize=24MiB\n"


MADE: list[Path] = []


def node(device: Path, partition: int) -> Path:
    """A partition's device, made where nobody else makes it."""
    path = Path(f"{device}p{partition}")
    if not path.exists():
        number = Path(f"/sys/class/block/{path.name}/dev").read_text().strip()
        os.mknod(path, 0o60660, os.makedev(*map(int, number.split(":"))))
        MADE.append(path)
    return path


def told_by(disk: Path, root: Path) -> Inventory:
    """What the agent of a server tells that has the disk mounted: a tree of two file systems with a file in each."""
    with loop_device(disk, 64 * MIB) as device:
        subprocess.run(["sfdisk", "--quiet", device], input=TABLE, text=True, check=True, capture_output=True)
        subprocess.run(["partx", "--update", device], check=True)
        for number, at in ((1, root), (3, root / "var")):
            subprocess.run(["mkfs.ext4", "-q", node(device, number)], check=True)
            at.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", node(device, number), at], check=True)
            (at / "hello").write_text(f"from partition {number}")
        try:
            return Look({"system": device})(0)
        finally:
            subprocess.run(["umount", "-R", root], check=True)
            subprocess.run(["partx", "--delete", device], check=True)


@pytest.fixture
def name() -> Iterator[str]:
    """Of a source that no other test has, so that its place below /srv is its own."""
    made = f"inventory-{secrets.token_hex(4)}"
    yield made
    shutil.rmtree(f"/srv/{made}", ignore_errors=True)
    while MADE:
        MADE.pop().unlink(missing_ok=True)


@needs_root
def test_what_runbook_init_writes_mounts_on_a_recovery_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_node(device: Path, number: int) -> Path:
        """Here the kernel knows no GPT, and nobody makes nodes in /dev."""
        subprocess.run(["partx", "--update", device], check=True)
        node(device, number)
        return wait_for_partition(device, number)

    monkeypatch.setattr("drengine_agent.standby.workload.wait_for_partition", with_node)
    disk, root = tmp_path / "disk.img", tmp_path / "root"
    source = KnownSource(name, {"system": 64 * MIB}, {"system": "gpt"}, told_by(disk, root))
    text = initial_runbook(name, [source], driver="standby", host="recovery-1", fence=["off"])
    settings = yaml.safe_load(text)["sources"][name]["launch"]["settings"]
    assert [each["partition"] for each in settings["mounts"]] == [1, 3]
    with serving(tmp_path, system=disk) as uris:
        order = AttachOrder(
            instance=f"t{secrets.token_hex(4)}",
            source=name,
            disks=uris,
            settings=msgspec.convert(settings, StandbySettings),
            isolated=True,
            timeout_seconds=15.0,
        )
        workload = Workload(order, tmp_path / "instance")
        try:
            workload.start(lambda _: None)
            place = Path(f"/srv/{name}{root}")
            assert (place / "hello").read_text() == "from partition 1"
            assert (place / "var/hello").read_text() == "from partition 3"
            (command,) = [each["command"] for each in yaml.safe_load(text)["waves"][0]["then"]]
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("hello") == 2
        finally:
            workload.stop()
    assert traces(order.instance, Path(f"/srv/{name}")) == ""
