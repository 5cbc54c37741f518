"""Orchestrators that convert a mini guest's disk in a run, and die there or have their helper machine die."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.conversion.helper import MARK, Helper, HelperDisk
from drengine.conversion.values import Converted
from drengine.failover.drivers.qemu.accelerator import VERDICTS
from drengine.failover.registry import Registry
from drengine.failover.run import Event, JournalEntry, Lease, run_lease
from drengine.failover.steps import convert as step
from drengine.model.clock import SystemClock
from drengine.nbd.blockdev import nbd_node
from drengine.nbd.export import Command, Complete, Reply, Request
from drengine.process import find_marked
from drengine.store.store import Store
from drengine.target.exports import ViewExport
from drengine.terminal import main
from tests.conversion.mini import START, content, make_mini
from tests.conversion.sources import make_source, point_digest
from tests.failover.engine.disks import disks_served

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.conversion.killing"])
SECONDS_MAX = 600.0
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
WRITES = {int(Command.WRITE), int(Command.TRIM), int(Command.WRITE_ZEROES)}


@dataclass(frozen=True)
class Death:
    """Who dies in a conversion, and when.

    Attributes:
        who: `orchestrator` or `helper`, while the order of that number is under way; `journal`: the orchestrator, right
            before or after the step's first entry (positions 0 and 1), or right before or after its result (2 and 3).
        at: the order's number, or the position.
    """

    who: str
    at: int


@dataclass
class Ended:
    """How a run ended, apart from the addresses that its name gives its cards.

    Attributes:
        told: by the step.
        disk: each file that it says it changed, read past everything that a conversion is made of.
        orders: how many the last try took.
        run: its id.
    """

    told: dict[str, Any]
    disk: dict[str, str]
    orders: int
    run: str


@dataclass
class Site:
    """A store with one source, whose disk holds the mini guest, served over NBD; each round is a drill of its own."""

    directory: Path
    writers: dict[str, list[ViewExport]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.directory / "shop.yaml").write_text(RUNBOOK)
        self.point = make_source(self.directory / "store", make_mini(self.directory / "disk.raw"), "bios")
        self.digest = point_digest(self.directory / "store", self.point)

    def round(self, death: Death | None) -> Ended:
        """A drill in which somebody dies; it is resumed if that was the orchestrator, and looked at in the end."""
        self.writers.clear()
        dies = death is not None and death.who != "helper"
        assert self.life("drill", str(self.directory / "shop.yaml"), death=death) == (-signal.SIGKILL if dies else 0)
        if dies:
            assert self.life("run", "resume", self.left()) == 0
        run = json.loads((self.directory / "told").read_text())
        assert run["outcome"] == "completed", run
        self.look_around()
        disk = self.directory / "converted.raw"
        subprocess.run(["/sbin/e2fsck", "-fn", f"{disk}?offset={START}"], check=True, capture_output=True)
        told = next(each["data"] for each in run["steps"] if each["kind"] == "convert")
        files = {each["path"]: content(disk, each["path"]).decode() for each in told["changes"]}
        orders = int((self.directory / "orders").read_text())
        return Ended(_without_macs(told), _without_macs(files), orders, run["run"])

    def left(self) -> str:
        """The run of an orchestrator that died. Its lease is ended: else that takes 15 s."""
        lease = Lease(**json.loads((self.directory / "lease").read_text()))
        database = f"sqlite:///{self.directory / 'state' / 'registry.sqlite'}"
        with closing(Registry.open(database, clock=SystemClock())) as registry:
            registry.hand_over_lease(lease)
        return lease.name.removeprefix(run_lease(""))

    def life(self, *words: str, death: Death | None = None) -> int:
        """That of an orchestrator's process; how it ended."""
        process = PROCESSES.Process(target=orchestrate, args=(self.directory, words, death))
        process.start()
        process.join(SECONDS_MAX)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def look_around(self) -> None:
        """Nothing is left of a run, the point is as it was, and there was one writer at every instant."""
        left = [each for each in (self.directory / "state" / "instances").iterdir() if each.name != VERDICTS]
        assert not left
        assert not processes_in(self.directory / "state")
        with Store.open(self.directory / "store") as store:
            assert not [each for each in store.branches("shop") if each.role == "drill" and not each.closed]
        assert point_digest(self.directory / "store", self.point) == self.digest
        assert self.writers
        for branch, turns in self.writers.items():
            assert len(set(map(id, turns))) == len(turns), f"{branch} was written by one that had been followed"


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """A site whose store notes who writes."""
    made = Site(directory)
    with pytest.MonkeyPatch.context() as patch:
        note_writers(patch, made.writers)
        with disks_served(directory / "store", directory / "nbd.sock"):
            yield made


