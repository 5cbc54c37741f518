"""Whether the hosts that sources are to move to could take them in, and whether their old ones are really gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drengine.control.messages import AgentReport
from drengine.failover.options import NewHome
from drengine.failover.preflight.check import Check, Look, Scene, apart
from drengine.failover.readiness import Checked
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.branches import newest_point
from drengine.model.errors import DrengineError
from drengine.model.homes import NEW_HOME_UNFIT, SpareDisk, place_volumes
from drengine.store.errors import UNKNOWN_SOURCE

NEW_HOME = Check(
    "new-home",
    "each host of `--onto` is a spare one that is connected, and has a disk at least as large for each volume",
    NEW_HOME_UNFIT.hint,
    vital=True,
)
OLD_HOST = Check(
    "old-host",
    "the old host of a source that moves by `--onto` is gone: its agent is not connected with the broker",
    "Without --onto its own disks are brought up to date, and what only they hold is kept. If they are worth nothing: "
    "switch it off, or go on with --despite old-host; it is fenced, and refused for good.",
)


async def look_at_homes(scene: Scene) -> list[Checked]:
    """Each source that moves."""
    found = []
    for source, new in scene.case.options.onto.items():
        fault, seen, warns = "", "", False
        try:
            seen, doubt = await apart(lambda source=source, new=new: _look(scene, source, new))  # type: ignore[misc]
            fault, warns = doubt, bool(doubt)
        except DrengineError as error:
            if error.kind is UNKNOWN_SOURCE:
                continue  # that is a check of its own
            fault = error.message
        found.append(NEW_HOME.found(source, seen=seen, fault=fault, warns=warns))
        old = scene.agent_of(source)
        if scene.case.mode is not Mode.MIGRATION and old != new.host:
            there = f"agent {old} of the old host of {source} is connected" if scene.site.agents.is_online(old) else ""
            found.append(OLD_HOST.found(source, seen=f"agent {old} is not there", fault=there))
    return found


def _look(scene: Scene, source: str, new: NewHome) -> tuple[str, str]:
    """What was found, and what is doubtful.

    Raises:
        DrengineError: NEW_HOME_UNFIT, UNKNOWN_SOURCE.
    """
    store, agents = scene.site.store, scene.site.agents
    _require_free(scene, source, new.host)
    report = agents.reports().get(new.host)
    if report is None or not agents.is_online(new.host):
        raise DrengineError(NEW_HOME_UNFIT, f"the agent of {new.host} is not connected with the broker")
    told = report.details
    is_ours = told.get("home_of") == source
    if not is_ours and told.get("spare") is not True:
        raise DrengineError(NEW_HOME_UNFIT, f"{new.host} is no spare host: its agent's file does not say `spare`")
    point = newest_point(store, source, store.source(source).active_branch)
    placed = place_volumes(point.geometry, _disks(report), {} if is_ours else new.disks)
    coarse = [
        f"disk {placed[each.name].name} has sectors of {placed[each.name].sector_bytes} bytes, volume {each.name} of "
        f"{each.sector_bytes}: partitions and file systems made for those may not be readable"
        for each in point.geometry
        if placed[each.name].sector_bytes != each.sector_bytes
    ]
    listed = ", ".join(f"{volume} on {disk.name} ({disk.path})" for volume, disk in placed.items())
    return f"{new.host} takes {listed}", "; ".join(coarse)


def _require_free(scene: Scene, source: str, host: str) -> None:
    store = scene.site.store
    if store.home(source).agent == host:
        raise DrengineError(NEW_HOME_UNFIT, f"{source} lives on {host}: that is no move, leave out --onto")
    others = [each.name for each in store.sources() if each.name != source and store.home(each.name).agent == host]
    lived = [each for each in others if each != host or store.points(each)]
    if lived:
        raise DrengineError(NEW_HOME_UNFIT, f"{host} is the home of {lived[0]}; a host is the home of one source")


def _disks(report: AgentReport) -> list[SpareDisk]:
    """What a host says that it has; a stranger's word, so whatever is not well formed is left out."""
    return [disk for each in report.volumes if (disk := _disk(each)) is not None]


def _disk(told: Mapping[str, Any]) -> SpareDisk | None:
    name, path, size, sector = (told.get(key) for key in ("name", "path", "size_bytes", "sector_bytes"))
    if not isinstance(name, str) or not isinstance(path, str) or not isinstance(size, int):
        return None
    return SpareDisk(name, path, size, sector if isinstance(sector, int) else 512)


LOOKS = (Look((NEW_HOME, OLD_HOST), look_at_homes),)
