"""Prometheus's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from drengine.monitoring.discovery import ORCHESTRATOR_JOB

HEAD = """\
# Written by `drengine monitoring init`; a later run leaves alone what was changed here, and says so.
# Prometheus can use it as it is, or take the two jobs and the rule files into a configuration of its own: the names of
# the jobs stand in the rules. Paths are relative to this file.
"""
JOB_NOTE = """\
# The orchestrator says what else there is, so joins and leaves need no change here. `source` and `job` of a sample are
# the target's word, so they are honoured; an agent can't set them.
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What Prometheus has to know of a site.

    Attributes:
        orchestrator: HOST:PORT of its metrics.
        discovery_url: of its REST API.
        has_ca: the file `ca.pem` holds the CA of that API.
        alertmanagers: HOST:PORT of each.
    """

    orchestrator: str
    discovery_url: str
    has_ca: bool
    alertmanagers: tuple[str, ...] = ()


def configuration(site: Site, *, token_file: str, ca_file: str) -> str:
    """prometheus.yml"""
    discovery: dict[str, Any] = {
        "url": site.discovery_url,
        "refresh_interval": "15s",
        "authorization": {"type": "Bearer", "credentials_file": token_file},  # without the type 2.42 sends none
    }
    if site.has_ca:
        discovery["tls_config"] = {"ca_file": ca_file}
    first: dict[str, Any] = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["rules/*.yml"],
    }
    if site.alertmanagers:
        first["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": list(site.alertmanagers)}]}]}
    jobs: list[dict[str, Any]] = [
        {"job_name": ORCHESTRATOR_JOB, "static_configs": [{"targets": [site.orchestrator]}]},
        {"job_name": "drengine", "honor_labels": True, "http_sd_configs": [discovery]},
    ]
    shown = [_yaml([job]) for job in jobs]
    return "\n".join([HEAD.rstrip(), _yaml(first).rstrip(), "scrape_configs:", shown[0].rstrip(), JOB_NOTE + shown[1]])


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False)
