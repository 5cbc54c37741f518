"""A kind of step and a launch driver that live only here are installed as a package would be, and work end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchDriver, LaunchRequest
from drengine.failover.plan import plan
from drengine.failover.reading.reader import examine
from drengine.failover.run import Event, JournalEntry
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import plan_payload, steps_of
from drengine.failover.steps.kinds import BUILT_IN, StepKinds
from tests.failover.engine.disks import disks_served
from tests.failover.plugged.package import PaperDriver
from tests.failover.runbook.books import SMALL
from tests.recovery.replica import make

ENTRY_POINTS = """\
[drengine.step_kinds]
log-book = tests.failover.plugged.package:LogBookStep
broken = tests.failover.plugged.package:Broken
fence = tests.failover.plugged.package:LogBookStep

[drengine.launch_drivers]
paper = tests.failover.plugged.package:PaperDriver
"""
RUNBOOK = """\
version: 1
name: shop
sources:
  shop:
    fence: {command: ["true"]}
    launch: {driver: paper, settings: {address: 10.0.0.7}}
waves:
  - name: all
    sources: [shop]
    then:
      - log-book: {book: BOOK, text: the shop is open}
      - command: [test, "${shop.address}", "=", 10.0.0.7]
"""


@dataclass
class Installed:
    """A prompt where the package is installed, and a store with a source."""

    directory: Path

    def __call__(self, *argv: str, given: bool = True) -> subprocess.CompletedProcess[str]:
        options = ["--store", f"{self.directory}/store", "--state", f"{self.directory}/state"] if given else []
        if argv[0] in ("drill", "failover", "plan", "rollback"):
            options += ["--export", f"unix:{self.directory}/nbd.sock"]
        paths = [str(self.directory / "site"), *(each for each in sys.path if each)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "drengine.cli.main", *argv, *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def json(self, *argv: str) -> Any:
        done = self(*argv, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    package = tmp_path / "site" / "elsewhere-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "shop.yaml").write_text(RUNBOOK.replace("BOOK", str(tmp_path / "log")))
    make(tmp_path / "store")
    with disks_served(tmp_path / "store", tmp_path / "nbd.sock"):
        yield Installed(tmp_path)


@pytest.mark.timeout(600)  # it starts programs one after another: a bound for what hangs
def test_a_step_kind_and_a_launch_driver_from_elsewhere_carry_out_a_failover(installed: Installed) -> None:
    book = str(installed.directory / "shop.yaml")
    ahead = installed.json("plan", book, "--mode", "failover")
    steps = {step["id"]: step for step in ahead["steps"]}
    assert (steps["all.then.1"]["kind"], steps["all.then.1"]["predicted_seconds"]) == ("log-book", 7.0)
    run = installed.json("failover", book)
    assert (run["state"], run["outcome"]) == ("finished", "completed")
    done = {step["id"]: step for step in run["steps"]}
    assert done["launch:shop"]["data"]["details"] == {"address": "10.0.0.7"}
    assert (done["all.then.1"]["title"], done["all.then.1"]["data"]) == ("note that the shop is open", {"line": 1})
    assert (installed.directory / "log").read_text() == f"{run['run']} the shop is open\n"
    assert list((installed.directory / "state/instances").rglob("running"))
    back = installed("rollback", run["run"], "--yes")
    assert "undo.release:shop" in back.stdout + back.stderr, "there is no broker here"
    assert not list((installed.directory / "state/instances").rglob("running"))
    shown = installed.json("run", "show", run["run"])
    assert {step["id"]: step["status"] for step in shown["steps"]}["undo.stop-workload:shop"] == "done"


def test_what_comes_from_elsewhere_is_checked_and_explained_like_our_own(installed: Installed) -> None:
    book = installed.directory / "shop.yaml"
    assert installed("runbook", "validate", str(book), given=False).returncode == 0
    book.write_text(book.read_text().replace("text: the shop is open", "texts: ''").replace("address:", "adress:"))
    wrong = installed("runbook", "validate", str(book), "--json", given=False)
    found = {(each["id"], each["path"]) for each in json.loads(wrong.stdout)["findings"]}
    assert ("unknown-key", "waves[0].then[0].log-book.texts") in found
    book.write_text(RUNBOOK.replace("BOOK", "../log").replace("address:", "adress:"))
    wrong = installed("runbook", "validate", str(book), "--json", given=False)
    found = {(each["id"], each["path"]) for each in json.loads(wrong.stdout)["findings"]}
    assert ("way-up", "waves[0].then[0].log-book.book") in found
    assert ("launch-settings", "sources.shop.launch.settings") in found
    schema = json.loads(installed("runbook", "schema", given=False).stdout)
    step = schema["$defs"]["Step"]
    assert step["properties"]["log-book"] == {
        "description": "Write a line into a log book.",
        "$ref": "#/$defs/Entry",
    }
    assert schema["$defs"]["Entry"]["properties"]["book"]["description"] == "File of the log book."
    assert {"required": ["log-book"]} in step["oneOf"]


def test_what_is_broken_or_takes_our_names_keeps_nothing_from_running(installed: Installed) -> None:
    code = (
        "from drengine.failover.steps.kinds import step_kinds, BUILT_IN\n"
        "kinds = step_kinds()\n"
        "assert set(kinds) == {kind.name for kind in BUILT_IN} | {'log-book'}, list(kinds)\n"
        "assert all(kinds[kind.name] is kind for kind in BUILT_IN)\n"
    )
    paths = os.pathsep.join([str(installed.directory / "site"), *(each for each in sys.path if each)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the licence has run out" in done.stderr
    assert "step kind 'fence' is left out" in done.stderr


async def test_a_plan_of_a_kind_that_is_gone_is_shown_and_its_step_fails() -> None:
    book = examine(SMALL).runbook
    assert book is not None
    steps = plan(Mode.FAILOVER, book, {})
    entry = JournalEntry("", Event.DECISION, 0, 0, plan_payload(steps, "planned"))
    kinds = StepKinds(kind for kind in BUILT_IN if kind.name != "tcp")
    (lost,) = (step for step in steps_of(entry, kinds) if step.id == "first.then.1")
    assert (lost.kind.name, lost.title, lost.needs) == ("tcp", "check ${db.address}:5432", ("launch:db",))
    result = await lost.kind.act(lost, None)  # type: ignore[arg-type]
    assert (result.ok, result.retryable) == (False, False)
    assert "'tcp'" in result.message
    assert plan_payload(steps_of(entry, kinds), "planned") == entry.payload, "and it is kept as it was"


class TestPaperDriver(LaunchDriverContract):
    def driver(self) -> LaunchDriver:
        return PaperDriver()

    def request(self, directory: Path) -> LaunchRequest:
        return LaunchRequest(
            instance="shop-1",
            run="r1",
            source="shop",
            disks=(Disk("data", 1 << 20, "nbd://test/shop/data#2"),),
            isolated=False,
            settings={"address": "10.0.0.7"},
            directory=directory,
        )
