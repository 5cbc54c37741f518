"""What operators see: metrics, structured logs, readiness."""

from drengine.telemetry.endpoint import MetricsEndpoint
from drengine.telemetry.logs import setup_logging
from drengine.telemetry.metrics import Family, Kind, Metrics, Sample
from drengine.telemetry.notify import notify

__all__ = ["Family", "Kind", "Metrics", "MetricsEndpoint", "Sample", "notify", "setup_logging"]
