"""Alerts that a real Prometheus rings when something really happens, and that end when it is over."""

from __future__ import annotations

import contextlib
import json
import urllib.error
from collections.abc import Iterator

from demo.story import free_port
from tests.control.site import Mosquitto
from tests.field.ground import Ground
from tests.field.trial import trial
from tests.monitoring.rig import Watched, listening_ports

HOST = "recovery-1"
FULL = "1000TiB"
"""A store that is to keep so much free takes nothing in."""


@trial(seconds_max=420)
def alerts_ring_for_real_and_end(ground: Ground) -> None:
    """Broker, host, target, store, agent, runs and notices fail in turn: each time its alert rings, and ends after."""
    ground.needs("prometheus", "mosquitto")
    broker = Mosquitto(ground.folder)
    broker.start()
    ground.at_end(broker.kill)
    control = {"address": f"127.0.0.1:{broker.port}", "report_interval": "500ms"}
    nowhere = {"to": [f"json://127.0.0.1:{free_port()}"], "tries": 1, "timeout": "1s"}
    site = Watched(ground, broker=broker.port, agent={"control": control}, notifications=nowhere)
    site.start_host(HOST)
    site.start()
    site.start_prometheus()
    site.until_value(f'drengine_orchestrator_party_connected{{name="{HOST}"}}', 1)
    site.until_value('up{job="drengine-agent",source="shop"}', 1)
    rung = [*_parts(site, broker), *_store(site), *_runs(site)]
    assert listening_ports(site.agents["shop"].pid) == []
    ground.measured["alerts that rang and ended"] = len(rung)


@contextlib.contextmanager
def _rings(site: Watched, *alerts: str) -> Iterator[None]:
    """Quiet before, ringing once what happens in here has happened; `_ended` sees to the rest."""
    for alert in alerts:
        assert not site.firing(alert), alert
    yield
    for alert in alerts:
        site.until_firing(alert, rings=True)


def _ended(site: Watched, *alerts: str) -> list[str]:
    for alert in alerts:
        site.until_firing(alert, rings=False)
    return list(alerts)


def _parts(site: Watched, broker: Mosquitto) -> list[str]:
    with _rings(site, "DrengineBrokerLost"):
        broker.kill()
    assert not site.ask(f'drengine_orchestrator_party_connected{{name="{HOST}"}}'), "nobody knows without a broker"
    broker.start()
    rung = _ended(site, "DrengineBrokerLost")
    with _rings(site, "DrengineHostGone"):
        site.ground.site.kill(site.host)
    site.start_host(HOST)
    rung += _ended(site, "DrengineHostGone")
    with _rings(site, "DrengineAgentGone", "DrengineRpoMissed"):
        site.pair.kill_agent()
    site.agents["shop"] = site.pair.start_agent()
    return [*rung, *_ended(site, "DrengineAgentGone", "DrengineRpoMissed")]


def _store(site: Watched) -> list[str]:
    pair = site.pair
    metrics = {"metrics": f"127.0.0.1:{site.ports['target']}"}
    with _rings(site, "DrengineStoreAlmostFull", "DrengineStoreUnusable"):
        pair.stop_target()
        pair.restart_with({**metrics, "free_space_min": FULL})
        assert _readiness(site) == 503, "it takes nothing in and says that it is ready"
    pair.stop_target()
    pair.restart_with(metrics)
    assert _readiness(site) == 200
    return _ended(site, "DrengineStoreAlmostFull", "DrengineStoreUnusable")


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
    with _rings(site, "DrengineRunStopped", "DrengineFencingFailed"):
        blocked = engine.say("failover", str(engine.runbook), ok=False)
    assert blocked.status, blocked
    run = next(each["run"] for each in engine.say("runs").json() if each["state"] != "finished")
    engine.say("abort", run, ok=False)
    rung = _ended(site, "DrengineRunStopped", "DrengineFencingFailed")
    site.agents["shop"] = shop.start_agent()
    book = json.loads(engine.runbook.read_text())
    book["sources"]["nobody"] = book["sources"]["shop"]
    book["waves"][0]["sources"] = ["shop", "nobody"]
    with _rings(site, "DrengineSourceNeverSeen"):
        engine.runbook.write_text(json.dumps(book))
        engine.say("drill", str(engine.runbook), ok=False)
    site.start_agent("nobody")
    return [*rung, *_ended(site, "DrengineSourceNeverSeen")]
