"""A Debian guest runs on a tapped disk, its host is lost, and the promoted disk boots elsewhere with what it had."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.story import free_port
from drengine.process import end_marked, start_marked
from tests.configurations import TARGET
from tests.system.guest import make_guest_disk, missing_for_guest
from tests.system.site import Site

pytestmark = pytest.mark.timeout(240)

MARK = "DR_TEST_GUEST"
MARKERS_LOST_MAX = 3
AGENT = """source = "guest"
target = "127.0.0.1:{port}"
state_directory = "agent"
[nbd]
listen = "unix:tap.sock"
[[volume]]
name = "root"
path = "disk.img"
"""
ORCHESTRATOR = 'store = "store"\nstate = "orchestrator"\nexport = "unix:{folder}/recovery.sock"\n'


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-guest-"))
    yield made
    end_marked(MARK, made.name, grace_seconds=0.0)
    shutil.rmtree(made)


def runbook(folder: Path) -> dict[str, Any]:
    fence = [
        sys.executable,
        "-c",
        f"from drengine.process import end_marked; end_marked({MARK!r}, {folder.name!r}, grace_seconds=0)",
    ]
    settings = {"accelerator": "tcg", "memory_mib": 512, "ready": "MARKER", "grace": "1s"}
    launch = {"driver": "qemu", "settings": settings, "hydrate": True}
    return {
        "version": 1,
        "name": "guest",
        "sources": {"guest": {"fence": {"command": fence}, "launch": launch}},
        "waves": [{"name": "all", "sources": ["guest"]}],
    }


def markers(console: str) -> list[int]:
    return [int(number) for number in re.findall(r"MARKER (\d+)", console)]


def move_of(site: Site, run: str) -> str:
    told = site.run("drengine.cli.main", "run", "show", run, "--config", "orchestrator.toml")
    launched = next(step for step in told["steps"] if step["kind"] == "launch")
    return str(launched["data"]["details"].get("moves", {}).get("root", {}).get("state"))


def recovered_points(site: Site) -> list[Any]:
    return [each for each in site.run("drengine.cli.main", "points", "--store", "store") if each["id"].startswith("2-")]


def test_the_promoted_disk_boots_and_shows_the_last_replicated_marker(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make the guest's disk")
    if missing := missing_for_guest():
        pytest.skip(f"not installed: {missing}")
    make_guest_disk(folder / "disk.img", folder)
    port = free_port()
    for name, text in (("target", TARGET), ("agent", AGENT), ("orchestrator", ORCHESTRATOR)):
        (folder / f"{name}.toml").write_text(text.format(port=port, folder=folder))
    (folder / "runbook.yaml").write_text(json.dumps(runbook(folder)))
    site = Site(folder)
    try:
        site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        site.wait("the store is there", (folder / "recovery.sock").exists)
        start = {"output": folder / "agent.log", "directory": folder}
        start_marked(
            [sys.executable, "-m", "drengine_agent", "run", "--config", "agent.toml"], MARK, folder.name, **start
        )
        site.wait("the tap serves", (folder / "tap.sock").exists, seconds=90)
        disk = {"driver": "nbd", "server": {"type": "unix", "path": "tap.sock"}, "export": "root", "node-name": "disk"}
        machine = [
            "qemu-system-x86_64",
            "-nodefaults",
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-display",
            "none",
            "-m",
            "512",
        ]
        machine += [
            "-serial",
            "file:console.log",
            "-blockdev",
            json.dumps(disk),
            "-device",
            "virtio-blk-pci,drive=disk",
        ]
        start_marked(machine, MARK, folder.name, **start)
        console = folder / "console.log"
        site.wait(
            "the guest counts",
            lambda: console.exists() and len(markers(console.read_text(errors="replace"))) > 20,
            seconds=90,
        )
        before = len(site.run("drengine.cli.main", "points", "--store", "store"))
        assert before > 1

        end_marked(MARK, folder.name, grace_seconds=0.0)
        last = markers(console.read_text(errors="replace"))[-1]
        over = site.run("drengine.cli.main", "failover", "runbook.yaml", "--config", "orchestrator.toml")

        assert over["outcome"] == "completed"
        launched = next(step for step in over["steps"] if step["kind"] == "launch")
        found = re.search(r"FOUND (\d+)", launched["data"]["details"]["console"])
        assert found is not None
        assert last - MARKERS_LOST_MAX <= int(found[1]) <= last + 1
        print(f"last marker {last}, found {found[1]}, RTO {over['rto_seconds']:.1f} s by emulation")
        site.wait("the recovered guest is protected from its first write", lambda: recovered_points(site))
        site.wait("it has moved onto its local disk", lambda: move_of(site, over["run"]) == "moved", seconds=60)
        protected = len(recovered_points(site))
        site.wait("it is protected still", lambda: len(recovered_points(site)) > protected)
    finally:
        for instance in (folder / "orchestrator/instances").glob("*"):
            for mark in ("DRENGINE_MOVER", "DRENGINE_INSTANCE", "DRENGINE_HYDRATOR"):
                end_marked(mark, instance.name, grace_seconds=0.0)
        site.close()
