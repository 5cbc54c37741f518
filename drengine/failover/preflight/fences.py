"""Whether each source could be fenced on the day it does not answer."""

from __future__ import annotations

from collections.abc import Iterator

from drengine.failover.preflight.check import Check, Look, Scene, all_of, apart
from drengine.failover.readiness import Checked
from drengine.failover.steps.fence import FENCE, FenceSettings, lease_seconds
from drengine.failover.steps.preflight import FENCE_COMMAND as NO_FENCE
from drengine.failover.steps.step import PlannedStep
from drengine.process import run_command

DRY_SECONDS_MAX = 10.0
WATCHERS = frozenset({"ebpf", "scan"})
"""Trackers whose agent keeps nobody from the disks, so that its word alone fences nothing."""

FENCE_COMMAND = Check(
    NO_FENCE,
    "each source that could be lost has a fence command, or an agent that fences itself (`lease`)",
    "Give the runbook `fence: {command: [...]}`: power, hypervisor or switch. Without one such a run goes on with "
    "--force only.",
)
FENCE_HOME = Check(
    "fence-home",
    "each fence command is for the host on which its source lives; before a move that there is none for the new host "
    "warns",
    "Give the runbook `fence: {homes: {HOST: {command: [...]}}}`: what switches that host off. A command for another "
    "host is never run; without one for this host such a run goes on with --force only.",
)
FENCE_DRY = Check(
    "fence-dry",
    "the dry form of each fence command ends with 0; that there is none warns",
    "Run it by hand; or add `fence: {dry: [...]}`: what asks the same device for its state, with the same credentials.",
)


async def look_at_fences(scene: Scene) -> list[Checked]:
    """Each source that the run would fence, and each that it would move."""
    fences = [step for step in scene.steps if step.kind is FENCE and not step.settings.agent_only]
    return [*await all_of(_look(scene, step) for step in fences), *_after_the_move(scene)]


def _after_the_move(scene: Scene) -> Iterator[Checked]:
    """What would fence each source that moves, once it lives there."""
    for source, new in scene.case.options.onto.items():
        fence = scene.case.runbook.sources[source].fence
        hosts = fence.by_host(source) if fence else {}
        if hosts:
            fault = "" if new.host in hosts else f"the runbook's fence is for {', '.join(hosts)}, not for {new.host}"
            yield FENCE_HOME.found(f"{source}/{new.host}", seen=f"there is one for {new.host}", fault=fault, warns=True)


async def _look(scene: Scene, step: PlannedStep[FenceSettings]) -> list[Checked]:
    source, settings = step.source, step.settings
    agent = scene.agent_of(source)
    report = scene.site.agents.reports().get(agent)
    itself = lease_seconds(report) > 0
    answers = scene.site.agents.is_online(agent) and (report.details.get("tracker") if report else "") not in WATCHERS
    other = "it fences itself" if itself else "its agent answers" if answers and not scene.case.rehearsal else ""
    if scene.case.options.force:
        other = other or "the run is forced"
    if unfit := settings.unfit(source, agent):
        return [FENCE_HOME.found(source, seen=other, fault=unfit, warns=bool(other))]
    if not settings.command:
        fault = "" if other else f"{source} has no fence command: a lost source could not be fenced"
        return [FENCE_COMMAND.found(source, seen=other, fault=fault)]
    found = [
        FENCE_COMMAND.found(source, seen=settings.command[0]),
        FENCE_HOME.found(source, seen=f"it is for {agent}"),
    ]
    if not settings.dry:
        fault = "the fence has no dry form, so nobody knows whether it would answer"
        return [*found, FENCE_DRY.found(source, fault=fault, warns=True)]
    environment = {
        "DRENGINE_SOURCE": source,
        "DRENGINE_RUNBOOK": scene.case.runbook.name,
        "DRENGINE_MODE": scene.case.mode.value,
    }
    seconds = min(settings.command_seconds, DRY_SECONDS_MAX)
    ended = await apart(lambda: run_command(settings.dry, timeout_seconds=seconds, environment=environment))
    why = f"took longer than {seconds:g} s" if ended.timed_out else f"ended with {ended.code}"
    fault = "" if ended.ok else f"{settings.dry[0]} {why}: {ended.output[-200:]}".rstrip(": ")
    return [*found, FENCE_DRY.found(source, seen=f"{settings.dry[0]} ended with 0", fault=fault, warns=bool(other))]


LOOKS = (Look((FENCE_COMMAND, FENCE_HOME, FENCE_DRY), look_at_fences),)
