"""Becoming the home of a source whose own host is gone: a spare host's agent, its own name, another's source.

A run orders it (SETTLE), and only a host whose own file says `spare = true` obeys. `home.json` is the whole decision;
what follows from it (a fenced standing, volumes that are known to the target as others) is written at the next start,
again and again until `home.json` says that it is. From then on the agent is the source's, under its own name.

| killed | left is | then |
|---|---|---|
| before `home.json` | a spare host | the order is repeated |
| after it, before it says `settled` | a host that must not be what it was | the next start writes the rest anew |
| after that | the source's new home, fenced, its disks empty | a reversal |
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.homes import NEW_HOME_UNFIT, SpareDisk, place_volumes
from drengine.model.points import VolumeGeometry
from drengine_agent.capture.backing import Volume
from drengine_agent.config import AgentConfig, VolumeOptions
from drengine_agent.daemon.state import AgentState, KnownVolume, StateDirectory, read_state
from drengine_agent.errors import STATE_DAMAGED
from drengine_agent.fencing.fence import Fence, FenceRecord, fenced_record

log = logging.getLogger("drengine.agent")

FILE_NAME = "home.json"
CAPTURES = ("tap", "index")
"""What the trackers keep in the state directory: it is of the disks as they were."""


class SettledVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume of the source: its number and identity at the target, and the [[volume]] of ours that it lies on."""

    number: int
    identity: str
    disk: str


