"""Whether the source's own services could be stopped and started on its host, and whether anything starts them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from drengine.control.allowed import is_allowed
from drengine.failover.preflight.check import Check, Look, Scene
from drengine.failover.readiness import Checked, Severity
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE
from drengine.failover.steps.release import RELEASE
from drengine.failover.steps.services import ServiceCommand
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.stop_services import STOP_SERVICES

SERVICES_ALLOWED = Check(
    "services-allowed",
    "the agent of each source that is there may run what the runbook's `services` name for it",
    "Name them in [allow] commands of the agent's own file on that source, and restart the agent.",
)
SERVICES_STARTED = Check(
    "services-started",
    "something starts each source's workload after a failback, or a check behind it shows that somebody serves",
    "Give the source `services` or `start`; else start its workload by hand when the run ends as handed back.",
    Severity.WARNS,
)


async def look_at_services(scene: Scene) -> Iterable[Checked]:
    """The commands that the run would have run on each source."""
    return [*_allowed(scene), *(_started(scene) if scene.case.mode is Mode.FAILBACK else ())]


def _allowed(scene: Scene) -> Iterator[Checked]:
    wanted: dict[tuple[str, str], list[ServiceCommand]] = {}
    for step in scene.steps:
        host = step.settings.host if step.kind is RELEASE else ""
        wanted.setdefault((step.source, host or scene.agent_of(step.source)), []).extend(_commands(step))
    for (source, agent), commands in wanted.items():
        report = scene.site.agents.reports().get(agent)
        allowed = report.details.get("allowed_commands") if report else None
        if not commands or not scene.site.agents.is_online(agent):
            continue
        if not isinstance(allowed, list):
            fault = "its agent does not say what it lets runs do here; it may be of an older version"
            yield SERVICES_ALLOWED.found(source, fault=fault, warns=True)
            continue
        refused = [shlex.join(each.command) for each in commands if not is_allowed(each.command, allowed)]
        on = f"{agent} does" if agent != source else "it does"
        fault = f"{on} not let runs do: {', '.join(dict.fromkeys(refused))}" if refused else ""
        yield SERVICES_ALLOWED.found(source, seen=f"{len(commands)} commands are allowed", fault=fault)


def _started(scene: Scene) -> Iterator[Checked]:
    releases = [step for step in scene.steps if step.kind is RELEASE]
    behind = {step.id for step in releases}
    for step in scene.steps:  # a plan has each step after those it needs
        if behind.intersection(step.needs):
            behind.add(step.id)
    proved = any(step.id in behind and step.kind.ends_outage and step.critical for step in scene.steps)
    for step in releases:
        starts = bool(step.settings.services or step.settings.start)
        fault = "" if starts or proved else f"nothing starts the workload of {step.source} when it is in charge again"
        yield SERVICES_STARTED.found(step.source, seen="something does", fault=fault)


def _commands(step: PlannedStep[Any]) -> list[ServiceCommand]:
    if step.kind is STOP_SERVICES:
        found: list[ServiceCommand] = step.settings.commands
        return found
    return step.settings.services if step.kind in (RELEASE, QUIESCE_SOURCE) else []


LOOKS = (Look((SERVICES_ALLOWED, SERVICES_STARTED), look_at_services),)
