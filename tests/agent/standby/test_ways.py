"""A host takes the best way that it has; a copy keeps what was written until the branch has it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from drengine.control.attach import AttachOrder, HostQuestion, Lun, StandbySettings
from drengine.control.messages import Verb
from drengine.model.errors import DrengineError, ErrorKind
from drengine.transport.errors import OUTSIDE_DATA_NETWORK
from drengine_agent.standby.config import parse_standby_config
from drengine_agent.standby.copied import CopiedDisk
from drengine_agent.standby.errors import STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.examine import examine
from drengine_agent.standby.initiator import initiator_fault
from drengine_agent.standby.ways import choose
from drengine_agent.standby.workload import Workload
from tests.agent.standby.test_standby import command, host, mount_of, needs_root, order, served, serving, traces

__all__ = ["served"]
NO_DRIVER = not any(Path("/sys/block").glob("nbd*"))
needs_no_driver = pytest.mark.skipif(not NO_DRIVER, reason="this kernel has the NBD driver, which is the best way")


def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """A host with no other programs of those that matter here."""
    (tmp_path / "bin").mkdir()
    for program in programs:
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        (tmp_path / "bin" / program).symlink_to(found or "/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@needs_root
@needs_no_driver
def test_the_best_way_that_a_host_has_is_taken_and_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose("auto")
    assert (found.way, found.fault) == ("fuse", "")
    assert "no NBD driver" in found.why
    assert "no NBD driver" in choose("kernel").fault
    only(tmp_path, monkeypatch, "losetup")
    found = choose("auto")
    assert (found.way, found.fault) == ("copy", "")
    assert "nbdfuse is not on the path" in found.why
    (tmp_path / "bin/losetup").unlink()
    assert "losetup" in choose("auto").fault
    told = choose("auto", luns=True).fault
    assert "iscsi: iscsiadm is not on the path" in told, "a runbook that serves LUNs has one way more"
    assert "iSCSI" not in choose("auto").fault
    with pytest.raises(DrengineError, match="losetup") as raised:
        Workload(order("nbd://x/y"), tmp_path / "instance").start(lambda _: None)
    assert raised.value.kind is STANDBY_SETTINGS


@needs_root
@needs_no_driver
def test_the_answer_before_the_day_says_which_way_and_warns_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(attach: str) -> tuple[str, str, bool]:
        wanted = AttachOrder(
            instance="i", source="shop", disks={}, settings=StandbySettings(attach=attach), isolated=False
        )
        values = {
            "name": "recovery-1",
            "state_directory": str(tmp_path),
            "control": {"address": "127.0.0.1:1"},
        }
        answer = examine(HostQuestion(order=wanted), parse_standby_config(values), str)
        found = next(each for each in answer.findings if each.check == "host-attaches")
        return found.seen, found.fault, found.warns

    assert told("hydrate") == ("it fills volumes, and attaches nothing", "", False), "as the driver ec2 asks"
    assert told("auto")[0].startswith("by fuse (kernel: ")
    assert told("auto")[1:] == ("", False)
    assert "no NBD driver" in told("kernel")[1]
    assert not told("kernel")[2]
    only(tmp_path, monkeypatch, "losetup")
    assert "not protected" in told("auto")[1]
    assert told("auto")[2]
    assert told("copy")[1:] == ("", False)


@needs_root
def test_what_is_written_to_a_copy_reaches_the_branch_when_it_is_quiesced_and_not_before(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    at = tmp_path / "mnt"
    with serving(tmp_path, data=image) as uris:
        wanted = order(uris["data"], mounts=[mount_of(at)], attach="copy")
        workload = Workload(wanted, tmp_path / "instance")
        try:
            workload.start(lambda _: None)
            (at / "log").write_text("recovered")
            os.sync()
            assert b"recovered" not in image.read_bytes()
            # The host's agent is another process later, and the branch must not be asked for the disk again.
            again = Workload.load(tmp_path / "instance")
            assert again is not None
            again.start(lambda _: None)
            assert (at / "log").read_text() == "recovered"
            again.quiesce()
            assert b"recovered" in image.read_bytes()
        finally:
            workload.stop()
    assert traces(wanted.instance, tmp_path) == ""


@needs_root
def test_a_copy_whose_branch_is_away_is_kept_until_it_is_back(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    copied = CopiedDisk("i", "data", "", tmp_path / "instance")
    (tmp_path / "instance").mkdir()
    with serving(tmp_path, data=image) as uris:
        copied = CopiedDisk("i", "data", uris["data"], tmp_path / "instance")
        copied.fill(float("inf"))
    with copied.path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"written here")
    with pytest.raises(DrengineError, match="only in") as raised:
        copied.bring_home()
    assert raised.value.kind is STANDBY_FAILED
    with serving(tmp_path, data=image):
        copied.fill(0.0)
        copied.bring_home()
    assert image.read_bytes()[1 << 20 :].startswith(b"written here")
    assert not copied.path.exists()


needs_no_initiator = pytest.mark.skipif(not initiator_fault(), reason="this host can log in")
LUN = Lun(portal="192.0.2.1:3260", target="iqn.2026-11.net.drengine:shop", identifier="6" * 32)


@needs_no_initiator
def test_a_host_that_can_not_log_in_says_what_it_lacks_and_does_nothing(tmp_path: Path) -> None:
    wanted = msgspec.structs.replace(order("nbd://x/y", attach="iscsi"), luns={"data": LUN})
    workload = Workload(wanted, tmp_path / "instance")
    with pytest.raises(DrengineError, match=r"attach iscsi: .*(iscsi_tcp|iscsid|iscsiadm)") as raised:
        workload.start(lambda _: None)
    assert raised.value.kind is STANDBY_SETTINGS
    workload.stop()
    assert not (tmp_path / "instance").exists()


def test_an_order_by_iscsi_says_which_lun_each_disk_is(tmp_path: Path) -> None:
    with pytest.raises(DrengineError, match="not every disk") as raised:
        Workload(order("nbd://x/y", attach="iscsi"), tmp_path / "instance")
    assert raised.value.kind is STANDBY_SETTINGS


@pytest.mark.parametrize(("portal", "kind"), [(LUN.portal, OUTSIDE_DATA_NETWORK), ("nowhere", STANDBY_SETTINGS)])
def test_a_portal_outside_of_the_data_networks_is_not_logged_in_to(
    tmp_path: Path, portal: str, kind: ErrorKind
) -> None:
    lun = msgspec.structs.replace(LUN, portal=portal)
    wanted = msgspec.structs.replace(order("nbd+unix:///x?socket=/y", attach="iscsi"), luns={"data": lun})
    attach = command(Verb.ATTACH, msgspec.to_builtins(wanted))
    with pytest.raises(DrengineError) as raised:
        asyncio.run(host(tmp_path).attach(attach, lambda _: None))
    assert raised.value.kind is kind
    assert not list((tmp_path / "instances").iterdir())
