"""Orchestrators as real processes on one PostgreSQL, with a store, served disks, and runs that leave traces.

Every program of the runbook writes into `ledger` when it begins and when it ends, and says so if it meets another one
of its own step. So what was done, how often, and whether two did it together, is there to be read, whoever was killed.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drengine.failover.registry import Registry
from drengine.failover.run import Event, RunRecord, RunState
from drengine.model.clock import SystemClock
from drengine.process import find_marked
from tests.control.site import free_port
from tests.failover.engine.disks import disks_served
from tests.failover.engine.world import World

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 2.0
SECONDS_MAX = 60.0
EFFECT = """
exec 9>>"$RIG/$1.lock"
flock -n 9 || echo "OVERLAP $1" >>"$RIG/ledger"
echo "begin $1" >>"$RIG/ledger"
sleep "$(cat "$RIG/seconds")"
echo "end $1" >>"$RIG/ledger"
"""
RUNBOOK = """\
version: 1
name: shop
sources:
  shop:
    fence: {command: [sh, RIG/effect, fence], retries: 0}
    launch:
      driver: command
      settings:
        run: [sh, -c, 'echo "launch $DRENGINE_RUN" >>RIG/ledger; exec sleep 600']
        environment: {RIG: RIG}
        details: {address: here}
waves:
  - name: all
    sources: [shop]
    before: [{command: [sh, RIG/effect, before]}]
    then: [{command: [sh, RIG/effect, then]}]
"""


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS_MAX) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.02)
    return found


@dataclass
class Daemon:
    """One orchestrator, started again wherever it was killed."""

    rig: Rig
    name: str
    signal: str = "SIGKILL"
    places: str = ""
    extra: str = ""
    url: str = ""
    """Of the registry; empty: the rig's."""
    rest: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.rig.folder / self.name

    def start(self) -> Daemon:
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "orchestrator.toml"
        config.write_text(
            f'store = "{self.rig.store}"\nstate = "{self.folder}/state"\nregistry = "{self.url or self.rig.url}"\n'
            f'export = "unix:{self.rig.folder}/nbd"\nlease = "{LEASE_SECONDS}s"\nrest = "127.0.0.1:{self.rest}"\n'
            f"{self.extra}"
        )
        met = self.rig.folder / "met"
        met.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.orchestrators.daemon", met, self.signal, self.places, config],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/agents"},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return bool(self.ask("GET", "/health"))
        except OSError:
            return False

    def ask(self, method: str, path: str, body: Any = None, *, token: str = "") -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.rest, timeout=30)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            connection.request(method, f"/api/v1{path}", json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status < 400, said
            return json.loads(said)
        finally:
            connection.close()

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Rig:
    """A site with several orchestrators."""

    folder: Path
    url: str
    store: Path
    daemons: list[Daemon] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.effects_take("0.2")
        (self.folder / "effect").write_text(f"RIG={self.folder}\n{EFFECT}")
        self.registry = Registry.open(self.url, clock=SystemClock())

    def add(self, name: str, **how: Any) -> Daemon:
        made = Daemon(self, name, **how).start()
        self.daemons.append(made)
        return made

    def ready(self) -> None:
        for each in self.daemons:
            until(each.answers, f"{each.name} answers")

    def keep_alive(self) -> None:
        """As a service manager does."""
        for each in self.daemons:
            if each.process is not None and each.process.poll() is not None:
                each.start()

    def runbook(self) -> str:
        text = RUNBOOK.replace("RIG/", f"{self.folder}/").replace("{RIG: RIG}", f"{{RIG: {self.folder}}}")
        return text.replace('"$RIG', f'"{self.folder}')

    def effects_take(self, seconds: str) -> None:
        (self.folder / "seconds").write_text(seconds)

    def ledger(self) -> list[str]:
        path = self.folder / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    def run_of(self, run: str) -> RunRecord:
        return self.registry.run(run)

    def ends(self, run: str, seconds: float = SECONDS_MAX) -> RunRecord:
        """The run when it is finished or stopped; whoever was killed meanwhile was started again."""

        def over() -> bool:
            self.keep_alive()
            return self.registry.run(run).state in (RunState.FINISHED, RunState.STOPPED)

        until(over, f"the end of {run}", seconds)
        return self.registry.run(run)

    def owners(self, run: str) -> list[str]:
        """Who made each entry that says so, in order."""
        return [each.payload["owner"] for each in self.registry.entries(run) if "owner" in each.payload]

    def results(self, run: str) -> dict[str, list[bool]]:
        """Of each step: how its tries ended."""
        found: dict[str, list[bool]] = {}
        for entry in self.registry.entries(run):
            if entry.event is Event.RESULT and not entry.payload.get("waiting"):
                found.setdefault(entry.step, []).append(bool(entry.payload["ok"]))
        return found

    def met(self) -> set[str]:
        """The places at which somebody was met."""
        return {each.name for each in (self.folder / "met").iterdir()}

    def close(self) -> None:
        for each in self.daemons:
            each.end()
        for pid in find_marked("RIG", str(self.folder)):
            os.kill(pid, signal.SIGKILL)
        self.registry.close()


@contextmanager
def rig(folder: Path, url: str) -> Iterator[Rig]:
    """With one source `shop`, and its disks served."""
    world = World(folder / "world")
    world.store.close()
    with disks_served(world.path, folder / "nbd"):
        made = Rig(folder, url, world.path)
        try:
            yield made
        finally:
            made.close()
