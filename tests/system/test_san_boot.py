"""A lost server boots from its promoted disk over iSCSI, and what it writes is protected."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.story import free_port
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.iscsi import IscsiDriver
from drengine.process import end_marked, start_marked
from tests.configurations import TARGET
from tests.iscsi.rig import skip_unless_iscsi_can_be_served
from tests.nbd.files import file_served
from tests.system import san
from tests.system.disks import run
from tests.system.san import BIOS, UEFI, USER, console, debian_disk, make_disk, missing_for_san, root_bytes
from tests.system.site import Site
from tests.system.test_guest import AGENT, ORCHESTRATOR, markers

MARK = "DR_TEST_SAN_BOOT"
KERNEL = "the-lost-servers-kernel"
"""What the boot loader looks for in vain, and says so."""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-san-"))
    (made / "chap").write_text(f"{san.SECRET}\n")
    yield made
    san.switch_off(made)
    end_marked(MARK, made.name, made, grace_seconds=0.0)
    shutil.rmtree(made)


def settings(folder: Path, healthy: str) -> dict[str, Any]:
    switch = [sys.executable, "-m", "tests.system.san"]
    return {
        "portal": "127.0.0.1",
        "user": USER,
        "secret": f"${{file:{folder}/chap}}",
        "initiators": [san.INITIATOR],
        "start": [*switch, "on", str(folder)],
        "stop": [*switch, "off", str(folder)],
        "health": ["grep", "-aq", healthy, str(console(folder))],
    }


@pytest.mark.timeout(120)
def test_ipxe_logs_in_and_starts_the_boot_loader_that_lies_on_the_lun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_iscsi_can_be_served()
    if missing := missing_for_san():
        pytest.skip(f"not installed: {missing}")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.setenv("DRENGINE_PASS_ENVIRONMENT", "PYTHONPATH")
    make_disk(folder / "disk.img", 16 << 20, f"SERIAL 0\nDEFAULT {KERNEL}\nPROMPT 0\n")
    with file_served(folder / "disk.img", folder / "s") as uri:
        request = LaunchRequest(
            instance=f"san-{secrets.token_hex(4)}",
            run="run-1",
            source="shop",
            disks=(Disk("root", 16 << 20, uri),),
            isolated=False,
            settings=settings(folder, f"Loading {KERNEL}"),
            directory=folder / "instance",
            timeout_seconds=90.0,
        )
        try:
            found = IscsiDriver().launch(request, lambda _: None)
            assert found.details["initiators"] == [san.INITIATOR]
        finally:
            IscsiDriver().stop(request)


def runbook(folder: Path) -> dict[str, Any]:
    ends = f"from drengine.process import end_marked; end_marked({MARK!r}, {folder.name!r}, grace_seconds=0)"
    launch = {"driver": "iscsi", "settings": settings(folder, "login:"), "timeout": "500s"}
    return {
        "version": 1,
        "name": "san",
        "sources": {"guest": {"fence": {"command": [sys.executable, "-c", ends]}, "launch": launch}},
        "waves": [{"name": "all", "sources": ["guest"]}],
    }


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("firmware", [BIOS, UEFI])
def test_a_debian_boots_from_its_promoted_disk_to_a_login_and_its_writes_reach_recovery_points(
    folder: Path, firmware: str
) -> None:
    skip_unless_iscsi_can_be_served()
    if missing := missing_for_san("mmdebstrap", "mformat", firmware=firmware):
        pytest.skip(f"not installed: {missing}")
    run("cp", "--sparse=always", debian_disk(firmware), folder / "disk.img")
    if firmware == UEFI:
        (folder / UEFI).touch()
    port = free_port()
    for name, text in (("target", TARGET), ("agent", AGENT), ("orchestrator", ORCHESTRATOR)):
        (folder / f"{name}.toml").write_text(text.format(port=port, folder=folder))
    (folder / "runbook.yaml").write_text(json.dumps(runbook(folder)))
    site = Site(folder)
    try:
        site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        site.wait("the store is there", (folder / "recovery.sock").exists)
        agent = [sys.executable, "-m", "drengine_agent", "run", "--config", "agent.toml"]
        start_marked(agent, MARK, folder.name, output=folder / "agent.log", directory=folder)
        site.wait("the disk is replicated", lambda: points(site), seconds=180)
        over = site.run("drengine.cli.main", "failover", "runbook.yaml", "--config", "orchestrator.toml", seconds=600)
        assert over["outcome"] == "completed"
        launched = next(step for step in over["steps"] if step["kind"] == "launch")
        assert launched["data"]["details"]["initiators"] == [san.INITIATOR]
        print(f"login after {over['rto_seconds']:.1f} s by emulation")
        site.wait("it counts", lambda: markers(said(folder))[5:], seconds=180)
        san.switch_off(folder)
        last = markers(said(folder))[-1]
        site.wait("each number is in a point", lambda: counted(site, folder, firmware) >= last, seconds=120)
    finally:
        for instance in (folder / "orchestrator/instances").glob("*/"):
            IscsiDriver().stop(ended(instance, folder))
        site.close()


def said(folder: Path) -> str:
    return console(folder).read_text(errors="replace")


def points(site: Site) -> Any:
    try:
        return site.run("drengine.cli.main", "points", "--store", "store")
    except Exception:  # noqa: BLE001 - there is nothing yet
        return []


def counted(site: Site, folder: Path, firmware: str) -> int:
    """The last number in the newest recovery point, as whoever mounts its disk finds it."""
    disk, at = folder / "restored.img", folder / "mnt"
    at.mkdir(exist_ok=True)
    disk.unlink(missing_ok=True)
    newest = points(site)[-1]["id"]
    site.run("drengine.cli.main", "restore", newest, "--store", "store", "--to", f"root={disk}", "--no-verify")
    run("mount", "-o", f"loop,offset={root_bytes(firmware)}", disk, at)
    try:
        return int((at / "markers").read_text().split()[-1]) if (at / "markers").exists() else 0
    finally:
        run("umount", at)


def ended(directory: Path, folder: Path) -> LaunchRequest:
    """What asks the driver to leave nothing behind."""
    return LaunchRequest(
        instance=directory.name,
        run="",
        source="guest",
        disks=(),
        isolated=False,
        settings=settings(folder, ""),
        directory=directory,
    )
