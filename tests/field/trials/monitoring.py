"""Alerts that a real Prometheus rings when something really happens, and that end when it is over.

The modules `alerts_of_...` ring the others. `DrengineWatchdog` alone is not among them: it always rings, and ends with
Prometheus itself.
"""

from __future__ import annotations

import json
import urllib.error

from tests.control.site import Mosquitto
from tests.field.engine import mosquitto_of
from tests.field.ground import Ground
from tests.field.trial import trial
from tests.monitoring.rig import Watched, listening_ports

HOST = "recovery-1"
FULL = "1000TiB"
"""A store that is to keep so much free takes nothing in."""
RINGS = frozenset(
    {
        "DrengineAgentGone",
        "DrengineBrokerLost",
        "DrengineDiscoverySilent",
        "DrengineFencingFailed",
        "DrengineHostGone",
        "DrengineOrchestratorGone",
        "DrengineReplicationBroken",
        "DrengineReplicationLagging",
        "DrengineReplicationStalled",
        "DrengineRpoMissed",
        "DrengineRunStopped",
        "DrengineSourceNeverSeen",
        "DrengineStoreAlmostFull",
        "DrengineStoreUnusable",
        "DrengineTargetGone",
    }
)
"""What rings and ends here."""


@trial(seconds_max=420)
def alerts_ring_for_real_and_end(ground: Ground) -> None:
    """Broker, host, target, orchestrator, discovery, store, agent and runs fail in turn: each alert rings, and ends."""
    ground.needs("prometheus")
    broker = mosquitto_of(ground)
    control = {"address": f"127.0.0.1:{broker.port}", "report_interval": "500ms"}
    site = Watched(ground, broker=broker.port, agent={"control": control})
    site.start_host(HOST)
    site.start()
    site.start_prometheus()
    site.until_value(f'drengine_orchestrator_party_connected{{name="{HOST}"}}', 1)
    site.until_value('up{job="drengine-agent",source="shop"}', 1)
    rung = [*_parts(site, broker), *_servers(site), *_store(site), *_runs(site)]
    assert listening_ports(site.agents["shop"].pid) == []
    assert set(rung) == RINGS
    ground.measured["alerts that rang and ended"] = len(rung)


def _parts(site: Watched, broker: Mosquitto) -> list[str]:
    with site.rings("DrengineBrokerLost"):
        broker.kill()
    assert not site.ask(f'drengine_orchestrator_party_connected{{name="{HOST}"}}'), "nobody knows without a broker"
    broker.start()
    rung = site.ended("DrengineBrokerLost")
    with site.rings("DrengineHostGone"):
        site.ground.site.kill(site.host)
    site.start_host(HOST)
    rung += site.ended("DrengineHostGone")
    behind = ("DrengineReplicationLagging", "DrengineRpoMissed", "DrengineReplicationBroken")
    with site.rings("DrengineAgentGone", *behind):
        site.pair.kill_agent()
    site.agents["shop"] = site.pair.start_agent()
    return [*rung, *site.ended("DrengineAgentGone", *behind)]


def _servers(site: Watched) -> list[str]:
    with site.rings("DrengineTargetGone"):
        site.pair.kill_target()
    site.pair.start_target()
    rung = site.ended("DrengineTargetGone")
    with site.rings("DrengineOrchestratorGone"):
        site.ground.site.kill(site.orchestrator)
    site.start_orchestrator()
    rung += site.ended("DrengineOrchestratorGone")
    token = site.folder / "drengine.token"
    good = token.read_text()
    site.until_value("drengine_orchestrator_discovery_age_seconds < bool 5", 1)
    with site.rings("DrengineDiscoverySilent"):
        token.write_text("over\n")
    token.write_text(good)
    return [*rung, *site.ended("DrengineDiscoverySilent")]


def _store(site: Watched) -> list[str]:
    full = ("DrengineStoreAlmostFull", "DrengineStoreUnusable", "DrengineReplicationStalled")
    with site.rings(*full):
        site.restart_target(free_space_min=FULL)
        assert _readiness(site) == 503, "it takes nothing in and says that it is ready"
    site.restart_target()
    assert _readiness(site) == 200
    return site.ended(*full)


def _readiness(site: Watched) -> int:
    def look() -> int:
        try:
            site.page("target", "/readyz")
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    # The store is looked at each second; the first look is at once.
    return site.ground.until("the target says whether it is ready", look)


def _runs(site: Watched) -> list[str]:
    engine, shop = site.engine, site.pair
    engine.write_runbook(shop, fence={"command": ["false"]})
    shop.kill_agent()
    with site.rings("DrengineRunStopped", "DrengineFencingFailed"):
        blocked = engine.say("failover", str(engine.runbook), ok=False)
    assert blocked.status, blocked
    run = next(each["run"] for each in engine.say("runs").json() if each["state"] != "finished")
    engine.say("abort", run, ok=False)
    rung = site.ended("DrengineRunStopped", "DrengineFencingFailed")
    site.agents["shop"] = shop.start_agent()
    book = json.loads(engine.runbook.read_text())
    book["sources"]["nobody"] = book["sources"]["shop"]
    book["waves"][0]["sources"] = ["shop", "nobody"]
    with site.rings("DrengineSourceNeverSeen"):
        engine.runbook.write_text(json.dumps(book))
        engine.say("drill", str(engine.runbook), ok=False)
    site.start_agent("nobody")
    return [*rung, *site.ended("DrengineSourceNeverSeen")]