class Settling(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of `home.json`.

    Attributes:
        source: whose home this host is.
        generation: that was in charge when it was ordered, elsewhere.
        run, by: of the order.
        at_ns: wall clock.
        volumes: by the source's names.
        settled: what follows from this is on disk.
    """

    source: str
    generation: int
    run: str
    by: str
    at_ns: int
    volumes: dict[str, SettledVolume]
    settled: bool = False


class SettleOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of SETTLE. `volumes`: number, name, identity and size of each, as the point has them."""

    source: str
    generation: int
    volumes: list[VolumeGeometry]
    disks: dict[str, str] = {}
    by: str = ""


def read_settling(directory: Path) -> Settling | None:
    """What was decided; None: this host is nobody's new home.

    Raises:
        DrengineError: STATE_DAMAGED: it can't be told, and to be what it was before could be wrong.
    """
    try:
        return msgspec.json.decode((directory / FILE_NAME).read_bytes(), type=Settling)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise DrengineError(STATE_DAMAGED, f"{directory / FILE_NAME}: {error}") from error


def settle(config: AgentConfig, volumes: Sequence[Volume], order: SettleOrder, *, run: str, now_ns: int) -> Settling:
    """Note that this host becomes the source's home; it is at the next start. Ordered again, it changes nothing.

    Args:
        config: the agent's own file, as it is now in effect.
        volumes: its disks.
        order: what was ordered.
        run: on whose behalf.
        now_ns: wall clock.

    Raises:
        DrengineError: NEW_HOME_UNFIT, STATE_DAMAGED.
    """
    before = read_settling(config.state_directory)
    if before is not None and before.source == order.source:
        return before
    if before is not None or not config.spare:
        is_what = f"is the home of {before.source}" if before else "is no spare (`spare = true` in its agent's file)"
        raise DrengineError(NEW_HOME_UNFIT, f"host {config.party} {is_what}")
    offered = [SpareDisk(each.name, str(each.path), each.size_bytes, each.sector_bytes) for each in volumes]
    placed = place_volumes(order.volumes, offered, order.disks)
    found = {
        each.name: SettledVolume(number=each.volume, identity=each.identity, disk=placed[each.name].name)
        for each in order.volumes
    }
    made = Settling(source=order.source, generation=order.generation, run=run, by=order.by, at_ns=now_ns, volumes=found)
    _keep(config.state_directory, made)
    log.warning("this host becomes the home of source %s, as run %s ordered", order.source, run)
    return made


def housed(config: AgentConfig, clock: Clock) -> AgentConfig:
    """The configuration as it counts: of a host that has settled, that of the source whose home it is.

    Raises:
        DrengineError: STATE_DAMAGED, AGENT_RUNNING; NEW_HOME_UNFIT, its file names the disks no more, or it says
            `spare` of a host that has replicated; what keeps a disk from being opened.
    """
    settling = read_settling(config.state_directory)
    if settling is None:
        _require_fresh(config)
        return config
    if settling.source == config.source:
        return config  # its file says so by itself
    effective = _effective(config, settling)
    if not settling.settled:
        _follow(effective, settling, clock)
    return effective


def as_housed(config: AgentConfig) -> AgentConfig:
    """The same for who only looks: nothing is written, and what can't be told is as the file says."""
    with contextlib.suppress(DrengineError):
        settling = read_settling(config.state_directory)
        if settling is not None and settling.source != config.source:
            return _effective(config, settling)
    return config


def _effective(config: AgentConfig, settling: Settling) -> AgentConfig:
    own = {each.name: each for each in config.volume}
    missing = sorted({each.disk for each in settling.volumes.values()} - own.keys())
    if missing:
        message = f"host {config.party} is the home of {settling.source}, and its file names no disk {missing[0]} more"
        raise DrengineError(NEW_HOME_UNFIT, message)
    ordered = sorted(settling.volumes.items(), key=lambda each: each[1].number)
    volumes: tuple[VolumeOptions, ...] = tuple(replace(own[each.disk], name=name) for name, each in ordered)
    return replace(config, source=settling.source, name=config.party, volume=volumes)


def _follow(effective: AgentConfig, settling: Settling, clock: Clock) -> None:
    """Write what follows; whoever is killed does it again from the start."""
    directory = StateDirectory(effective.state_directory)
    try:
        record = fenced_record(settling.generation, "settled", clock, run=settling.run, by=settling.by)
        record = msgspec.structs.replace(record, replaced=list(settling.volumes))
        Fence(effective.state_directory).replace(record)
        for name in CAPTURES:
            shutil.rmtree(effective.state_directory / name, ignore_errors=True)
        directory.save(AgentState(volumes=_known(effective, settling, clock), generation=settling.generation))
        _keep(effective.state_directory, msgspec.structs.replace(settling, settled=True))
    finally:
        directory.close()


def _known(effective: AgentConfig, settling: Settling, clock: Clock) -> dict[str, KnownVolume]:
    known = {}
    for wanted in effective.volume:
        theirs = settling.volumes[wanted.name]
        found = Volume.open(theirs.number, wanted.name, wanted.path)
        found.close()
        known[wanted.name] = KnownVolume(theirs.number, found.identity, theirs.identity, found.evidence, clock.now_ns())
    return known


def _require_fresh(config: AgentConfig) -> None:
    """Only a host that never replicated stands ready to be overwritten."""
    state = read_state(config.state_directory)
    if config.spare and (state.generation or state.acknowledged_sequence):
        raise DrengineError(
            NEW_HOME_UNFIT,
            f"host {config.party} has replicated as {config.source}, and its file says `spare`",
            hint="Take `spare` out of its file; or, if its disks are worth nothing, give it a new `state_directory`.",
        )


def stand_ready(config: AgentConfig, fence: Fence, clock: Clock) -> None:
    """A spare host serves and ships nothing until a run has made it a home.

    Raises:
        DrengineError: STATE_DAMAGED.
    """
    if config.is_spare_now and fence.record == FenceRecord():
        fence.replace(fenced_record(0, "spare", clock))


def _keep(directory: Path, settling: Settling) -> None:
    try:
        replace_durably(directory / FILE_NAME, msgspec.json.encode(settling))
    except OSError as error:
        raise DrengineError(STATE_DAMAGED, f"{directory}: {error.strerror}") from error
