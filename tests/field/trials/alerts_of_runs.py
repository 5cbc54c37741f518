"""Alerts about runs: drills that are old, fail, or take and lose more than promised; runs that wait; readiness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo.story import free_port
from tests.field.engine import mosquitto_of
from tests.field.ground import Ground
from tests.field.load import scatter
from tests.field.trial import trial
from tests.monitoring.rig import Watched

RPO, RTO = "2s", "5s"
SLOW_SECONDS, BEHIND_SECONDS = 6, 5
SELDOM, OFTEN = '"30m"', '"1s"'
RINGS = frozenset(
    {
        "DrengineDrillFailed",
        "DrengineDrillTooOld",
        "DrengineNotReady",
        "DrengineNotificationsFail",
        "DrengineReadinessUnknown",
        "DrengineRpoOverObjective",
        "DrengineRtoOverObjective",
        "DrengineRunOverRto",
        "DrengineRunWaits",
    }
)
"""What rings and ends here."""


@trial(seconds_max=420)
def alerts_of_runs_ring_and_end(ground: Ground) -> None:
    """Drills grow old, fail, take and lose too much; runs wait; nobody looks, nobody is told: each rings, and ends."""
    ground.needs("prometheus")
    broker = mosquitto_of(ground)
    control = {"address": f"127.0.0.1:{broker.port}", "report_interval": "500ms"}
    nowhere = {"to": [f"json://127.0.0.1:{free_port()}"], "about": ["readiness"], "tries": 1, "timeout": "1s"}
    site = Watched(
        ground, broker=broker.port, agent={"control": control}, notifications=nowhere, ready_every=json.loads(SELDOM)
    )
    workload = _Workload(site)
    site.pair.start()
    workload.drill()  # so that the runbook is kept, and its readiness looked at
    site.start_orchestrator()
    site.init()
    site.start_prometheus()
    rung = [*_neglected(site, workload), *_not_ready(site, workload), *_drills(site, workload)]
    rung += _waiting(site, workload)
    assert set(rung) == RINGS
    ground.measured["alerts that rang and ended"] = len(rung)


class _Workload:
    """The runbook's programs, each a script that can be changed or taken away, and what is promised."""

    def __init__(self, site: Watched) -> None:
        self.site = site
        self.start, self.check = site.ground.folder / "start", site.ground.folder / "check"
        _script(self.start, "exit 0")
        _script(self.check, "exit 0")
        settings = {"start": [str(self.start)], "stop": ["true"], "health": ["true"]}
        launch = {"driver": "command", "timeout": "60s", "settings": settings}
        site.engine.write_runbook(site.pair, launch=launch)
        self.change(objectives={"rpo": RPO, "rto": RTO})
        check = {"name": "it runs", "command": [str(self.check)], "timeout": "1s"}
        self.change(waves=[{"name": "all", "sources": [site.pair.source], "then": [check]}])

    @property
    def book(self) -> dict[str, Any]:
        """The runbook."""
        found: dict[str, Any] = json.loads(self.site.engine.runbook.read_text())
        return found

    def change(self, **parts: Any) -> None:
        """Other parts of the runbook."""
        self.site.engine.runbook.write_text(json.dumps({**self.book, **parts}))

    def drill(self, *, passes: bool = True) -> None:
        """One drill."""
        said = self.site.engine.say("drill", str(self.site.engine.runbook), ok=False)
        assert (said.status == 0) is passes, said


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def _neglected(site: Watched, workload: _Workload) -> list[str]:
    """The orchestrator looks each half hour, with the alert's hour a sixth of a minute, and nobody drills."""
    for alert in ("DrengineReadinessUnknown", "DrengineDrillTooOld"):
        site.until_firing(alert, rings=True)
    site.ground.site.stop(site.orchestrator)
    file = site.engine.file
    file.write_text(file.read_text().replace(f"ready_every = {SELDOM}", f"ready_every = {OFTEN}"))
    site.start_orchestrator()
    rung = site.ended("DrengineReadinessUnknown")
    workload.drill()
    return [*rung, *site.ended("DrengineDrillTooOld")]


def _not_ready(site: Watched, workload: _Workload) -> list[str]:
    """A program is missing, and what should tell people so reaches nobody."""
    with site.rings("DrengineNotReady", "DrengineNotificationsFail"):
        workload.start.unlink()
    _script(workload.start, "exit 0")
    return site.ended("DrengineNotReady", "DrengineNotificationsFail")


def _drills(site: Watched, workload: _Workload) -> list[str]:
    with site.rings("DrengineDrillFailed"):
        _script(workload.check, "exit 1")
        workload.drill(passes=False)
    _script(workload.check, "exit 0")
    workload.drill()
    rung = site.ended("DrengineDrillFailed")
    agent_file = str(site.pair.agent_file)
    with site.rings("DrengineRtoOverObjective", "DrengineRpoOverObjective"):
        site.ground.agent("pause", "--config", agent_file)
        scatter(site.ground, site.pair, "data", 1)
        site.until_value(f"max(drengine_target_replication_lag_seconds) > bool {BEHIND_SECONDS}", 1)
        _script(workload.start, f"sleep {SLOW_SECONDS}")
        workload.drill()
    _script(workload.start, "exit 0")
    site.ground.agent("resume", "--config", agent_file)
    site.pair.until_equal()
    workload.drill()
    return [*rung, *site.ended("DrengineRtoOverObjective", "DrengineRpoOverObjective")]


def _waiting(site: Watched, workload: _Workload) -> list[str]:
    """A failover waits for an approval, for longer than it may take, until somebody ends it."""
    (wave,) = workload.book["waves"]
    workload.change(waves=[{**wave, "before": [{"approval": {"prompt": "Fail over?", "self_approval": True}}]}])
    engine = site.engine
    with site.rings("DrengineRunWaits", "DrengineRunOverRto"):
        assert engine.say("failover", str(engine.runbook), "--no-wait", ok=False).status
    run = next(each["run"] for each in engine.say("runs").json() if each["state"] != "finished")
    engine.say("abort", run, ok=False)
    return site.ended("DrengineRunWaits", "DrengineRunOverRto")
