"""What `monitoring init` wrote, used by a real Prometheus: discovery, alerts, dashboards, and no port on a source."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.monitoring.dashboard import dashboard
from tests.field.ground import Ground
from tests.monitoring.rig import Watched, listening_ports

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing: apt prometheus"),
    pytest.mark.timeout(300),
]

EMPTY = {
    "drengine_agent_dirty_bytes": "of the tracker ebpf",
    "drengine_agent_direct_read_bytes_total": "of the tracker ebpf",
    "drengine_agent_freeze_last_seconds": "of the tracker ebpf",
    "drengine_agent_freeze_longest_seconds": "of the tracker ebpf",
    "drengine_agent_cuts_failed_total": "no cut failed",
    "drengine_agent_sync_remaining_seconds": "nothing is copied",
    "drengine_orchestrator_party_connected": "there is no broker",
    "drengine_orchestrator_run_waiting_seconds": "no run waits",
    "drengine_*_certificate_expiry_seconds": "there is no TLS",
}
"""Metrics of which the dashboard's queries answer nothing in a healthy site of this kind, with the reason."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Watched]:
    ground = Ground(tmp_path, seed=1)
    try:
        yield Watched(ground).start()
    finally:
        ground.close()


def test_a_listening_socket_is_found() -> None:
    """What finds no port on a source finds one where there is one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] in listening_ports(os.getpid())


def test_discovery_follows_joins_and_leaves_and_alerts_ring_and_end(site: Watched) -> None:
    site.start_prometheus()
    site.until_value('up{job="drengine-orchestrator"}', 1)
    site.until_value('up{job="drengine-target"}', 1)
    site.until_value('up{job="drengine-agent",source="shop"}', 1)
    site.until_value('count(drengine_agent_replication_lag_seconds{source="shop"} < 60)', 1)
    assert site.firing("DrengineWatchdog")

    site.start_agent("till")
    site.until_value('up{job="drengine-agent",source="till"}', 1)
    site.until_value('drengine_agent_fenced{source="till"}', 0)
    assert {name: listening_ports(each.pid) for name, each in site.agents.items()} == {"shop": [], "till": []}

    site.ground.site.stop(site.agents["till"])
    site.until_value('up{job="drengine-agent",source="till"}', 0)
    site.until_value('drengine_agent_fenced{source="till"}', None)
    site.until_firing("DrengineAgentGone", rings=True)
    assert [each["source"] for each in site.firing("DrengineAgentGone")] == ["till"]
    site.start_agent("till")
    site.until_firing("DrengineAgentGone", rings=False)

    site.ground.drengine("fleet", "retire", "till", "--config", site.engine.file, "--force", "--json")
    site.until_value('count(up{source="till"})', None)
    site.until_value('count({source="till",__name__!~"ALERTS.*"})', None)

    site.pair.kill_target()
    site.until_firing("DrengineTargetGone", rings=True)
    site.pair.start_target()
    site.until_firing("DrengineTargetGone", rings=False)

    site.ground.site.kill(site.orchestrator)
    site.until_firing("DrengineOrchestratorGone", rings=True)
    site.start_orchestrator()
    site.until_firing("DrengineOrchestratorGone", rings=False)


def test_every_query_of_the_dashboard_answers_or_is_said_to_be_silent(site: Watched) -> None:
    assert site.engine.say("drill", str(site.engine.runbook)).json()["outcome"] == "completed"
    site.start_prometheus()
    site.until_value('up{job="drengine-agent",source="shop"}', 1)
    known = ("drengine_agent_captured_bytes_total", "drengine_target_stored_bytes_total")
    site.ground.until("rates are known", lambda: all(site.ask(f"rate({name}[1m])") for name in known))
    panels = json.loads(dashboard())["panels"]
    queries = [target["expr"].replace("$source", ".*") for panel in panels for target in panel.get("targets", ())]
    silent = {_metric(query) for query in queries if not site.ask(query)}
    assert silent == set(EMPTY)


def _metric(query: str) -> str:
    """What a query is about; of several parts' metrics, `*` for the part."""
    named = re.search(r"drengine[_:](\w+|\([\w|]+\)\w+)", query)
    assert named, query
    return re.sub(r"\([\w|]+\)", "*", named[0])


def test_no_panel_lies_on_another_and_each_says_what_it_is() -> None:
    seen: set[tuple[int, int]] = set()
    panels = json.loads(dashboard())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & seen, panel["title"]
        assert max(x for x, _ in cells) < 24
        seen |= cells
        assert panel["title"]
