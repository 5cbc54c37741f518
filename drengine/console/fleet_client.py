"""A client of REST for orders about the fleet; see `drengine.fleet.orders.FleetOrders` for what each does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from drengine.console.client import Client
from drengine.fleet.answers import FleetAnswer, PolicyAnswer, RetiredAnswer


@dataclass(frozen=True, slots=True)
class RemoteFleet:
    """Orders and questions to an orchestrator that runs."""

    client: Client

    def look(self) -> FleetAnswer:
        """How all sources stand."""
        return msgspec.convert(self.client.ask("GET", "/fleet"), FleetAnswer)

    def policy(self) -> PolicyAnswer:
        """What was decided."""
        return msgspec.convert(self.client.ask("GET", "/fleet/policy"), PolicyAnswer)

    def set_policy(self, sources: str, values: Mapping[str, str]) -> PolicyAnswer:
        """Decide settings."""
        body = {"sources": sources, "values": dict(values)}
        return msgspec.convert(self.client.ask("POST", "/fleet/policy/set", body), PolicyAnswer)

    def unset_policy(self, sources: str, names: list[str]) -> PolicyAnswer:
        """Take back what was decided."""
        body = {"sources": sources, "names": names}
        return msgspec.convert(self.client.ask("POST", "/fleet/policy/unset", body), PolicyAnswer)

    def retire(
        self, source: str, *, force: bool = False, serials: Sequence[str] = (), dry_run: bool = False
    ) -> RetiredAnswer:
        """A source is no more."""
        body = {"force": force, "serials": list(serials), "dry_run": dry_run}
        return msgspec.convert(self.client.ask("POST", f"/fleet/sources/{source}/retire", body), RetiredAnswer)
