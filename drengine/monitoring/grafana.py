"""Grafana's provisioning: where Prometheus is, and where the dashboards lie."""

from __future__ import annotations

from pathlib import Path

import yaml

DATASOURCE = "drengine-prometheus"


def datasource(prometheus_url: str) -> str:
    """provisioning/datasources/drengine.yml"""
    source = {
        "name": "drengine",
        "uid": DATASOURCE,
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        "jsonData": {"timeInterval": "15s"},
    }
    return yaml.safe_dump({"apiVersion": 1, "datasources": [source]}, sort_keys=False)


def dashboards(folder: Path) -> str:
    """provisioning/dashboards/drengine.yml; `folder` holds the dashboards, as Grafana sees it."""
    provider = {"name": "drengine", "folder": "drengine", "type": "file", "options": {"path": str(folder)}}
    return yaml.safe_dump({"apiVersion": 1, "providers": [provider]}, sort_keys=False)
