"""The `standby` driver serves LUNs to a host that attaches its disks so, as long as it has them, and only then."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.control.attach import AttachOrder, HostAnswer, HostQuestion
from drengine.control.messages import Answer, Verb
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.luns import KEEPER_MARK
from drengine.failover.drivers.standby import StandbyDriver
from drengine.failover.needs import PortalAddress, Program
from drengine.iscsi.serving import MARK as TGTD
from drengine.model.errors import DrengineError
from drengine.process import find_marked
from tests.iscsi.rig import DISK_BYTES, Initiator, VolatileDisk, serving, skip_unless_iscsi_can_be_served

ISCSI = {"attach": "iscsi", "iscsi": {"portal": "127.0.0.1"}}


class Host:
    """A recovery host that notes what it is told, and what was served to it at that moment.

    Attributes:
        way: how it says that it attaches disks.
        fails: the verb that it does not carry out.
    """

    def __init__(self, way: str = "iscsi", fails: Verb | None = None) -> None:
        self.way = way
        self.fails = fails
        self.told: list[Verb] = []
        self.orders: list[AttachOrder] = []
        self.questions: list[HostQuestion] = []
        self.served: list[bool] = []

    def order(
        self, verb: Verb, arguments: Mapping[str, Any], seconds: float, progress: Callable[[str], None]
    ) -> Answer:
        self.told.append(verb)
        result: dict[str, Any] = {"running": True, "healthy": True, "details": {}}
        if "examine" in arguments:
            self.questions.append(msgspec.convert(arguments["examine"], HostQuestion))
            result = msgspec.to_builtins(HostAnswer(findings=[], now_ns=0, attach=self.way))
        elif verb == Verb.ATTACH:
            self.orders.append(msgspec.convert(arguments, AttachOrder))
        else:
            self.served.append(bool(find_marked(TGTD, arguments["instance"])))
        ok = verb != self.fails
        return Answer(id="x", done=True, ok=ok, message="" if ok else "it does not", result=result)


def request(directory: Path, host: Host, uri: str, settings: Mapping[str, Any]) -> LaunchRequest:
    return LaunchRequest(
        instance=f"test-{secrets.token_hex(4)}",
        run="run-1",
        source="shop",
        disks=tuple(Disk(name, DISK_BYTES, uri) for name in ("data", "log")),
        isolated=False,
        settings=settings,
        directory=directory,
        host="recovery-1",
        order=host.order,
    )


def test_the_host_is_told_which_luns_its_disks_are_and_logs_out_before_they_end(tmp_path: Path) -> None:
    skip_unless_iscsi_can_be_served()
    driver, host = StandbyDriver(), Host()
    with serving(VolatileDisk(), tmp_path / "s") as uri:
        wanted = request(tmp_path / "i", host, uri, ISCSI)
        try:
            driver.launch(wanted, lambda _: None)
            (order,) = host.orders
            assert set(order.luns) == {"data", "log"}
            for number, lun in enumerate(order.luns.values(), 1):
                told = Initiator(lun.portal, lun.target).ask("iscsi-inq", "-e", "1", "-c", "131", lun=number).stdout
                assert lun.identifier in told.replace(" ", "").lower(), "it would not be found by this"
            assert driver.inspect(wanted).healthy
            driver.quiesce(wanted)
            assert host.served == [True, True], "it was asked to let go of disks that were gone"
            assert not find_marked(TGTD, wanted.instance)
            assert not find_marked(KEEPER_MARK, wanted.instance)
        finally:
            driver.stop(wanted)
    assert not wanted.directory.exists()


@pytest.mark.parametrize(("way", "served"), [("iscsi", True), ("fuse", False), ("", False)])
def test_with_auto_disks_are_served_only_to_a_host_that_has_no_better_way(
    tmp_path: Path, way: str, served: bool
) -> None:
    skip_unless_iscsi_can_be_served()
    driver, host = StandbyDriver(), Host(way)
    with serving(VolatileDisk(), tmp_path / "s") as uri:
        wanted = request(tmp_path / "i", host, uri, {"iscsi": {"portal": "127.0.0.1"}})
        try:
            driver.launch(wanted, lambda _: None)
            assert [question.luns for question in host.questions] == [True]
            host.way = "fuse"  # by now the host might have another, but this is how its disks are attached
            driver.launch(wanted, lambda _: None)
            assert [bool(order.luns) for order in host.orders] == [served, served]
            assert bool(find_marked(TGTD, wanted.instance)) is served
        finally:
            driver.stop(wanted)
    assert not find_marked(TGTD, wanted.instance)


def test_luns_stay_until_the_host_has_let_go_of_them(tmp_path: Path) -> None:
    skip_unless_iscsi_can_be_served()
    driver, host = StandbyDriver(), Host(fails=Verb.DETACH)
    with serving(VolatileDisk(), tmp_path / "s") as uri:
        wanted = request(tmp_path / "i", host, uri, ISCSI)
        driver.launch(wanted, lambda _: None)
        with pytest.raises(DrengineError) as raised:
            driver.stop(wanted)
        assert raised.value.kind is LAUNCH_FAILED
        assert find_marked(TGTD, wanted.instance)
        host.fails = None
        driver.stop(wanted)
    assert not find_marked(TGTD, wanted.instance)


def test_disks_that_are_granted_to_the_host_are_taken_from_the_targets_socket(tmp_path: Path) -> None:
    skip_unless_iscsi_can_be_served()
    driver, host = StandbyDriver(), Host()
    with serving(VolatileDisk(), tmp_path / "s"):
        settings = {"attach": "iscsi", "iscsi": {"portal": "127.0.0.1", "socket": str(tmp_path / "s")}}
        wanted = request(tmp_path / "i", host, "nbd://192.0.2.1:10809/shop/data%237", settings)
        try:
            driver.launch(wanted, lambda _: None)
            (order,) = host.orders
            assert set(order.disks.values()) == {"nbd://192.0.2.1:10809/shop/data%237"}
            Initiator(order.luns["data"].portal, order.luns["data"].target).does("read 0 4096")
        finally:
            driver.stop(wanted)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attach": "iscsi"}, "needs `iscsi`"),
        ({"iscsi": {}}, "portal"),
        ({"iscsi": {"portal": "everywhere"}}, "everywhere"),
        ({"iscsi": {"portal": "127.0.0.1", "user": "shop"}}, "belong together"),
        ({"iscsi": {"portal": "127.0.0.1", "boot": "data"}}, "boot"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(DrengineError, match=told) as raised:
        StandbyDriver().check_settings(settings)
    assert raised.value.kind is LAUNCH_SETTINGS


@pytest.mark.parametrize(("attach", "needed"), [("iscsi", True), ("auto", True), ("kernel", False)])
def test_what_serving_takes_here_is_known_before(attach: str, needed: bool) -> None:
    needs = set(StandbyDriver().needs({**ISCSI, "attach": attach}, None))
    assert bool({Program("tgtd"), PortalAddress("127.0.0.1")} <= needs) is needed
