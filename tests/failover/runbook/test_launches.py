"""A first runbook from what a source's agent told: complete, checked, and harmless whatever was told."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from drengine.cli.main import app
from drengine.failover.drivers.available import load_drivers
from drengine.failover.reading.reader import examine
from drengine.failover.runbook.init import initial_runbook
from drengine.failover.runbook.launches import NEED_HOST, KnownSource
from drengine.model.inventory import FileSystem, Inventory, Listener, Partition, SourceDisk
from drengine.store.store import Store
from tests.inventories import GIB, SERVER
from tests.recovery.replica import make

VOLUMES = {"system": 480 * GIB, "data": 2048 * GIB}
PLAIN = Inventory(
    taken_ns=0,
    boot_mode="bios",
    cpus=2,
    memory_bytes=4070 << 20,
    disks=(
        SourceDisk(
            device="sda",
            size_bytes=480 * GIB,
            volume="system",
            table="dos",
            is_root=True,
            partitions=(
                Partition(number=1, device="sda1", offset_bytes=1 << 20, size_bytes=GIB),
                Partition(number=5, device="sda5", offset_bytes=2 * GIB, size_bytes=GIB),
                Partition(number=6, device="sda6", offset_bytes=4 * GIB, size_bytes=GIB),
            ),
        ),
        SourceDisk(device="sdb", size_bytes=2048 * GIB, volume="data"),
        SourceDisk(device="sdc", size_bytes=GIB),
    ),
    file_systems=(
        FileSystem(device="sda1", kind="ext4", mounted_at="/"),
        FileSystem(device="sda5", kind="swap"),
        FileSystem(device="sda6", kind="xfs", mounted_at="/srv/a b"),
        FileSystem(device="sdb", kind="btrfs", mounted_at="/var"),
        FileSystem(device="sdc", kind="ext4", mounted_at="/scratch", disks=("sdc",), unreplicated=("sdc",)),
    ),
    listeners=(
        Listener(protocol="tcp", address="0.0.0.0", port=22, program="sshd", unit="ssh.service"),
        Listener(protocol="tcp", address="::", port=22, program="sshd", unit="ssh.service"),
        Listener(protocol="tcp", address="0.0.0.0", port=80, program="nginx", unit="nginx.service"),
        Listener(protocol="tcp", address="::", port=80, program="nginx", unit="nginx.service"),
        Listener(protocol="tcp", address="127.0.0.1", port=6379, program="redis-server", unit="redis.service"),
        Listener(protocol="udp", address="127.0.0.53", port=53, program="systemd-resolve"),
    ),
)


def written(inventory: Inventory | None, driver: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """The text, and the launch of its one source; it validates without a word."""
    source = KnownSource("shop", VOLUMES, more.pop("contents", {}), inventory)
    host = "recovery-1" if driver in NEED_HOST else ""
    text = initial_runbook("shop", [source], driver=driver, host=host, fence=["off"])
    examined = examine(text, drivers=load_drivers())
    assert not [each for each in examined.findings if driver == "standby" or not each.warning], examined.findings
    return text, yaml.safe_load(text)["sources"]["shop"]["launch"]["settings"] or {}


def test_a_recovery_host_mounts_what_the_source_had_mounted() -> None:
    text, settings = written(PLAIN, "standby", contents={"system": "mbr", "data": "btrfs"})
    assert settings == {
        "mounts": [
            {"volume": "system", "partition": 1, "at": "/srv/shop/rootfs"},
            {"volume": "data", "at": "/srv/shop/var"},
            {"volume": "system", "partition": 6, "at": "/srv/shop/srv/a b"},
        ]
    }
    for said in (
        "# /scratch lies on sdc, which is not replicated",
        "# start: [systemctl, start, nginx.service, redis.service]",
        "# stop: [systemctl, stop, redis.service, nginx.service]",
        '# health: [redis-cli, -p, "6379", ping]',
        "#   - tcp: {host: 127.0.0.1, port: 80}   # nginx listened there",
        "#   - {name: nginx, stop: [systemctl, stop, nginx.service], start: [systemctl, start, nginx.service]}",
    ):
        assert said in text
    assert "ssh" not in text and "port: 53" not in text
    checks = yaml.safe_load(text)["waves"][0]["then"]
    assert checks[0]["command"] == ["ls", "/srv/shop/rootfs", "/srv/shop/var", "/srv/shop/srv/a b"]


def test_what_is_suggested_can_be_taken_as_it_stands() -> None:
    """Without the comments' marks it is a runbook as well."""
    text, _ = written(PLAIN, "standby")
    taken = re.sub(r"# (start|stop|health):", r"\1:", text)
    taken = re.sub(r"^    # (  - tcp:|    inside:)", r"    \1", taken, flags=re.MULTILINE)
    examined = examine(taken, drivers=load_drivers())
    assert not [each for each in examined.findings if not each.warning], examined.findings
    assert examined.runbook is not None
    settings = examined.runbook.sources["shop"].launch.settings
    assert settings["health"] == ["redis-cli", "-p", "6379", "ping"] and settings["start"] and settings["stop"]
    assert [[*each.actions] for each in examined.runbook.waves[0].after_steps][1:3] == [["tcp"], ["tcp"]]


