"""Checking that something accepts connections."""

from __future__ import annotations

from typing import Annotated

import msgspec

from drengine.control.probes import Seen, TcpProbe, ask_tcp
from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.checks import Check
from drengine.transport.web import Deadline


class TcpCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Passes when something accepts connections."""

    host: str
    """Name or address, or ${SOURCE.KEY}."""
    port: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": 65535})]
    """1 to 65535."""


class TcpStep(Check[TcpCheck]):
    """Something accepts a connection."""

    name = "tcp"
    help = "Check that something accepts connections."
    estimate_seconds = 1.0
    goes_inside = True

    def title(self, source: str, settings: TcpCheck) -> str:
        return f"check {settings.host}:{settings.port}"

    def examine(self, settings: TcpCheck, sense: Sense) -> None:
        sense.filled(settings.host, "host")
        if not 1 <= settings.port <= 65535:
            sense.error("bad-value", f"{settings.port} is no port", "1 to 65535 are.", "port")

    def ask(self, settings: TcpCheck, deadline: Deadline) -> Seen:
        return ask_tcp(TcpProbe(host=settings.host, port=settings.port), deadline)


TCP = TcpStep()
