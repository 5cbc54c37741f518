"""The way home to new hardware, typed as commands, with a real target, broker and agents: the old host is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from drengine.model.homes import Home
from drengine.nbd.client import NbdClient
from drengine.store.store import Store
from tests.failover.engine.test_real_parts import (
    BLOCK,
    ENVIRONMENT,
    ROOT,
    SIZE,
    Site,
    eventually,
    site,
    write,
)
from tests.typed import AGENT, typed

__all__ = ["site"]
LARGER = 1 << 20


class Spare:
    """A host that stands ready: its agent has a name of its own."""

    def __init__(self, site: Site, size: int, name: str = "shop2") -> None:
        self.site, self.name = site, name
        self.directory = site.directory / name
        self.directory.mkdir()
        self.disk = self.directory / "disk"
        self.disk.write_bytes(os.urandom(size))
        old = (site.directory / "agent.toml").read_text()
        made = old.replace('source = "shop"', f'source = "{name}"\nspare = true').replace('"data"', '"big"')
        made = made.replace(f"{site.directory}/agent", f"{self.directory}/agent")
        made = made.replace(f"{site.directory}/disk", str(self.disk))
        made = made.replace(f"{site.directory}/tap.sock", f"{self.directory}/tap.sock")
        (self.directory / "agent.toml").write_text(made)

    def start(self) -> None:
        log = (self.directory / "agent.log").open("ab")
        argv = [sys.executable, "-m", "drengine_agent.cli.main", "run", "-c", str(self.directory / "agent.toml")]
        with log:
            self.site.processes[self.name] = subprocess.Popen(argv, stdout=log, stderr=log, env=ENVIRONMENT, cwd=ROOT)

    def ask(self, *argv: str) -> dict[str, Any]:
        done = typed(AGENT, *argv, "-c", self.directory / "agent.toml", "--json", env=ENVIRONMENT, cwd=ROOT)
        found: dict[str, Any] = json.loads(done.stdout or done.stderr or "{}")
        return found

    def fence(self) -> dict[str, Any]:
        """What it has noted of its standing."""
        try:
            found: dict[str, Any] = json.loads((self.directory / "agent/fence.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def tap(self) -> NbdClient:
        return NbdClient.of(f"nbd+unix:///data?socket={self.directory / 'tap.sock'}")


@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_a_shop_comes_home_to_a_new_host_and_its_old_one_is_refused_for_good(site: Site) -> None:
    book = str(site.directory / "shop.yaml")
    fence = {"command": ["touch", str(site.directory / "old is off")]}
    fenced_by(site, fence)
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert site.agent("cut", "--label", "before")
    eventually(site.hears_agent)
    failover = site.drengine("failover", book)
    assert failover["outcome"] == "completed"
    site.kill("agent")  # the disaster: host and disks are gone

    spare = Spare(site, SIZE + LARGER)
    spare.start()
    eventually(lambda: spare.ask("status")["fence_reason"] == "spare")
    plan = site.drengine("plan", book, "--mode", "failback", "--onto", "shop2")
    assert "settle:shop" in [each["id"] for each in plan["steps"]]
    assert not [each for each in plan["checks"] if not each["ok"] and each["severity"] == "blocks"], plan["checks"]

    tiny = Spare(site, SIZE - 1, "tiny")
    tiny.start()
    eventually(lambda: tiny.ask("status")["fence_reason"] == "spare")
    for host, told in (
        ("tiny", f"data has {SIZE} bytes, and disk big ({tiny.disk}) only {SIZE - 1}"),
        ("shop", "shop lives on shop"),
        ("nobody", "not connected"),
    ):
        refused = site.drengine("failback", book, "--onto", host, code=225)
        assert told in str(refused), refused
        site.drengine("abort", refused["run"])

    home = site.drengine("failback", book, "--onto", "shop2")
    assert home["outcome"] == "completed"
    assert home["outage_seconds"] < 30
    with spare.tap() as tap:
        assert bytes(tap.read(0, 100)).startswith(b"written and recovered by " + failover["run"].encode())
        assert bytes(tap.read(BLOCK, SIZE - BLOCK)) == bytes(SIZE - BLOCK)
        tap.write(2 * BLOCK, b"at home")
        tap.flush()
    eventually(lambda: spare.ask("status")["state"] == "CONTINUOUS")
    with Store.open(site.directory / "store") as store:
        assert store.home("shop") == Home("shop2", frozenset({"shop"}))
        assert [each.name for each in store.sources()] == ["shop"]

    # The old host comes back, disks and all: it learns that the source lives elsewhere.
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    eventually(lambda: site.agent("status")["fence_reason"] == "moved")
    refused = site.agent("release", "--generation", "9")
    assert "moved" in str(refused) or not refused
    assert site.agent("status")["standing"] == "fenced"
    assert not site.agent("status")["serving"]

    # The new host is lost as well. What fences the old one fences nothing any more.
    site.kill("shop2")
    eventually(lambda: "fence-home:shop" in blocking(site.drengine("ready", book, code=225)))
    stopped = site.drengine("failover", book, code=225)
    assert [step["status"] for step in stopped["steps"]][:3] == ["done", "failed", "pending"], "nothing was done"
    assert blocking(stopped["steps"][1]["data"]) == ["fence-home:shop"]
    fenced_by(site, fence | {"homes": {"shop2": {"command": ["touch", str(site.directory / "new is off")]}}})
    again = site.drengine("run", "resume", stopped["run"], "--runbook", book)
    assert (again["outcome"], again["fencing"]) == ("completed", {"shop": "command"})
    assert (site.directory / "new is off").exists()
    assert not (site.directory / "old is off").exists()


def fenced_by(site: Site, fence: dict[str, Any]) -> None:
    """Have the runbook say what switches the source off."""
    book = site.directory / "shop.yaml"
    told = yaml.safe_load(book.read_text())
    told["sources"]["shop"]["fence"] = fence
    book.write_text(json.dumps(told))  # JSON is YAML


def blocking(found: dict[str, Any]) -> list[str]:
    """The checks that block, by their ids."""
    return [each["id"] for each in found["checks"] if not each["ok"] and each["severity"] == "blocks"]


@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_a_new_host_killed_at_each_turn_becomes_the_sources_home_all_the_same(site: Site) -> None:
    book = str(site.directory / "shop.yaml")
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert site.agent("cut", "--label", "before")
    eventually(site.hears_agent)
    assert site.drengine("failover", book)["outcome"] == "completed"
    site.kill("agent")
    spare = Spare(site, SIZE)
    spare.start()
    eventually(lambda: spare.ask("status")["fence_reason"] == "spare")
    turns: dict[str, Callable[[], object]] = {
        "it has noted whose home it is": (spare.directory / "agent/home.json").exists,
        "its disks are half filled": lambda: spare.fence().get("reversing"),
        "its disks are filled": lambda: spare.fence().get("equals"),
        "it is in charge": lambda: spare.fence().get("standing") == "in-charge",
    }
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(site.drengine, "failback", book, "--onto", "shop2")
        for turn, come in turns.items():
            while not (come() or going.done()):
                time.sleep(0.002)
            assert come(), turn
            site.kill(spare.name)
            spare.start()
        assert going.result()["outcome"] == "completed"
    eventually(lambda: spare.ask("status")["state"] == "CONTINUOUS")
    assert spare.ask("cut", "--label", "at home")
    assert replica(site) == spare.disk.read_bytes()
    assert spare.ask("status")["generation"] == 3


@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_an_agent_whose_state_came_back_from_the_past_with_its_disk_ships_what_that_holds(site: Site) -> None:
    """A root disk was restored from a point: disk, state, journal and identity are of one moment."""
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    site.stop("agent")
    past = site.directory / "past"
    keep(site, past)
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    eventually(lambda: write(site, BLOCK, b"after that moment"))
    assert eventually(lambda: site.agent("cut", "--label", "later"))
    site.kill("agent")

    bring_back(site, past)
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert eventually(lambda: site.agent("cut", "--label", "again"))
    assert replica(site) == (site.directory / "disk").read_bytes()
    assert b"after that moment" not in replica(site)

    # The source went over and came home, so its generation is a later one than the state knows.
    book = str(site.directory / "shop.yaml")
    eventually(site.hears_agent)
    for verb in ("failover", "failback"):
        assert site.drengine(verb, book)["outcome"] == "completed"
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    generation = site.agent("status")["generation"]
    site.kill("agent")
    bring_back(site, past)
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    eventually(lambda: site.agent("status")["fence_reason"] == "stale")
    assert "drengine-agent release --generation N" in site.agent("status")["release"]
    assert site.agent("release", "--generation", str(generation))["standing"] == "in-charge"
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert eventually(lambda: site.agent("cut", "--label", "home"))
    assert replica(site) == (site.directory / "disk").read_bytes()


def keep(site: Site, past: Path) -> None:
    """Disk and state of this moment."""
    shutil.copytree(site.directory / "agent", past / "agent", ignore=shutil.ignore_patterns("*.sock"))
    shutil.copy(site.directory / "disk", past / "disk")


def bring_back(site: Site, past: Path) -> None:
    shutil.rmtree(site.directory / "agent")
    shutil.copytree(past / "agent", site.directory / "agent")
    (site.directory / "disk").write_bytes((past / "disk").read_bytes())


def replica(site: Site) -> bytes:
    """What the newest point of the source shows."""
    with Store.open(site.directory / "store") as store, store.view(store.points("shop")[-1]) as view:
        return bytes(view.read(1, 0, SIZE))
