"""The list, and asking all of it at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from drengine.control.agents import BrokerAgents, NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.errors import UNKNOWN_CHECK
from drengine.failover.plan import plan, sources_of
from drengine.failover.preflight import (
    addresses,
    clouds,
    control,
    conversion,
    fences,
    here,
    homes,
    hosts,
    people,
    servers,
    services,
    sources,
)
from drengine.failover.preflight.check import Check, Look, Scene, apart
from drengine.failover.readiness import Checked
from drengine.failover.registry import Registry
from drengine.failover.runbook.findings import did_you_mean
from drengine.failover.steps.step import Case, Site
from drengine.model.errors import DrengineError
from drengine.people.door import Door

log = logging.getLogger("drengine.failover")

PREFLIGHT_SECONDS_MAX = 20.0

LOOKS: tuple[Look, ...] = (
    *sources.LOOKS,
    *servers.LOOKS,
    *homes.LOOKS,
    *addresses.LOOKS,
    *conversion.LOOKS,
    *here.LOOKS,
    *control.LOOKS,
    *hosts.LOOKS,
    *clouds.LOOKS,
    *fences.LOOKS,
    *services.LOOKS,
    *people.LOOKS,
)
CHECKS: dict[str, Check] = {check.id: check for look in LOOKS for check in look.checks}
"""All kinds of checks, by id, in the order of the documents."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """Looks at a case with what one orchestrator has; see the package."""

    config: OrchestratorConfig
    registry: Registry
    door: Door
    agents: BrokerAgents | NoAgents

    async def __call__(self, site: Site, case: Case) -> list[Checked]:
        """Everything that was found."""
        steps = plan(case.mode, case.runbook, case.options.kept())
        names = sources_of(case.runbook)
        lives: dict[str, str] = {}
        with contextlib.suppress(DrengineError, TimeoutError):  # what ails the store is for the checks to say
            async with asyncio.timeout(PREFLIGHT_SECONDS_MAX / 2):
                lives = await apart(lambda: {source: site.store.home(source).agent for source in names})
        scene = Scene(case, steps, names, site, self.config, self.registry, self.door, self.agents, lives)
        found = await asyncio.gather(*(_bounded(look, scene) for look in LOOKS))
        despite = {*case.options.despite, *case.despite}
        return [_despite(each, despite) for part in found for each in part]


async def _bounded(look: Look, scene: Scene) -> Iterable[Checked]:
    """One look, in its time. What can't be looked at does not pass: it may be just what is broken."""
    try:
        async with asyncio.timeout(PREFLIGHT_SECONDS_MAX):
            return await look.look(scene)
    except TimeoutError:
        return [look.checks[0].found(fault=f"there was no end of looking within {PREFLIGHT_SECONDS_MAX:g} s")]
    except DrengineError as error:
        return [look.checks[0].found(fault=f"it can't be looked at: {error.message}", hint=error.hint)]
    except Exception as error:
        log.exception("a check failed unexpectedly: %s", look.checks[0].id)
        return [look.checks[0].found(fault=f"it can't be looked at: {type(error).__name__}: {error}")]


def _despite(checked: Checked, despite: set[str]) -> Checked:
    told = not checked.ok and not checked.vital and bool(despite & {checked.id, checked.check})
    return replace(checked, despite=told) if told else checked


def require_despite(despite: Iterable[str]) -> None:
    """Whether a run may go on past these checks at all.

    Raises:
        DrengineError: UNKNOWN_CHECK.
    """
    for each in despite:
        check = CHECKS.get(each.partition(":")[0])
        if check is None:
            raise DrengineError(UNKNOWN_CHECK, f"there is no check {each[:80]!r}", hint=did_you_mean(each, CHECKS))
        if check.vital:
            raise DrengineError(UNKNOWN_CHECK, f"no run goes on past {check.id}: it looks whether {check.looks_at}")
