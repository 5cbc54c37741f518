"""The Grafana dashboard, deploy/grafana/drengine.json, from a table of its panels."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Panel(NamedTuple):
    """One panel: what it asks, and how its values are read."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """(PromQL, legend)"""
    kind: str = "timeseries"


_BY_SOURCE = '{source=~"$source"}'
PANELS = (
    Panel(
        "Replication lag",
        "s",
        ((f"max by (source) (drengine_target_replication_lag_seconds{_BY_SOURCE})", "{{source}}"),),
    ),
    Panel(
        "Age of the newest recovery point",
        "s",
        ((f"max by (source) (drengine_target_recovery_point_age_seconds{_BY_SOURCE})", "{{source}}"),),
    ),
    Panel(
        "State",
        "short",
        ((f"drengine_target_replication_state{_BY_SOURCE} == 1", "{{source}}: {{state}} ({{reason}})"),),
        "table",
    ),
    Panel("Backlog", "bytes", ((f"drengine_agent_backlog_bytes{_BY_SOURCE}", "{{source}}"),)),
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
    Panel("Recovery points", "short", ((f"drengine_target_recovery_points{_BY_SOURCE}", "{{source}}"),)),
    Panel(
        "Store",
        "bytes",
        (("drengine_target_store_bytes", "used"), ("drengine_target_store_free_bytes", "free")),
    ),
    Panel(
        "Bytes by network",
        "Bps",
        (
            ("sum by (network) (rate(drengine_target_received_bytes_total[1m]))", "in {{network}}"),
            ("sum by (network) (rate(drengine_target_sent_bytes_total[1m]))", "out {{network}}"),
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
    Panel("Dirty on live disks", "bytes", ((f"drengine_agent_dirty_bytes{_BY_SOURCE}", "{{source}}"),)),
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
        "Read from live disks",
        "Bps",
        ((f"sum by (source) (rate(drengine_agent_direct_read_bytes_total{_BY_SOURCE}[1m]))", "{{source}}"),),
    ),
    Panel("Damaged ranges", "short", ((f"drengine_target_damaged_ranges{_BY_SOURCE}", "{{source}}"),), "stat"),
    Panel(
        "Age of the last drill",
        "s",
        (("max by (runbook) (drengine_orchestrator_last_drill_age_seconds)", "{{runbook}}"),),
        "stat",
    ),
    Panel(
        "Last drill passed",
        "bool_yes_no",
        (("min by (runbook) (drengine_orchestrator_last_drill_passed)", "{{runbook}}"),),
        "stat",
    ),
    Panel("Runs by outcome", "short", (("drengine_orchestrator_runs", "{{runbook}}: {{mode}} {{outcome}}"),), "table"),
    Panel(
        "RTO, measured and promised",
        "s",
        (
            ("drengine_orchestrator_rto_seconds", "{{runbook}}: {{mode}}"),
            ("drengine_orchestrator_rto_objective_seconds", "{{runbook}}: promised"),
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
    Panel(
        "Runs that hold their sources, and fencing that failed",
        "short",
        (
            ("drengine_orchestrator_runs_unfinished", "{{runbook}}: {{mode}} {{state}}"),
            ("drengine_orchestrator_source_unfenced == 1", "{{runbook}}: {{source}} not fenced"),
        ),
        "table",
    ),
)
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


def dashboard() -> str:
    """deploy/grafana/drengine.json"""
    source: dict[str, Any] = {
        "name": "source",
        "type": "query",
        "datasource": {"type": "prometheus"},
        "query": "label_values(drengine_target_recovery_points, source)",
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    document = {
        "title": "drengine",
        "uid": "drengine",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(document, indent=1) + "\n"


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": panel.title,
        "type": panel.kind,
        "datasource": {"type": "prometheus"},
        "gridPos": {"x": number % COLUMNS * WIDTH, "y": number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": query, "legendFormat": legend, "instant": panel.kind == "table"}
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }
