"""Prometheus's HTTP service discovery: what to ask, told by the orchestrator, so that it follows joins and leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from drengine.config import ADDRESS
from drengine.monitoring.options import MonitoringOptions

AGENT_JOB, ORCHESTRATOR_JOB, TARGET_JOB, OTHER_JOB = (
    f"drengine-{name}" for name in ("agent", "orchestrator", "target", "other")
)
"""Names of jobs; the rules know them."""
SOURCES_PATH = "/metrics/sources"
"""Of a target: what its agents tell."""
_ANYWHERE = ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost")
"""These say nothing of where the host is."""


@dataclass(frozen=True, slots=True)
class TargetGroup:
    """As Prometheus wants it: https://prometheus.io/docs/prometheus/latest/http_sd/"""

    targets: list[str]
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class SharingTarget:
    """One of the targets that share a store.

    Attributes:
        addresses: HOST:PORT, where agents reach it.
        metrics: HOST:PORT of its metrics, as it says itself; empty for none.
        is_living: it was heard of lately.
    """

    name: str
    addresses: tuple[str, ...]
    metrics: str
    is_living: bool


def target_groups(
    options: MonitoringOptions,
    sources: Iterable[str],
    sharing: Sequence[SharingTarget] = (),
    placed: Mapping[str, str] | None = None,
) -> list[TargetGroup]:
    """All targets; each source at the one that shows it, so that `up` says of each whether its agent tells anything.

    Args:
        options: name the targets, unless those that share the store have said where they are.
        sources: those that are not retired.
        sharing: the targets of a shared store, by name; not those that ended in order.
        placed: at which of them each source is.
    """
    addresses = {each.name: _reached(each) for each in sharing if each.metrics}
    living = [addresses[each.name] for each in sharing if each.name in addresses and each.is_living]
    targets = list(addresses.values()) or list(options.targets)
    groups = [TargetGroup([each], {"job": TARGET_JOB}) for each in targets]
    groups += [TargetGroup([each], {"job": OTHER_JOB}) for each in options.others]
    for source in sorted(sources) if targets else ():
        at = addresses.get((placed or {}).get(source, ""), "")
        shown_by = at if at in living else (living or targets)[0]
        labels = {"job": AGENT_JOB, "source": source, "__metrics_path__": f"{SOURCES_PATH}/{source}"}
        groups.append(TargetGroup([shown_by], labels))
    return groups


def _reached(target: SharingTarget) -> str:
    """Where a target's metrics are: on the host that agents reach, where it only says that it listens."""
    metrics = ADDRESS.parse(target.metrics)
    if target.addresses and metrics.host in _ANYWHERE:
        return str(replace(metrics, host=ADDRESS.parse(target.addresses[0]).host))
    return target.metrics