def test_lvm_is_said_to_be_more_than_a_recovery_host_puts_together() -> None:
    text, settings = written(SERVER, "standby")
    assert settings == {"mounts": [{"volume": "data", "at": "/srv/shop/var/lib/postgresql"}]}
    assert "# / lies on dm-0 (LVM, md or encryption)" in text
    assert '# health: [pg_isready, --host, "127.0.0.1", --port, "5432"]' in text


def test_a_virtual_machine_is_as_large_as_the_source_and_boots_as_it_does() -> None:
    _, settings = written(SERVER, "qemu")
    assert settings == {"memory_mib": 16384, "cpus": 4, "firmware": "uefi", "boot": "system", "ready": "login:"}
    _, settings = written(PLAIN, "qemu")
    assert (settings["memory_mib"], settings["cpus"], settings["firmware"]) == (4096, 2, "bios")
    _, settings = written(None, "qemu")
    assert settings == {"memory_mib": 2048, "cpus": 2, "ready": "login:"}


def test_an_instance_is_as_large_as_the_source_and_gets_time_for_the_copy() -> None:
    text, settings = written(PLAIN, "ec2")
    assert settings.keys() >= {"region", "subnets", "drill_subnets", "security_groups", "image", "boot"}
    assert "instance_types" not in settings
    assert "offered there with 2 CPUs and 4070 MiB" in text
    assert settings["boot"] == "system"
    assert "# health_port: 80 " in text
    minutes = int(yaml.safe_load(text)["sources"]["shop"]["launch"]["timeout"].removesuffix("m"))
    assert minutes > 2 * sum(VOLUMES.values()) / 100e6 / 60, "it is over before the copy is"
    assert "instance_types" in written(None, "ec2")[1]


def test_where_nothing_was_told_the_volumes_themselves_are_looked_at() -> None:
    text, settings = written(None, "standby", contents={"data": "xfs", "system": "gpt"})
    assert settings["mounts"] == [{"volume": "data", "at": "/srv/shop/data"}]
    assert "partition: 1, at: /srv/shop/system}   # it has partitions" in text


NASTY = st.one_of(
    st.text(st.characters(exclude_categories=("C",)), max_size=30),
    st.sampled_from(
        ["}{", "/../../etc", "/a/../../b", "# x", "'", '"', "${shop.x}", "a: b", "{0}", "- x", "on.service", "/", "//"]
    ),
)


@given(
    st.lists(st.builds(lambda at: at if at.startswith("/") else f"/{at}", NASTY), max_size=4),
    st.lists(st.tuples(NASTY, NASTY), max_size=4),
    st.sampled_from(["standby", "qemu", "command", "iscsi", "ec2"]),
)
def test_whatever_was_told_the_runbook_has_its_shape(
    places: list[str], programs: list[tuple[str, str]], driver: str
) -> None:
    systems = tuple(
        FileSystem(device=f"sda{number}", kind="ext4", mounted_at=at) for number, at in enumerate(places, start=1)
    )
    partitions = tuple(Partition(number=n, device=f"sda{n}", offset_bytes=0, size_bytes=1) for n in range(1, 5))
    disks = (SourceDisk(device="sda", size_bytes=1, volume="data", partitions=partitions),)
    listeners = tuple(
        Listener(protocol="tcp", address="::", port=1000 + n, program=program, unit=unit)
        for n, (program, unit) in enumerate(programs)
    )
    hostile = Inventory(taken_ns=0, disks=disks, file_systems=systems, listeners=listeners)
    source = KnownSource("shop", {"data": 1}, {}, hostile)
    text = initial_runbook("shop", [source], driver=driver, host="r1" if driver in NEED_HOST else "", fence=["off"])
    found = yaml.safe_load(text)
    assert set(found["sources"]) == {"shop"} and len(found["waves"]) == 1
    settings = found["sources"]["shop"]["launch"]["settings"] or {}
    known = {"mounts", "memory_mib", "cpus", "ready", "run", "health", "boot"}
    of_ec2 = {"region", "outpost", "subnets", "drill_subnets", "security_groups", "image", "instance_types"}
    assert set(settings) <= known | (of_ec2 if driver == "ec2" else set())
    for mount in settings.get("mounts", ()):
        at = PurePosixPath(mount["at"])
        assert at.is_relative_to("/srv/shop") and ".." not in at.parts and mount["volume"] == "data"
    places_taken = [each["at"] for each in settings.get("mounts", ())]
    assert len(set(places_taken)) == len(places_taken)


@pytest.mark.parametrize("told", [True, False])
def test_the_command_takes_what_the_store_keeps(tmp_path: Path, told: bool) -> None:
    make(tmp_path / "store")
    if told:
        disks = (SourceDisk(device="sda", size_bytes=GIB, volume="data"),)
        systems = (FileSystem(device="sda", kind="ext4", mounted_at="/var/lib/shop"),)
        with Store.open(tmp_path / "store") as store:
            inventory = msgspec.structs.replace(SERVER, disks=disks, file_systems=systems)
            store.keep_inventory("shop", inventory, generation=1)
    done = CliRunner().invoke(
        app, ["runbook", "init", "shop", "--store", str(tmp_path / "store"), "--driver", "standby", "--host", "r1"]
    )
    assert done.exit_code == 0
    mounts = yaml.safe_load(done.stdout)["sources"]["shop"]["launch"]["settings"]["mounts"]
    assert mounts == ([{"volume": "data", "at": "/srv/shop/var/lib/shop"}] if told else [])
    assert ("has not told" in done.stderr) is not told
