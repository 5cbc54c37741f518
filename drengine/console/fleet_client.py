"""A client of REST for orders about the fleet; see `drengine.fleet.orders.FleetOrders` for what each does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from drengine.console.client import Client
from drengine.fleet.answers import FleetAnswer, PolicyAnswer, RetiredAnswer, RolloutAnswer


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

    def upgrade(
        self,
        version: str,
        sha256: str,
        rings: Sequence[str],
        *,
        limit_seconds: float,
        at_once: int,
        dry_run: bool = False,
        downgrade: bool = False,
    ) -> RolloutAnswer:
        """Begin to upgrade agents; the orchestrator carries it out."""
        body = {"version": version, "sha256": sha256, "rings": list(rings), "at_once": at_once}
        body |= {"limit_seconds": limit_seconds, "dry_run": dry_run, "downgrade": downgrade}
        return self._rollout("POST", "/fleet/upgrade", body)

    def rollout(self) -> RolloutAnswer:
        """The newest upgrade."""
        return self._rollout("GET", "/fleet/upgrade")

    def resume_rollout(self) -> RolloutAnswer:
        """Go on with the newest upgrade."""
        return self._rollout("POST", "/fleet/upgrade/resume", {})

    def stop_rollout(self) -> RolloutAnswer:
        """Order no more agents in the newest upgrade."""
        return self._rollout("POST", "/fleet/upgrade/stop", {})

    def _rollout(self, method: str, path: str, body: Any = None) -> RolloutAnswer:
        return msgspec.convert(self.client.ask(method, path, body), RolloutAnswer)
