"""The Grafana dashboard, from a table of its panels. `deploy/grafana/drengine.json` is a copy of it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from drengine.monitoring.grafana import DATASOURCE

GREEN, YELLOW, RED = "green", "orange", "red"
Steps = tuple[tuple[float | None, str], ...]
"""From which value on which colour; the first from None on."""
ZERO_IS_WELL: Steps = ((None, GREEN), (1, RED))
ONE_IS_WELL: Steps = ((None, RED), (1, GREEN))


class Panel(NamedTuple):
    """One panel: what it asks, and how its values are read."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """(PromQL, legend)"""
    kind: str = "timeseries"
    steps: Steps = ()
    says: str = ""
    """For whoever looks at it for the first time."""


def _table(title: str, query: str, says: str = "") -> Panel:
    return Panel(title, "short", ((query, ""),), "table", says=says)


_BY_SOURCE = '{source=~"$source"}'
OVERVIEW = (
    Panel(
        "Sources behind their promise",
        "short",
        (
            (
                "count(max by (source) (drengine_target_replication_lag_seconds) "
                "> on (source) group_right drengine:rpo_promised_seconds) or vector(0)",
                "behind",
            ),
        ),
        "stat",
        ZERO_IS_WELL,
        "A failover now would lose more than the runbook's RPO.",
    ),
    Panel("Sources", "short", (("count(drengine_target_agent_connected)", "sources"),), "stat"),
    Panel(
        "Agents away",
        "short",
        (("count(drengine_target_agent_connected == 0) or vector(0)", "away"),),
        "stat",
        ZERO_IS_WELL,
    ),
    Panel(
        "Runs that need a person",
        "short",
        (("count(drengine_orchestrator_run_waiting_seconds) or vector(0)", "runs"),),
        "stat",
        ZERO_IS_WELL,
        "They wait for an approval, or have stopped: `drengine runs`.",
    ),
    Panel(
        "Alerts that ring",
        "short",
        (('count(ALERTS{alertname=~"Drengine.*",alertstate="firing",severity!="none"}) or vector(0)', "alerts"),),
        "stat",
        ZERO_IS_WELL,
    ),
    Panel(
        "Parts that answer",
        "bool_yes_no",
        (('min by (job, instance) (up{job=~"drengine-(target|orchestrator|other)"})', "{{job}} {{instance}}"),),
        "stat",
        ONE_IS_WELL,
    ),
)
REPLICATION = (
    Panel(
        "Replication lag, and what is promised",
        "s",
        (
            (f"max by (source) (drengine_target_replication_lag_seconds{_BY_SOURCE})", "{{source}}"),
            (f"drengine:rpo_promised_seconds{_BY_SOURCE}", "{{source}}: promised by {{runbook}}"),
        ),
        says="Seconds since a durable recovery point last held all of the source.",
    ),
    Panel(
        "Age of the newest recovery point",
        "s",
        ((f"max by (source) (drengine_target_recovery_point_age_seconds{_BY_SOURCE})", "{{source}}"),),
        says="A source on which nothing is written needs no newer one: its lag is what counts.",
    ),
    _table("State", f"drengine_target_replication_state{_BY_SOURCE} == 1"),
    Panel("Backlog", "bytes", ((f"drengine_agent_backlog_bytes{_BY_SOURCE}", "{{source}}"),)),
    Panel(
        "Copies and comparisons under way",
        "s",
        ((f"drengine_agent_sync_remaining_seconds{_BY_SOURCE}", "{{source}}: left"),),
        says="How long the initial copy, or a comparison of everything, will still take.",
    ),
    Panel("Recovery points", "short", ((f"drengine_target_recovery_points{_BY_SOURCE}", "{{source}}"),)),
    Panel(
        "Captured, sent, stored",
        "Bps",
        (
            (f"sum(rate(drengine_agent_captured_bytes_total{_BY_SOURCE}[1m]))", "captured"),
            (f"sum(rate(drengine_agent_sent_bytes_total{_BY_SOURCE}[1m]))", "sent"),
            (f"sum(rate(drengine_target_stored_bytes_total{_BY_SOURCE}[1m]))", "stored"),
        ),
    ),
    Panel(
        "Acknowledgement latency, p99",
        "s",
        (("histogram_quantile(0.99, sum by (le) (rate(drengine_target_ack_seconds_bucket[5m])))", "p99"),),
    ),
    Panel(
        "Bytes by network",
        "Bps",
        (
            ("sum by (network) (rate(drengine_target_received_bytes_total[1m]))", "in {{network}}"),
            ("sum by (network) (rate(drengine_target_sent_bytes_total[1m]))", "out {{network}}"),
        ),
    ),
)
SOURCES = (
    Panel(
        "Journal in use",
        "percentunit",
        (
            (
                f"drengine_agent_journal_used_bytes{_BY_SOURCE} / drengine_agent_journal_capacity_bytes{_BY_SOURCE}",
                "{{source}}",
            ),
        ),
    ),
    Panel("Dirty on live disks", "bytes", ((f"drengine_agent_dirty_bytes{_BY_SOURCE}", "{{source}}"),)),
    Panel(
        "Read from live disks",
        "Bps",
        ((f"sum by (source) (rate(drengine_agent_direct_read_bytes_total{_BY_SOURCE}[1m]))", "{{source}}"),),
    ),
    Panel(
        "Cuts by kind, and forced ones that failed",
        "short",
        (
            (
                f"sum by (source, kind) (rate(drengine_agent_cuts_total{_BY_SOURCE}[5m])) * 60",
                "{{source}} {{kind}}/min",
            ),
            (
                f"sum by (source, reason) (increase(drengine_agent_cuts_failed_total{_BY_SOURCE}[1h])) > 0",
                "{{source}} failed in 1 h: {{reason}}",
            ),
        ),
    ),
    Panel(
        "Freezes of file systems",
        "s",
        (
            (f"drengine_agent_freeze_last_seconds{_BY_SOURCE}", "{{source}}: last"),
            (f"drengine_agent_freeze_longest_seconds{_BY_SOURCE}", "{{source}}: longest"),
        ),
    ),
    Panel(
        "Rescans by reason",
        "short",
        (
            (
                f"sum by (source, reason) (increase(drengine_agent_rescans_total{_BY_SOURCE}[1h]))",
                "{{source}} {{reason}}",
            ),
        ),
    ),
)
STORE = (
    Panel(
        "Store",
        "bytes",
        (
            ("drengine_target_store_bytes", "{{instance}}: used"),
            ("drengine_target_store_free_bytes", "{{instance}}: free"),
            ("drengine_target_store_free_min_bytes", "{{instance}}: kept back"),
        ),
    ),
    Panel(
        "Free space in three days",
        "bytes",
        (("predict_linear(drengine_target_store_free_bytes[6h], 3 * 86400)", "{{instance}}"),),
        says="At the rate of the last six hours; below zero it is full before.",
    ),
    Panel(
        "Damaged ranges",
        "short",
        ((f"sum by (source) (drengine_target_damaged_ranges{_BY_SOURCE})", "{{source}}"),),
        "stat",
        ZERO_IS_WELL,
    ),
)
RUNS = (
    Panel(
        "Age of the last drill",
        "s",
        (("max by (runbook) (drengine_orchestrator_last_drill_age_seconds)", "{{runbook}}"),),
        "stat",
        ((None, GREEN), (16 * 86400, YELLOW), (32 * 86400, RED)),
    ),
    Panel(
        "Last drill passed",
        "bool_yes_no",
        (("min by (runbook) (drengine_orchestrator_last_drill_passed)", "{{runbook}}"),),
        "stat",
        ONE_IS_WELL,
    ),
    _table("Runs by outcome", "drengine_orchestrator_runs"),
    Panel(
        "RTO, measured and promised",
        "s",
        (
            ("drengine_orchestrator_rto_seconds", "{{runbook}}: {{mode}}"),
            ("drengine:rto_promised_seconds", "{{runbook}}: promised"),
        ),
    ),
    Panel(
        "RPO, measured and promised",
        "s",
        (
            ("drengine_orchestrator_rpo_seconds", "{{runbook}}: {{mode}}"),
            ("drengine_orchestrator_rpo_objective_seconds", "{{runbook}}: promised"),
        ),
    ),
    _table("Runs that wait or have stopped", "drengine_orchestrator_run_waiting_seconds"),
)
PARTS = (
    _table("Parties at the broker", "drengine_orchestrator_party_connected", "1: the broker sees it."),
    _table(
        "Versions",
        'count by (version) ({__name__=~"drengine_(target|agent|orchestrator|orchestrator_party)_build_info"})',
    ),
    _table(
        "Certificates that end first",
        'bottomk(10, {__name__=~"drengine_(target|agent|orchestrator)_certificate_expiry_seconds"})',
        "Seconds until then.",
    ),
)
ROWS = (
    ("At a glance", 4, OVERVIEW),
    ("Replication", 8, REPLICATION),
    ("Sources", 8, SOURCES),
    ("Store", 8, STORE),
    ("Drills and runs", 8, RUNS),
    ("Parts", 8, PARTS),
)
"""Title, panels side by side are so wide, and the panels."""
WIDTH, HEIGHT, HEIGHT_STAT = 24, 8, 5


def dashboard() -> str:
    """The dashboard as JSON."""
    prometheus = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "drengine", "value": DATASOURCE},
    }
    source: dict[str, Any] = {
        "name": "source",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": "label_values(drengine_target_recovery_points, source)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    document = {
        "title": "drengine",
        "uid": "drengine",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [prometheus, source]},
        "panels": _laid_out(),
    }
    return json.dumps(document, indent=1) + "\n"


_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _laid_out() -> list[dict[str, Any]]:
    """Rows below each other, their panels from left to right."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, width, row in ROWS:
        at = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "title": title, "type": "row", "gridPos": at, "panels": []})
        y += 1
        height = HEIGHT_STAT if all(panel.kind == "stat" for panel in row) else HEIGHT
        across = WIDTH // width
        for number, panel in enumerate(row):
            place = {"x": number % across * width, "y": y + number // across * height, "w": width, "h": height}
            panels.append(_panel(len(panels) + 1, panel, place))
        y += -(-len(row) // across) * height
    return panels


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.steps:
        steps = [{"value": value, "color": colour} for value, colour in panel.steps]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    is_table = panel.kind == "table"
    made: dict[str, Any] = {
        "id": number,
        "title": panel.title,
        "description": panel.says,
        "type": panel.kind,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "expr": query,
                "legendFormat": legend,
                "instant": panel.kind != "timeseries",
                "format": "table" if is_table else "time_series",
            }
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }
    if is_table:
        hidden = dict.fromkeys(("Time", "__name__", "job", "instance"), True)
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made
