"""A source moves from new host to new host with real processes, and each time one is killed at another of its durable
steps: the new host's agent before or after a sync, the orchestrator before or after an entry of its journal.

Whatever was killed: one writer at every instant, the same end, nothing left behind, and the old host is refused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drengine.console.client import Client
from drengine.process import find_marked
from drengine.store.store import Store
from tests.failover.engine.mortal import NEVER, SPLIT_BRAIN, armed, steps
from tests.failover.engine.test_new_home import Spare, replica
from tests.failover.engine.test_real_parts import ENVIRONMENT, ROOT, SIZE, Site, eventually, site, write

__all__ = ["site"]
MORTAL = [sys.executable, "-m", "tests.failover.engine.mortal"]
RUN_SECONDS_MAX = 120.0
KILLS = 6
"""Of each, spread over all its steps; with `DRENGINE_TEST_EVERY_STEP=1` at every step, which takes an hour."""


class Moving:
    """A site whose source moves on and on."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.home: Spare | None = None
        """None: the source lives on the host of its own name."""
        self.number = 0
        self.environment = {**ENVIRONMENT, "READY_PLACE": str(site.directory / "ready")}
        self.rest = Client(f"unix:{site.directory}/state/orchestrator.sock")
        self.rest.ask("PUT", "/runbooks/shop", {"text": (site.directory / "shop.yaml").read_text()})

    def move(self, mode: str, *, agent: int = NEVER, orchestrator: int = NEVER) -> tuple[list[str], list[str]]:
        """Move to a new host, by `failback` after a failover or by `migration`; the new host's agent or the
        orchestrator dies at that step. The steps that both came to before.
        """
        if mode == "failback":
            eventually(lambda: self._party(self._host)["online"])
            over = self.rest.ask("POST", "/runs", {"mode": "failover", "runbook": "shop"})["run"]
            eventually(lambda: self._run(over)["outcome"] == "completed")
            self.site.kill(self._process)
        self.number += 1
        spare = Spare(self.site, SIZE, f"host{self.number}")
        ours, theirs = (self.site.directory / f"{spare.name}.{who}" for who in ("agent", "orchestrator"))
        self._start(spare, ours, agent)
        eventually(lambda: (self._party(spare.name)["report"] or {})["details"]["spare"])
        generation, branches = self._standing()
        run = self._moved(mode, spare, ours, theirs, orchestrator)
        assert run["outcome"] == "completed", run
        assert {each["status"] for each in run["steps"]} == {"done"}, run
        counted = steps(ours), steps(theirs)
        if agent != NEVER:  # a late step may come behind the run's end
            eventually(lambda: self._died(spare, ours) or not spare.ask("cut"))
        lives = [ours, ours.with_suffix(".again")] if agent != NEVER else [ours]
        told = "".join(each.read_text() for each in lives)
        assert "serves, and nobody" in told and SPLIT_BRAIN not in told, told
        assert self._standing() == (generation + 1, branches + 1)
        self._at_home(spare)
        self._old_host_is_refused()
        self.home = spare
        return counted

    @property
    def _host(self) -> str:
        return self.home.name if self.home else "shop"

    @property
    def _process(self) -> str:
        return self.home.name if self.home else "agent"

    def _party(self, name: str) -> Any:
        return {each["name"]: each for each in self.rest.ask("GET", "/parties")}[name]

    def _run(self, id: str) -> Any:
        return self.rest.ask("GET", f"/runs/{id}")

    def _standing(self) -> tuple[int, int]:
        with Store.open(self.site.directory / "store", read_only=True) as store:
            return store.source("shop").generation, len(store.branches("shop"))

    def _start(self, spare: Spare, trace: Path, position: int) -> None:
        argv = [*MORTAL, str(trace), str(position), "drengine_agent.cli.main", "run", "-c"]
        with (spare.directory / "agent.log").open("ab") as log:
            self.site.processes[spare.name] = subprocess.Popen(
                [*argv, str(spare.directory / "agent.toml")], stdout=log, stderr=log, env=self.environment, cwd=ROOT
            )

    def _moved(self, mode: str, spare: Spare, ours: Path, theirs: Path, orchestrator: int) -> Any:
        """Begin the run, start the agent again when it has died, as its supervisor would, and see the run's end."""
        for trace in (ours, theirs):
            armed(trace).touch()
        known = {each["run"] for each in self.rest.ask("GET", "/runs")}
        config = str(self.site.directory / "orchestrator.toml")
        asked = ["failback" if mode == "failback" else "migrate", "shop", "--onto", spare.name, "--config", config]
        with (self.site.directory / "moves.log").open("ab") as log:
            argv = [*MORTAL, str(theirs), str(orchestrator), "drengine.cli.main", *asked]
            orchestrating = subprocess.Popen(argv, stdout=log, stderr=log, env=self.environment, cwd=ROOT)
        until, run = time.monotonic() + RUN_SECONDS_MAX, dict[str, Any]()
        while run.get("state") != "finished":
            assert time.monotonic() < until, run
            self._died(spare, ours)
            run = next((each for each in self.rest.ask("GET", "/runs") if each["run"] not in known), {})
            if run.get("state") == "stopped":
                self.rest.ask("POST", f"/runs/{run['run']}/resume", {})
            time.sleep(0.1)
        ended = orchestrating.wait(RUN_SECONDS_MAX)
        assert ended == (-signal.SIGKILL if orchestrator != NEVER else 0)
        return self._run(run["run"])

    def _died(self, spare: Spare, trace: Path) -> bool:
        """Whether its agent has died by now; it is started again, as its supervisor would."""
        again = trace.with_suffix(".again")
        if self.site.processes[spare.name].poll() is not None:
            assert not again.exists(), "it dies once"
            self._start(spare, again, NEVER)
            again.touch()
        return again.exists()

    def _at_home(self, spare: Spare) -> None:
        """The source is whole on its new host, and protected; the run has left nothing."""
        eventually(lambda: spare.ask("status")["state"] == "CONTINUOUS")
        assert spare.ask("cut", "--label", f"on {spare.name}")
        assert replica(self.site) == spare.disk.read_bytes()
        assert replica(self.site).startswith(b"written")
        assert spare.fence().get("standing") == "in-charge"
        assert not list((spare.directory / "agent").rglob("*.new"))
        assert not find_marked("READY", str(self.site.directory / "ready"))
        with Store.open(self.site.directory / "store", read_only=True) as store:
            assert store.home("shop").agent == spare.name
            assert [each.name for each in store.sources()] == ["shop"]
            assert not [each for each in store.grants.living() if each.source == "shop"]

    def _old_host_is_refused(self) -> None:
        if self._process not in self.site.processes:
            if self.home:
                self.home.start()
            else:
                self.site.start("agent", "run", "-c", str(self.site.directory / "agent.toml"))
        ask = self.home.ask if self.home else self.site.agent
        eventually(lambda: ask("status")["fence_reason"] == "moved")
        self.site.kill(self._process)


