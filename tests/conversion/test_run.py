"""The step `convert` of a run: its orchestrator is killed in the middle of it, and the run is resumed or given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drengine.conversion.helper import MARK
from drengine.failover.drivers.qemu.accelerator import VERDICTS
from drengine.failover.drivers.qemu.driver import MARK as INSTANCE_MARK
from drengine.process import find_marked
from drengine.store.store import Store
from tests.conversion.mini import make_mini, needs_helper
from tests.conversion.sources import make_source, point_digest
from tests.failover.engine.disks import disks_served

pytestmark = [pytest.mark.timeout(1800), pytest.mark.campaign]

RUNBOOK = """
version: 1
name: shop
objectives: {rto: 1h}
sources:
  shop:
    fence: {command: ["true"]}
    launch:
      driver: qemu
      settings: {accelerator: tcg, memory_mib: 128, grace: 0.2s}
      convert: always
      conversion: {accelerator: auto}
waves: [{name: all, sources: [shop]}]
"""
BEGUN_SECONDS = 300.0


class Orchestrator:
    """A store with the mini guest's disk, and commands as processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "shop.yaml").write_text(RUNBOOK)
        self.point = make_source(directory / "store", make_mini(directory / "disk.raw"), "bios")

    def argv(self, *words: str) -> list[str]:
        given = ["--store", str(self.directory / "store"), "--state", str(self.directory / "state"), "--json"]
        given += ["--export", f"unix:{self.directory / 'nbd.sock'}"]
        return [sys.executable, "-m", "drengine.cli.main", *words, *given]

    def killed_in_conversion(self) -> str:
        """The run's id."""
        process = subprocess.Popen(self.argv("drill", str(self.directory / "shop.yaml")), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + BEGUN_SECONDS
        while not self.helpers():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (run,) = json.loads(self.run("runs"))
        return str(run["run"])

    def run(self, *words: str) -> str:
        argv = self.argv(*words)
        if words[0] == "runs":
            argv = argv[: argv.index("--export")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def helpers(self) -> list[int]:
        place = self.directory / "state" / "instances"
        names = [each.name for each in place.iterdir()] if place.is_dir() else []
        instances = {name.partition(".")[0] for name in names}
        return [process for name in instances for process in find_marked(MARK, name)]

    def is_clean(self) -> bool:
        place = self.directory / "state" / "instances"
        with Store.open(self.directory / "store") as store:
            open_ones = [each for each in store.branches("shop") if each.role == "drill" and not each.closed]
        left = [each for each in place.iterdir() if each.name != VERDICTS]
        return not open_ones and not left and not self.helpers()


def test_a_run_that_is_resumed_converts_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    needs_helper()
    orchestrator = Orchestrator(tmp_path)
    before = point_digest(tmp_path / "store", orchestrator.point)
    with disks_served(tmp_path / "store", tmp_path / "nbd.sock"):
        run = orchestrator.killed_in_conversion()
        told: dict[str, Any] = json.loads(orchestrator.run("run", "resume", run))
    converted = next(step for step in told["steps"] if step["kind"] == "convert")
    assert told["outcome"] == "completed" and converted["data"]["system"] == "Mini Linux"
    assert {each["what"] for each in converted["data"]["changes"]} >= {"fstab", "initramfs", "boot-loader"}
    launched = next(step for step in told["steps"] if step["kind"] == "launch")
    assert not find_marked(INSTANCE_MARK, launched["data"]["instance"])
    assert orchestrator.is_clean()
    assert point_digest(tmp_path / "store", orchestrator.point) == before
    page = (tmp_path / "state" / "reports" / f"{run}.html").read_text()
    assert "/etc/fstab" in page


def test_a_run_that_is_given_up_ends_the_helper_and_drops_the_branch(tmp_path: Path) -> None:
    needs_helper()
    orchestrator = Orchestrator(tmp_path)
    with disks_served(tmp_path / "store", tmp_path / "nbd.sock"):
        run = orchestrator.killed_in_conversion()
        os.environ.pop("DRENGINE_TOKEN", None)
        subprocess.run(orchestrator.argv("abort", run), capture_output=True, check=False)
        subprocess.run(orchestrator.argv("run", "resume", run), capture_output=True, check=False)
    assert orchestrator.is_clean()
