"""The `iscsi` driver keeps the contract, and says what initiators have to know."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import until
from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.iscsi import IscsiDriver
from drengine.failover.drivers.luns import KEEPER_MARK
from drengine.failover.needs import PortalAddress, Program, ReadableFile
from drengine.iscsi.serving import FILE_MARK
from drengine.iscsi.serving import MARK as TGTD
from drengine.model.errors import DrengineError
from drengine.nbd.hydrators import DISK_MARK
from drengine.process import find_marked
from tests.iscsi.rig import DISK_BYTES, Initiator, VolatileDisk, serving, skip_unless_iscsi_can_be_served

SECRET = "a-secret-of-some-length"
SETTINGS = {"portal": "127.0.0.1"}


@pytest.fixture(scope="module", autouse=True)
def _uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    skip_unless_iscsi_can_be_served()
    with serving(VolatileDisk(), tmp_path_factory.mktemp("disk") / "s") as uri:
        os.environ["DR_TEST_ISCSI_URI"] = uri
        yield


def request(directory: Path, settings: dict[str, Any], **more: Any) -> LaunchRequest:
    uri = os.environ["DR_TEST_ISCSI_URI"]
    disks = tuple(Disk(name, DISK_BYTES, uri) for name in ("data", "root"))
    values = {"isolated": True, "disks": disks, "timeout_seconds": 20.0, **more}
    return LaunchRequest(
        instance=f"test-{secrets.token_hex(4)}",
        run="run-1",
        source="shop_1",
        settings={**SETTINGS, **settings},
        directory=directory,
        **values,
    )


class TestContract(LaunchDriverContract):
    def driver(self) -> IscsiDriver:
        return IscsiDriver()

    def request(self, directory: Path) -> LaunchRequest:
        return request(directory, {})

    def failing(self, directory: Path) -> LaunchRequest:
        return request(directory, {"health": ["false"]}, timeout_seconds=1.0)


def test_details_say_where_the_disks_are_and_the_machine_is_switched_on_and_off(tmp_path: Path) -> None:
    told = tmp_path / "told"
    switch = f'echo $0 "$DRENGINE_ROOT_PATH" >> {told}'
    settings = {"boot": "root", "start": ["sh", "-c", switch, "on"], "stop": ["sh", "-c", switch, "off"]}
    wanted, driver = request(tmp_path / "i", settings), IscsiDriver()
    try:
        details = driver.launch(wanted, lambda _: None).details
        assert details["luns"] == {"root": 1, "data": 2}
        assert details["target"] == "iqn.2026-11.net.drengine:shop-1:drill"
        host, port = details["portal"].split(":")
        assert details["root_path"] == f"iscsi:{host}::{port}:1:{details['target']}"
        initiator = Initiator(details["portal"], details["target"])
        initiator.does("write -P 7 0 4096", "flush", lun=2)
        assert "Lun:2" in initiator.ask("iscsi-ls", "-s", lun=0).stdout
        driver.launch(wanted, lambda _: None)
    finally:
        driver.stop(wanted)
    assert told.read_text() == f"on {details['root_path']}\noff {details['root_path']}\n"
    assert not find_marked(DISK_MARK, f"{wanted.instance}/data")


def processes(wanted: LaunchRequest) -> dict[str, list[int]]:
    """Those without which its disk `root` is not served."""
    marks = {"tgtd": (TGTD, ""), "file": (FILE_MARK, "/root"), "server": (DISK_MARK, "/root")}
    return {name: find_marked(mark, f"{wanted.instance}{end}") for name, (mark, end) in marks.items()}


def kill(*numbers: int) -> None:
    for each in numbers:
        os.kill(each, 9)


@pytest.mark.parametrize("dies", ["tgtd", "file", "server"])
def test_whatever_dies_between_launches_is_served_again_at_the_same_place(tmp_path: Path, dies: str) -> None:
    wanted, driver = request(tmp_path / "i", {}), IscsiDriver()
    try:
        first = driver.launch(wanted, lambda _: None).details
        client = Initiator(first["portal"], first["target"])
        client.does("write -P 6 0 4096", "flush", lun=2)
        before = processes(wanted)
        kill(*before[dies])
        until(lambda: (now := processes(wanted)[dies]) and now != before[dies], f"its {dies} is started again")
        until(lambda: driver.inspect(wanted).healthy, "it is served again")
        client.does("read -P 6 0 4096", lun=2)
        again = driver.inspect(wanted).details
        assert all(again[key] == first[key] for key in ("portal", "target", "luns"))
    finally:
        driver.stop(wanted)
    assert not any(processes(wanted).values())
    assert not find_marked(KEEPER_MARK, wanted.instance)


def test_the_next_launch_brings_back_all_when_the_keeper_was_killed_too(tmp_path: Path) -> None:
    wanted, driver = request(tmp_path / "i", {}), IscsiDriver()
    try:
        first = driver.launch(wanted, lambda _: None).details
        kill(*find_marked(KEEPER_MARK, wanted.instance))
        for dies in ("tgtd", "file", "server"):
            kill(*processes(wanted)[dies])
            assert not driver.inspect(wanted).healthy
            driver.launch(wanted, lambda _: None)
            kill(*find_marked(KEEPER_MARK, wanted.instance))
        driver.launch(wanted, lambda _: None)
        assert find_marked(KEEPER_MARK, wanted.instance)
        last = driver.inspect(wanted).details
        assert all(last[key] == first[key] for key in ("portal", "target", "luns"))
        Initiator(last["portal"], last["target"]).does("read 0 4096", lun=2)
    finally:
        driver.stop(wanted)


def test_who_keeps_luns_served_has_the_secret_though_its_file_is_gone_and_shows_it_nobody(tmp_path: Path) -> None:
    (tmp_path / "chap").write_text(SECRET)
    wanted = request(tmp_path / "i", {"user": "shop", "secret": f"${{file:{tmp_path}/chap}}"})
    driver = IscsiDriver()
    try:
        told = driver.launch(wanted, lambda _: None).details
        (tmp_path / "chap").unlink()
        before = processes(wanted)["tgtd"]
        kill(*before)
        until(lambda: (now := processes(wanted)["tgtd"]) and now != before, "tgtd is started again")
        until(lambda: driver.inspect(wanted).healthy, "it is served again")
        client = Initiator(told["portal"], told["target"], user="shop", secret=SECRET)
        client.does("read 0 4096")
        assert replace(client, user="").io("read 0 4096").returncode != 0
        for process in find_marked(KEEPER_MARK, wanted.instance):
            shown = b"".join(Path(f"/proc/{process}/{name}").read_bytes() for name in ("cmdline", "environ"))
            assert SECRET.encode() not in shown
        assert not any(SECRET in each.read_text(errors="replace") for each in (tmp_path / "i").glob("*.json"))
    finally:
        driver.stop(wanted)


@pytest.mark.parametrize("hydrate", [False, True])
def test_what_no_flush_covered_is_sent_again_when_the_target_has_died(tmp_path: Path, hydrate: bool) -> None:
    disk, driver = VolatileDisk(), IscsiDriver()
    with serving(disk, tmp_path / "s") as uri:
        only = (Disk("data", DISK_BYTES, uri),)
        wanted = request(tmp_path / "i", {}, disks=only, hydrate=hydrate)
        told = driver.launch(wanted, lambda _: None).details
        client = Initiator(told["portal"], told["target"])
        client.does("write -P 7 0 64k", flags=("-t", "unsafe"))
    assert not any(disk.durable), "this client flushes nothing"
    disk.crash()
    with serving(disk, tmp_path / "s"):
        try:
            client.does("write -P 8 64k 64k", "flush", "read -P 7 0 64k")
            assert disk.durable[: 128 << 10] == b"\7" * (64 << 10) + b"\x08" * (64 << 10)
        finally:
            driver.stop(wanted)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"portal": "0.0.0.0"}, "one interface"),
        ({"portal": "outpost.example"}, "outpost.example"),
        ({"portal": "127.0.0.1:0"}, "no port"),
        ({"target": "shop"}, "no iSCSI name"),
        ({"initiators": ["iqn.2026-11.a:B"]}, "no iSCSI name"),
        ({"user": "shop"}, "belong together"),
        ({"user": "shop", "secret": "written-down-here"}, "name where the secret is"),
        ({"mutual_user": "shop", "mutual_secret": "${file:/x}"}, "mutual_user needs user"),
        ({"grace": "soon"}, "soon"),
    ],
)
def test_settings_that_can_not_work_are_refused_before_the_worst_day(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(DrengineError, match=told) as raised:
        IscsiDriver().check_settings({**SETTINGS, **settings})
    assert raised.value.kind is LAUNCH_SETTINGS


def test_what_a_launch_takes_is_known_before() -> None:
    settings = {**SETTINGS, "user": "shop", "secret": "${file:/etc/drengine/chap}", "start": ["ipmitool", "on"]}
    needs = IscsiDriver().needs(settings, None)
    assert {Program("tgtd"), Program("nbdfuse"), Program("ipmitool"), ReadableFile("/etc/drengine/chap")} <= set(needs)
    assert PortalAddress("127.0.0.1") in needs


def test_a_secret_that_is_not_there_fails_the_launch(tmp_path: Path) -> None:
    wanted = request(tmp_path / "i", {"user": "shop", "secret": f"${{file:{tmp_path}/none}}"})
    with pytest.raises(DrengineError, match="none") as raised:
        IscsiDriver().launch(wanted, lambda _: None)
    assert raised.value.kind is LAUNCH_FAILED
    IscsiDriver().stop(wanted)
