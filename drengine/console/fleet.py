"""REST about the fleet: parses, calls an order, sends its answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from drengine.console import bodies as take
from drengine.console.pools import off
from drengine.fleet.answers import FleetAnswer, PolicyAnswer, RetiredAnswer, RolloutAnswer
from drengine.fleet.orders import FleetOrders, orders_of

SOURCES_CHARACTERS_MAX, VALUE_CHARACTERS_MAX = 100, 1000


class SetPolicy(take.Body):
    """Settings for a source, or for all that a pattern means."""

    sources: str = Field(max_length=SOURCES_CHARACTERS_MAX)
    values: dict[
        Annotated[str, Field(max_length=SOURCES_CHARACTERS_MAX)], Annotated[str, Field(max_length=VALUE_CHARACTERS_MAX)]
    ] = Field(max_length=20)


class UnsetPolicy(take.Body):
    """Settings that are taken back; none named: all of this source or pattern."""

    sources: str = Field(max_length=SOURCES_CHARACTERS_MAX)
    names: list[Annotated[str, Field(max_length=SOURCES_CHARACTERS_MAX)]] = Field([], max_length=20)


class Retire(take.Body):
    """A source that is no more."""

    force: bool = Field(False, description="Also while it is connected.")
    serials: list[Annotated[str, Field(pattern="^[0-9a-f]{1,40}$")]] = Field(
        [], max_length=1000, description="Of its certificates, which are revoked."
    )
    dry_run: bool = Field(False, description="Only say whether it could be retired.")


class Upgrade(take.Body):
    """A new version for agents."""

    version: str = Field(max_length=100)
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="Of the file; empty: as it is handed out.")
    rings: list[Annotated[str, Field(max_length=SOURCES_CHARACTERS_MAX)]] = Field(min_length=1, max_length=100)
    limit_seconds: float = Field(600.0, ge=1, le=86400, description="How long an agent may take to be back and well.")
    at_once: int = Field(4, ge=1, le=100, description="Agents of a ring at the same time.")
    dry_run: bool = Field(False, description="Only say who would be upgraded when.")
    downgrade: bool = Field(False, description="Also to an older version.")


def _fleet(request: Request) -> FleetOrders:
    return orders_of(request.app.state.orchestrator.engine, request.scope["person"])


TheFleet = Annotated[FleetOrders, Depends(_fleet)]
router = APIRouter(prefix="/fleet")


@router.get("")
async def show_fleet(fleet: TheFleet) -> FleetAnswer:
    """Show every source: how it stands, its version, lag, newest point, certificate and policy."""
    return await off(fleet.look)


@router.get("/policy")
async def show_policy(fleet: TheFleet) -> PolicyAnswer:
    """Give what was decided for sources."""
    return await off(fleet.policy)


@router.post("/policy/set")
async def set_policy(fleet: TheFleet, body: SetPolicy) -> PolicyAnswer:
    """Decide settings for a source, or for all that a pattern means."""
    return await off(lambda: fleet.set_policy(body.sources, body.values))


@router.post("/policy/unset")
async def unset_policy(fleet: TheFleet, body: UnsetPolicy) -> PolicyAnswer:
    """Take back what was decided."""
    return await off(lambda: fleet.unset_policy(body.sources, body.names))


@router.post("/sources/{source}/retire")
async def retire_source(fleet: TheFleet, source: take.SourceName, body: Retire) -> RetiredAnswer:
    """End a source: it may not ship any more, and its points go when their time is up."""
    return await off(lambda: fleet.retire(source, force=body.force, serials=body.serials, dry_run=body.dry_run))


@router.get("/upgrade")
async def show_upgrade(fleet: TheFleet) -> RolloutAnswer:
    """Show the newest upgrade of agents."""
    return await off(fleet.rollout)


@router.post("/upgrade", status_code=201)
async def begin_upgrade(fleet: TheFleet, body: Upgrade) -> RolloutAnswer:
    """Have agents fetch a new version and install it, ring by ring; carried out by this orchestrator."""
    given = body.model_dump(exclude={"version", "sha256", "rings"})
    return await off(lambda: fleet.upgrade(body.version, body.sha256, body.rings, **given))


@router.post("/upgrade/resume")
async def resume_upgrade(fleet: TheFleet) -> RolloutAnswer:
    """Go on with the newest upgrade, and with who was sick in it."""
    return await off(fleet.resume_rollout)


@router.post("/upgrade/stop")
async def stop_upgrade(fleet: TheFleet) -> RolloutAnswer:
    """Order no more agents in the newest upgrade."""
    return await off(fleet.stop_rollout)