def spread(count: int, kills: int) -> list[int]:
    """Both sides of steps that are spread over all of them; of every one where somebody asks for that."""
    if os.environ.get("DRENGINE_TEST_EVERY_STEP"):
        return list(range(count))
    return sorted({round(number * (count - 1) / (kills - 1)) for number in range(kills)})


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", ["failback", "migration"])
@pytest.mark.parametrize("who", ["agent", "orchestrator"])
def test_whoever_is_killed_on_the_way_to_a_new_host_it_ends_the_same(site: Site, mode: str, who: str) -> None:
    config = site.directory / "orchestrator.toml"
    site.kill("orchestrator")
    config.write_text(f'lease = "2s"\n{config.read_text()}')
    site.start("orchestrator", "orchestrator", "run", "--config", str(config))
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert site.agent("cut", "--label", "before")
    eventually(site.hears_agent)
    moving, began = Moving(site), time.monotonic()
    found = dict(zip(("agent", "orchestrator"), moving.move(mode), strict=True))[who]
    print("\n".join(found))
    assert len(found) >= 2 * KILLS
    kills = spread(len(found), KILLS)
    for position in kills:
        print(f"{time.monotonic() - began:.0f} s: {mode}, {who} killed at {position}", flush=True)
        moving.move(mode, **{who: position})
    print(f"{mode}: {len(kills)} kills of the {who}, {time.monotonic() - began:.0f} s")