def note_writers(patch: pytest.MonkeyPatch, writers: dict[str, list[ViewExport]]) -> None:
    """Each branch's connections that write, in their turns."""
    real = ViewExport.submit

    def submit(self: ViewExport, requests: list[Request], complete: Complete) -> list[Reply]:
        if any(each.command in WRITES for each in requests):
            turns = writers.setdefault(self.info.name, [])
            if turns[-1:] != [self]:
                turns.append(self)
        return real(self, requests, complete)

    patch.setattr(ViewExport, "submit", submit)


def _without_macs(told: Any) -> Any:
    return json.loads(re.sub(r"f2(:[0-9a-f]{2}){5}", "MAC", json.dumps(told)))


def processes_in(directory: Path) -> list[str]:
    """What works in a directory or below: helper machines, and launched ones."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            found += [each.parent.name] if str(each.readlink()).startswith(f"{directory}/") else []
    return found


def orchestrate(directory: Path, words: tuple[str, ...], death: Death | None) -> None:
    """The life of an orchestrator's process: one command, told into the file `told`."""
    real_convert, real_exchange = step.convert, Helper._exchange
    real_append, real_acquire = Registry.append, Registry.acquire_lease
    journal = 0
    given = ["--store", str(directory / "store"), "--state", str(directory / "state"), "--json"]
    given += ["--export", f"unix:{directory / 'nbd.sock'}"]

    def convert(place: Path, name: str, disks: list[HelperDisk], *given: Any, **more: Any) -> Converted:
        made = real_convert(place, name, disks, *given, **more)
        kept = json.dumps({"driver": "raw", "file": nbd_node(disks[0].uri)})
        subprocess.run(["qemu-img", "convert", "-O", "raw", f"json:{kept}", directory / "converted.raw"], check=True)
        return made

    def exchange(self: Helper, line: bytes, deadline: float) -> bytes:
        nonlocal death
        (directory / "orders").write_text(str(self._number))
        if death and death.who != "journal" and self._number == death.at:
            if death.who == "orchestrator" or self._number % 2:
                self._port.send(line)
            victims = [os.getpid()] if death.who == "orchestrator" else find_marked(MARK, self._name, self._directory)
            death = None
            for each in victims:
                os.kill(each, signal.SIGKILL)
        return real_exchange(self, line, deadline)

    def append(self: Registry, run: str, token: int, entry: JournalEntry) -> int:
        nonlocal journal
        counts = entry.step == "convert:shop" and entry.event in (Event.INTENT, Event.RESULT)
        for after in (False, True):
            made = real_append(self, run, token, entry) if after else 0
            if counts and death == Death("journal", journal):
                os.kill(os.getpid(), signal.SIGKILL)
            journal += counts
        return made

    def acquire(self: Registry, *given: Any, **more: Any) -> Lease:
        made = real_acquire(self, *given, **more)
        if made.name.startswith(run_lease("")):
            (directory / "lease").write_text(json.dumps(asdict(made)))
        return made

    with pytest.MonkeyPatch.context() as patch, (directory / "told").open("w") as told:
        patch.setattr(step, "convert", convert)
        patch.setattr(Helper, "_exchange", exchange)
        patch.setattr(Registry, "append", append)
        patch.setattr(Registry, "acquire_lease", acquire)
        with contextlib.redirect_stdout(told):
            code = main(app, [*words, *given])
    sys.exit(code)
