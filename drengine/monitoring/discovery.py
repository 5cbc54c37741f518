"""Prometheus's HTTP service discovery: what to ask, told by the orchestrator, so that it follows joins and leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from drengine.monitoring.options import MonitoringOptions

AGENT_JOB, ORCHESTRATOR_JOB, TARGET_JOB, OTHER_JOB = (
    f"drengine-{name}" for name in ("agent", "orchestrator", "target", "other")
)
"""Names of jobs; the rules know them."""
SOURCES_PATH = "/metrics/sources"
"""Of a target: what its agents tell."""


@dataclass(frozen=True, slots=True)
class TargetGroup:
    """As Prometheus wants it: https://prometheus.io/docs/prometheus/latest/http_sd/"""

    targets: list[str]
    labels: dict[str, str]


def target_groups(options: MonitoringOptions, sources: Iterable[str]) -> list[TargetGroup]:
    """All targets; each source at the first of them, so that `up` says of each whether its agent tells anything."""
    groups = [TargetGroup([each], {"job": TARGET_JOB}) for each in options.targets]
    groups += [TargetGroup([each], {"job": OTHER_JOB}) for each in options.others]
    for source in sorted(sources) if options.targets else ():
        labels = {"job": AGENT_JOB, "source": source, "__metrics_path__": f"{SOURCES_PATH}/{source}"}
        groups.append(TargetGroup([options.targets[0]], labels))
    return groups
