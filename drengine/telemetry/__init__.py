"""What operators see: metrics, structured logs, readiness."""

from drengine.telemetry.accepting import AcceptFailures, quiet_accept_failures
from drengine.telemetry.endpoint import MetricsEndpoint
from drengine.telemetry.logs import setup_logging
from drengine.telemetry.metrics import Family, Kind, Metrics, Sample
from drengine.telemetry.notify import notify

__all__ = [
    "AcceptFailures",
    "Family",
    "Kind",
    "Metrics",
    "MetricsEndpoint",
    "Sample",
    "notify",
    "quiet_accept_failures",
    "setup_logging",
]
