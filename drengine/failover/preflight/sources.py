"""The sources of a runbook, their points, and the store that holds them."""

from __future__ import annotations

from functools import partial

from drengine.config import parse_duration
from drengine.failover.preflight.check import Check, Look, Scene, all_of, apart
from drengine.failover.readiness import Checked, Severity
from drengine.failover.runbook.findings import did_you_mean
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.choose_point import expected_point
from drengine.model.errors import DrengineError
from drengine.store.errors import UNKNOWN_SOURCE
from drengine.store.store import SourceInfo
from drengine.target.config import TargetConfig
from drengine.terminal import human_bytes, human_duration, human_time

FREE_SHARE_MIN = 0.1

SOURCE_KNOWN = Check(
    "source-known",
    "each source replicates to this store, and is in a state from which the mode leads on",
    "Compare the names with `drengine status`; protect the source, or remove it from the runbook.",
    vital=True,
)
SOURCE_AGENT = Check(
    "source-agent",
    "each source's agent is connected with the broker; in a failover a lost source is what is expected",
    "Look at `drengine-agent status` on that server, and at its [control].",
)
POINT = Check(
    "point",
    "each source has an undamaged recovery point as the runbook or `--point` names it",
    "`drengine points --source SOURCE` lists them; damaged ones are mended by the agent's next session.",
    vital=True,
)
POINT_AGE = Check(
    "point-age",
    "what would be lost with that point is within `objectives: rpo`",
    "`drengine-agent status` says why points are late; or promise what can be held.",
    Severity.WARNS,
)
STORE_ROOM = Check(
    "store-room",
    "the store has room for what the recovered side writes: less than 64 MiB blocks, less than a tenth warns",
    "Make room on the store's disk, shorten its retention, or drop branches (`drengine branches`).",
)


async def look_at_sources(scene: Scene) -> list[Checked]:
    """Whether each is known, and who writes it as the mode wants it."""
    store, mode = scene.site.store, scene.case.mode

    def look(source: str, known: dict[str, SourceInfo]) -> Checked:
        if source not in known:
            hint = did_you_mean(source, known)
            return SOURCE_KNOWN.found(source, fault=f"no source {source} replicates to this store", hint=hint)
        active = known[source].active_branch
        promoted = any(each.number == active and each.role == "promoted" for each in store.branches(source))
        fault = f"{source} was not failed over: it is in charge itself" if mode.is_way_home and not promoted else ""
        return SOURCE_KNOWN.found(source, seen="it replicates here", fault=fault)

    def look_at_all() -> list[Checked]:
        known = {each.name: each for each in store.sources()}
        return [look(each, known) for each in scene.sources]

    return await apart(look_at_all)


async def look_at_agents(scene: Scene) -> list[Checked]:
    """Whether sources can be told what to do, in modes that tell them."""
    mode, agents = scene.case.mode, scene.site.agents
    needed = mode.is_way_home or mode is Mode.MIGRATION
    if not (needed or scene.case.rehearsal) or (not scene.config.broker.address and not needed):
        return []
    found = []
    for source in scene.sources:
        if source in scene.case.options.onto and mode.is_way_home:
            continue  # the new home is a check of its own
        fault = (
            ""
            if agents.is_online(scene.agent_of(source))
            else f"the agent of {source} is not connected with the broker"
        )
        found.append(SOURCE_AGENT.found(source, seen="connected", fault=fault, warns=not needed))
    return found


async def look_at_points(scene: Scene) -> list[Checked]:
    """The points that would be chosen, and what that would lose."""
    case, site = scene.case, scene.site
    if case.mode is Mode.MIGRATION or case.mode.is_way_home:
        return []  # the run cuts its own

    def look(source: str) -> list[Checked]:
        text = case.options.point or case.runbook.sources[source].point
        try:
            report = site.agents.reports().get(scene.agent_of(source))
            chosen = expected_point(site.store, report, source, text, site.clock.now_ns())
        except DrengineError as error:
            if error.kind is UNKNOWN_SOURCE:
                return []  # that is a check of its own
            return [POINT.found(source, fault=error.message)]
        point = POINT.found(source, seen=f"{chosen.point} of {human_time(chosen.time_ns)}, {chosen.kind}")
        if text != "latest":
            return [point]
        promised, lost = parse_duration(case.runbook.objectives.rpo), chosen.rpo_seconds
        seen = f"{human_duration(lost)} would be lost, {human_duration(promised)} are promised"
        return [point, POINT_AGE.found(source, seen=seen, fault=seen if lost > promised else "")]

    return await all_of(apart(partial(look, source)) for source in scene.sources)


async def look_at_room(scene: Scene) -> list[Checked]:
    """Whether the store can be written, and how much it can still take."""
    store = scene.site.store

    def look() -> Checked:
        try:
            store.require_usable(free_bytes_min=TargetConfig.free_space_min)
        except DrengineError as error:
            return STORE_ROOM.found(fault=error.message, hint=error.hint)
        stats = store.stats()
        if stats.free_bytes is None:
            return STORE_ROOM.found(seen="its storage has no such limit")
        room = f"{human_bytes(stats.free_bytes)} free, {human_bytes(stats.stored_bytes)} stored"
        little = stats.free_bytes < FREE_SHARE_MIN * (stats.free_bytes + stats.stored_bytes)
        return STORE_ROOM.found(seen=room, fault=room if little else "", warns=True)

    return [await apart(look)]


LOOKS = (
    Look((SOURCE_KNOWN,), look_at_sources),
    Look((SOURCE_AGENT,), look_at_agents),
    Look((POINT, POINT_AGE), look_at_points),
    Look((STORE_ROOM,), look_at_room),
)
